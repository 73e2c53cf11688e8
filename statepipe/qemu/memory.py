"""A guest's memory as the kernel shows it from outside: which pages were ever touched, and which are being rewritten.

A page that was never touched is zero, and takes nine bytes in a migration stream. The kernel tells it of a process on
this host (proc_pid_pagemap(5), Documentation/admin-guide/mm/pagemap.rst). QEMU that has read a page which the guest
never touched has the kernel's zero page there, which is nobody's own: so a page counts that is mapped here alone
(bit 56), is a file's or shared (61), or was swapped out (62).

What is rewritten while a migration goes on is sent again. QEMU counts it only at the end of each round, so some pages
from all over are looked at now and then, as its calc-dirty-rate does (proc_pid_mem(5)).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

PAGE = 4096

ENTRY = 8
"""Bytes for a page in pagemap, in the host's order."""

FLAGS = ENTRY - 1 if sys.byteorder == "little" else 0
"""Which of them has bits 56 to 63."""

PART = 1 << 20
"""Bytes of pagemap that are read at a time: 512 MiB of memory."""

SAMPLES = 4096
"""Pages that are looked at: of a seventh that is rewritten, they tell to a 25th (one sigma), in 20 ms."""

SWAPPED = 0x40
"""Bit 62 there."""

_TOUCHED = bytes(flags & SWAPPED != 0 or (flags & 0x80 != 0 and flags & 0x21 != 0) for flags in range(256))

_ZERO = crc32(bytes(PAGE))


class Memory:
    """A mapping of `size` bytes at `start` in process `pid`. Raises OSError where it may not be looked at.

    `touched` has a byte for each page, 1 where the guest had touched it when this was made. With `once`, no page is
    sent again (a background snapshot), and nothing counts as rewritten.
    """

    def __init__(self, pid: int, start: int, size: int, *, once: bool = False) -> None:
        self._pid, self._start = pid, start
        self.touched = self._flags(size // PAGE)
        self._once = once
        self._sample = _some_of(len(self.touched))
        self._before = self._look()

    def whole(self, first: int) -> float:
        """About how many pages from `first` on are not zero: of those touched, the part that is so in the sample."""
        touched = [
            then != _ZERO
            for page, then in zip(self._sample, self._before, strict=True)
            if page >= first and self.touched[page]
        ]
        return self.touched.count(1, first) * (sum(touched) / len(touched) if touched else 1.0)

    def rewritten(self) -> float | None:
        """About how many pages have other content than when this was made; None if it can be looked at no more."""
        if self._once:
            return 0.0
        try:
            both = [pair for pair in zip(self._before, self._look(), strict=True) if None not in pair]
        except OSError:
            return None
        return sum(then != now for then, now in both) / max(len(both), 1) * len(self.touched)

    def _look(self) -> list[int | None]:
        """A checksum of each page of the sample; None of one that was swapped out, which reading would bring back.

        Reading one that was never touched would touch it: it is zero.
        """
        with self._file("pagemap") as flags, self._file("mem") as pages:
            return [self._checksum(flags, pages, page) for page in self._sample]

    def _checksum(self, flags: int, pages: int, page: int) -> int | None:
        address = self._start + page * PAGE
        entry = os.pread(flags, ENTRY, address // PAGE * ENTRY)
        if entry and entry[FLAGS] & SWAPPED:
            return None
        return crc32(os.pread(pages, PAGE, address)) if entry and _TOUCHED[entry[FLAGS]] else _ZERO

    def _flags(self, pages: int) -> bytes:
        found = bytearray()
        place = self._start // PAGE * ENTRY
        end = place + pages * ENTRY
        with self._file("pagemap") as fd:
            while place < end and (part := os.pread(fd, min(PART, end - place), place)):
                found += part[FLAGS::ENTRY].translate(_TOUCHED)
                place += len(part)
        return bytes(found)

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        fd = os.open(f"/proc/{self._pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _some_of(pages: int) -> list[int]:
    """SAMPLES of so many pages, one of each stretch, anywhere in it: so that no pattern of the guest's is missed."""
    step, chance = max(pages // SAMPLES, 1), random.Random(pages)
    return [first + chance.randrange(min(step, pages - first)) for first in range(0, pages, step)]


def memory(pid: int, size: int, *, once: bool = False) -> Memory | None:
    """The mapping of `size` bytes in process `pid`, of several the fullest.

    None where there is none, or the process may not be looked at.
    """
    try:
        found = [Memory(pid, start, size, once=once) for start in _mappings(pid, size)]
    except OSError:
        return None
    return max(found, key=lambda it: it.touched.count(1), default=None)


def _mappings(pid: int, size: int) -> list[int]:
    """Where mappings of that size begin that may be read and written. Raises OSError."""
    starts = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        span, flags = line.split(maxsplit=2)[:2]
        start, end = (int(number, 16) for number in span.split("-"))
        if end - start == size and flags.startswith("rw"):
            starts.append(start)
    return starts
