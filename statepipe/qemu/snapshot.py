"""Background snapshots (save --live), which QEMU before 8.1 cannot cancel safely.

QEMU write-protects the guest's memory and saves what is about to change first. QEMU 8.1 removes that protection
however the snapshot ends; an older one only if it succeeds. After any other end (cancelled, or its stream broken) each
processor of the guest blocks forever at its next write, although QEMU reports the guest as running. So with an old QEMU
the stream is read to its end, whatever happens to the save.

A save that QEMU started by exec: has no monitor (`part`). It sees that QEMU has a userfaultfd open, which protects the
memory. QEMU opens it before the first page and after the start of the stream, so a little of the stream may have to be
read first, but no more: a stream without a return path that is read to its end is completed for QEMU, and its guest
stays in postmigrate without a file. A stream that breaks off in the middle leaves the guest running.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

from statepipe.errors import IntegrityError, QemuError, QemuGone
from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.processes import Unavailable, output_of
from statepipe.qemu.process import names_open, owner, parent_pid
from statepipe.qemu.runstates import FINAL
from statepipe.threads import beside_if_possible
from statepipe.typed import TYPE_CHECKING
from statepipe.wakeups import READ_SIZE, SMALL, polled

if TYPE_CHECKING:  # it imports asyncio, which would delay a save without a monitor
    from statepipe.qemu.monitor import Monitor

BREAKABLE = (8, 1)
"""The first QEMU that removes the protection ("migration: stop tracking ram writes when cancelling background
migration"). 7.2.22 was seen to leave its guest blocked, 10.0 not."""

READS_REST = "this QEMU cannot cancel a snapshot without blocking its guest for good, so the rest of it is read"

LOOK, IDLE = 1000, 10_000
"""Milliseconds without a byte until QEMU is asked whether more will follow; until the reading ends where QEMU cannot be
asked."""

ENOUGH = 1 << 20
"""Bytes that certainly include the first page: before it are the machine, the RAM blocks and early device state."""

PATIENCE = 10.0
"""Seconds to wait for a program's version."""

LONGEST = 64 << 10
"""Bytes of a program's output for its version."""


def may_break_off(monitor: Monitor) -> bool:
    """Return whether this QEMU's guest survives a cancelled snapshot. Raises QemuError."""
    version = monitor.execute("query-version")["qemu"]
    return (version["major"], version["minor"]) >= BREAKABLE


def read_out(fd: int, monitor: Monitor, tell: Callable[[str], object]) -> None:
    """Read and drop the rest of a snapshot's stream, which is as long as the memory that is not saved yet.

    `tell` is informed in another thread, because it may block. Only the end of the stream, of the migration or of QEMU
    ends the reading: a QEMU that does not answer may still write.
    """
    with ExitStack() as telling:
        is_told = False
        while True:
            if polled(fd).poll(LOOK):
                if not os.read(fd, READ_SIZE):
                    return
                if not is_told:
                    is_told = True
                    telling.enter_context(_told_beside(tell, READS_REST))
                continue
            try:
                if monitor.migration()["status"] in ("none", *FINAL):
                    return
            except QemuGone:  # or only its monitor
                read_unasked(fd)
                return
            except QemuError:
                continue


def _told_beside(tell: Callable[[str], object], words: str) -> AbstractContextManager[None]:
    """Report the words in another thread, so that a slow `tell` does not delay the work in the context."""
    return beside_if_possible("word", lambda: tell(words), lambda: None)


def read_unasked(fd: int) -> None:
    """Read and drop what arrives until it pauses for IDLE: another client may use QEMU's monitor."""
    while polled(fd).poll(IDLE) and os.read(fd, READ_SIZE):
        continue


def part(
    tell: Callable[[str], object], hold: Callable[[], object] = lambda: None, stream: QemuStream | None = None
) -> None:
    """If standard input is a snapshot that our QEMU cannot cancel, read the rest of it, after a message to `tell`.

    Of any other stream, read only as much as shows what it is. `hold` is called before the rest is read, which no
    signal may interrupt; `stream` has parsed what was read already. Errors are dropped: the failure of the save is what
    the user must see.
    """
    with suppress(OSError, Unavailable):
        pid, mode, stream = parent_pid(), os.fstat(0).st_mode, stream or QemuStream()
        if pid is None or owner(pid) != os.geteuid() or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return
        if (_has_page(stream) and not _takes_snapshot(pid)) or _program_may_break_off(pid):
            return
        taken, is_followed = 0, True
        while not _takes_snapshot(pid):
            if taken >= ENOUGH or (is_followed and _has_page(stream)) or not polled(0).poll(LOOK):
                return
            if not (data := os.read(0, SMALL)):
                return
            taken += len(data)
            try:
                stream.feed(data)
            except IntegrityError:  # the bytes between these and the parsed ones were lost with the stages
                is_followed = False
        hold()
        with _told_beside(tell, f"{READS_REST}. QEMU will report it as completed, but there is no file"):
            read_unasked(0)


def _has_page(stream: QemuStream) -> bool:
    return stream.phase not in (Phase.HEADER, Phase.SETUP)


def _takes_snapshot(pid: int) -> bool:
    return any(name == "anon_inode:[userfaultfd]" for name in names_open(pid))


def _program_may_break_off(pid: int) -> bool:
    """Return whether the version that the program prints can cancel a snapshot; False if there is no version."""
    try:
        _, written = output_of([f"/proc/{pid}/exe", "--version"], PATIENCE, LONGEST)
    except Unavailable:
        return False
    found = re.search(rb"version (\d{1,4})\.(\d{1,4})", written)
    return found is not None and (int(found[1]), int(found[2])) >= BREAKABLE
