"""A background snapshot (save --live), and that QEMU before 8.1 cannot break it off.

It protects the guest's memory from being written to, and saves what is about to change first. QEMU 8.1 takes that
protection back however the snapshot ends; an older one only where it succeeds. After any other end (cancelled, or its
stream broken) each processor stands still for good at its next write, while QEMU calls the guest running. So there the
stream is read to its end, whatever becomes of the save.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from statepipe.errors import QemuError, QemuGone
from statepipe.qemu.monitor import FINAL, Monitor
from statepipe.threads import beside_if_possible
from statepipe.wakeups import READ_SIZE, polled

BREAKABLE = (8, 1)
"""The first QEMU that takes the protection back ("migration: stop tracking ram writes when cancelling background
migration"). 7.2.22 was seen to leave its guest standing still, 10.0 not."""

READS_REST = "this QEMU cannot break off a snapshot without stopping its guest for good: the rest of it is read"
"""Said before that."""

LOOK, IDLE = 1000, 10_000
"""Milliseconds without a byte until QEMU is asked whether there will be any; until a monitor is waited for first."""


def may_break_off(monitor: Monitor) -> bool:
    """Whether this QEMU's guest survives that. Raises QemuError."""
    version = monitor.execute("query-version")["qemu"]
    return (version["major"], version["minor"]) >= BREAKABLE


def read_out(fd: int, monitor: Monitor, tell: Callable[[str], object]) -> None:
    """The rest of a snapshot's stream, for nobody. It is as long as the memory that is not saved yet.

    `tell` hears of it, beside the reading: whoever reads what is told may be slow. Only an end of the stream, of the
    migration or of QEMU ends it; a QEMU that does not answer may write yet.
    """
    with ExitStack() as telling:
        is_told = False
        while True:
            if polled(fd).poll(LOOK):
                if not os.read(fd, READ_SIZE):
                    return
                if not is_told:
                    is_told = True
                    telling.enter_context(told_beside(tell, READS_REST))
                continue
            try:
                if monitor.migration()["status"] in ("none", *FINAL):
                    return
            except QemuGone:  # or its monitor alone
                read_unasked(fd)
                return
            except QemuError:
                continue


def told_beside(tell: Callable[[str], object], words: str) -> AbstractContextManager[None]:
    """Tell the words in a thread of its own, so that a slow reader of them does not delay what the context does."""
    return beside_if_possible("word", lambda: tell(words), lambda: None)


def read_unasked(fd: int) -> None:
    """As much of it as comes, as long as QEMU's monitor may be another client's."""
    while polled(fd).poll(IDLE) and os.read(fd, READ_SIZE):
        continue
