"""How a save that QEMU has started by exec: leaves it when it fails.

Where QEMU takes a background snapshot, and cannot break it off (snapshot.py), its guest would stand still for good. A
child of QEMU's has no monitor. It sees that QEMU holds a userfaultfd, which protects the guest's memory meanwhile; it
is there before the first page comes, and not before the stream begins. So a little of that is read to see it.

No more than that is read: a stream without a return path that is read to its end, QEMU calls completed, and its guest
stands still in postmigrate though there is no file. One that breaks off in the midst leaves the guest running.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.processes import Unavailable, output_of
from statepipe.qemu.process import names_open, owner, parent_pid
from statepipe.qemu.snapshot import BREAKABLE, LOOK, READS_REST, read_unasked, told_beside
from statepipe.wakeups import SMALL, polled

ENOUGH = 1 << 20
"""Bytes after which the first page has come: before it are the machine, the RAM blocks and what devices send early."""

PATIENCE = 10.0
"""Seconds for a program to tell its version."""

LONGEST = 64 << 10
"""Bytes that it may tell in all."""


def part(
    tell: Callable[[str], object], hold: Callable[[], object] = lambda: None, stream: QemuStream | None = None
) -> None:
    """Read the rest of a snapshot on standard input that our QEMU cannot break off; `tell` hears that before. Of any
    other stream, only as much as shows that it is none. `hold` is called before that rest is read, which no signal may
    cut short; `stream` has followed what was read already.

    Raises nothing that takes the place of why the save failed.
    """
    with suppress(OSError, Unavailable):
        _part(tell, hold, stream or QemuStream())


def _part(tell: Callable[[str], object], hold: Callable[[], object], stream: QemuStream) -> None:
    """Raises OSError, Unavailable."""
    pid = parent_pid()
    mode = os.fstat(0).st_mode
    if pid is None or owner(pid) != os.geteuid() or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return
    if (_has_page(stream) and not _takes_snapshot(pid)) or _may_break_off(pid):
        return
    if not _shows_snapshot(pid, stream):
        return
    hold()
    with told_beside(tell, f"{READS_REST}. QEMU will call it completed, and there is no file"):
        read_unasked(0)


def _has_page(stream: QemuStream) -> bool:
    return stream.phase not in (Phase.HEADER, Phase.SETUP)


def _shows_snapshot(pid: int, stream: QemuStream) -> bool:
    """Whether QEMU takes a snapshot, by as much of the stream as it takes to see it. Raises OSError."""
    taken, is_followed = 0, True
    while not _takes_snapshot(pid):
        if taken >= ENOUGH or (is_followed and _has_page(stream)) or not polled(0).poll(LOOK):
            return False
        if not (data := os.read(0, SMALL)):
            return False
        taken += len(data)
        try:
            stream.feed(data)
        except IntegrityError:  # bytes between these and what was followed are lost with the stages that had them
            is_followed = False
    return True


def _takes_snapshot(pid: int) -> bool:
    return any(name == "anon_inode:[userfaultfd]" for name in names_open(pid))


def _may_break_off(pid: int) -> bool:
    """By the word of its program; not where that is not understood."""
    try:
        _, written = output_of([f"/proc/{pid}/exe", "--version"], PATIENCE, LONGEST)
    except Unavailable:
        return False
    found = re.search(rb"version (\d{1,4})\.(\d{1,4})", written)
    return found is not None and (int(found[1]), int(found[2])) >= BREAKABLE
