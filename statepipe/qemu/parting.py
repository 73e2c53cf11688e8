"""How a save that QEMU has started by exec: leaves it when it fails.

Where QEMU takes a background snapshot, and cannot break it off (snapshot.py), its guest would stand still for good. A
child of QEMU's has no monitor. It sees that QEMU holds a userfaultfd, which protects the guest's memory meanwhile; it
is there before the first page comes, and not before the stream begins. So a little of that is read to see it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable

from statepipe.processes import Unavailable, output_of
from statepipe.qemu.process import names_open, owner, parent_pid
from statepipe.qemu.snapshot import BREAKABLE, LOOK, read_unasked
from statepipe.wakeups import READ_SIZE, polled

ENOUGH = 1 << 20
"""Bytes after which the first page has come: before it are the machine, the RAM blocks and what devices send early."""

PATIENCE = 10.0
"""Seconds for a program to tell its version."""


def part(tell: Callable[[str], object]) -> None:
    """Read the rest of a snapshot on standard input that our QEMU cannot break off; `tell` hears that before. Of any
    other stream, only as much as shows that it is none."""
    pid = parent_pid()
    mode = os.fstat(0).st_mode
    if pid is None or owner(pid) != os.geteuid() or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return
    taken = 0
    while not _takes_snapshot(pid):
        if taken >= ENOUGH or not polled(0).poll(LOOK):
            return
        data = os.read(0, READ_SIZE)
        if not data:
            return
        taken += len(data)
    if _may_break_off(pid):
        return
    tell(
        "this QEMU cannot break off a snapshot without its guest standing still for good: the rest of it is read. "
        "QEMU will call it completed, and there is no file"
    )
    read_unasked(0)


def _takes_snapshot(pid: int) -> bool:
    return any(name == "anon_inode:[userfaultfd]" for name in names_open(pid))


def _may_break_off(pid: int) -> bool:
    """By the word of its program; not where that is not understood."""
    try:
        _, written = output_of([f"/proc/{pid}/exe", "--version"], PATIENCE)
    except Unavailable:
        return False
    found = re.search(rb"version (\d{1,4})\.(\d{1,4})", written)
    return found is not None and (int(found[1]), int(found[2])) >= BREAKABLE
