"""Which pages of a guest's memory were ever touched: the others are zero, and take nine bytes in a migration stream.

The kernel tells it of a process on this host (proc_pid_pagemap(5), Documentation/admin-guide/mm/pagemap.rst). QEMU that
has read a page which the guest never touched has the kernel's zero page there, which is nobody's own: so a page counts
that is mapped here alone (bit 56), is a file's or shared (61), or was swapped out (62).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PAGE = 4096

ENTRY = 8
"""Bytes for a page in pagemap, in the host's order."""

FLAGS = ENTRY - 1 if sys.byteorder == "little" else 0
"""Which of them has bits 56 to 63."""

PART = 1 << 20
"""Bytes of pagemap that are read at a time: 512 MiB of memory."""

_TOUCHED = bytes(flags & 0x40 != 0 or (flags & 0x80 != 0 and flags & 0x21 != 0) for flags in range(256))


def touched(pid: int, size: int) -> bytes | None:
    """A byte for each page of the mapping of `size` bytes in process `pid`, 1 where it was touched.

    Of several mappings of that size the fullest; None where there is none, or the process may not be looked at.
    """
    try:
        maps = [_read(pid, start, size) for start in _mappings(pid, size)]
    except OSError:
        return None
    return max(maps, key=lambda pages: pages.count(1), default=None)


def _mappings(pid: int, size: int) -> list[int]:
    """Where mappings of that size begin that may be read and written. Raises OSError."""
    starts = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        span, flags = line.split(maxsplit=2)[:2]
        start, end = (int(number, 16) for number in span.split("-"))
        if end - start == size and flags.startswith("rw"):
            starts.append(start)
    return starts


def _read(pid: int, start: int, size: int) -> bytes:
    """Raises OSError."""
    pages = bytearray()
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        place, end = start // PAGE * ENTRY, (start + size) // PAGE * ENTRY
        while place < end and (part := os.pread(fd, min(PART, end - place), place)):
            pages += part[FLAGS::ENTRY].translate(_TOUCHED)
            place += len(part)
    finally:
        os.close(fd)
    return bytes(pages)
