"""A background snapshot (save --live), and that QEMU before 8.1 cannot break it off.

It protects the guest's memory from being written to, and saves what is about to change first. QEMU 8.1 takes that
protection back however the snapshot ends; an older one only where it succeeds. After any other end (cancelled, or its
stream broken) each processor stands still for good at its next write, while QEMU calls the guest running. So there the
stream is read to its end, whatever becomes of the save.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from statepipe.errors import QemuError
from statepipe.pipes import READ_SIZE, polled
from statepipe.qemu.monitor import FINAL, Monitor

BREAKABLE = (8, 1)
"""The first QEMU that takes the protection back ("migration: stop tracking ram writes when cancelling background
migration"). 7.2.22 was seen to leave its guest standing still, 10.0 not."""

LOOK = 1000
"""Milliseconds without a byte until QEMU is asked whether there will be any."""


def may_break_off(monitor: Monitor) -> bool:
    """Whether this QEMU's guest survives that. Raises QemuError."""
    version = monitor.execute("query-version")["qemu"]
    return (version["major"], version["minor"]) >= BREAKABLE


def read_out(fd: int, monitor: Monitor, tell: Callable[[str], object]) -> None:
    """The rest of a snapshot's stream, for nobody. It is as long as the memory that is not saved yet; `tell` hears of
    it."""
    words: str | None = "this QEMU cannot break off a snapshot without its guest standing still for good: "
    poll = polled(fd)
    with suppress(QemuError):  # it has gone: so has the stream
        while poll.poll(LOOK) or monitor.migration()["status"] not in ("none", *FINAL):
            if not poll.poll(0):
                continue
            if not os.read(fd, READ_SIZE):
                return
            if words is not None:
                tell(f"{words}the rest of it is read, for nobody")
                words = None
