"""A guest's memory as the kernel shows it from outside: which pages were ever touched, and which are rewritten.

A page that was never touched is zero, and takes nine bytes in a migration stream (proc_pid_pagemap(5),
Documentation/admin-guide/mm/pagemap.rst). If QEMU reads such a page, the kernel maps its shared zero page there. So a
page counts as touched if it is mapped exclusively here (bit 56), belongs to a file or is shared (61), or was swapped
out (62).

A page that is rewritten during a migration is sent again. QEMU counts these only at the end of each round, so we sample
pages from time to time, as its calc-dirty-rate does (proc_pid_mem(5)).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

from statepipe.processes import read_lines

PAGE = 4096

ENTRY = 8
"""Bytes of a page's entry in pagemap, in the host's byte order."""

FLAGS = ENTRY - 1 if sys.byteorder == "little" else 0
"""The byte with bits 56 to 63."""

PART = 1 << 20
"""Bytes of pagemap to read at a time, for 512 MiB of memory."""

SAMPLES = 4096
"""Pages in the sample: if a seventh is rewritten, they measure it to a 25th (one sigma), in 20 ms."""

SWAPPED = 0x40
"""Bit 62 there."""

_TOUCHED = bytes(flags & SWAPPED != 0 or (flags & 0x80 != 0 and flags & 0x21 != 0) for flags in range(256))

_ZERO = crc32(bytes(PAGE))


class Memory:
    """A mapping of `size` bytes at `start` in process `pid`. Raises OSError if we may not look.

    `touched` has a byte for each page: 1 if the guest had touched it when this object was created. With `once`, no page
    is sent again (a background snapshot), and nothing counts as rewritten.
    """

    def __init__(self, pid: int, start: int, size: int, *, once: bool = False) -> None:
        self._pid, self._start = pid, start
        self._once = once
        found = bytearray()
        place = start // PAGE * ENTRY
        end = place + size // PAGE * ENTRY
        with self._file("pagemap") as fd:
            while place < end and (part := os.pread(fd, min(PART, end - place), place)):
                found += part[FLAGS::ENTRY].translate(_TOUCHED)
                place += len(part)
        self.touched = bytes(found)
        # One random page of each stretch, so that no pattern in the guest's memory distorts the sample.
        pages = len(found)
        step, chance = max(pages // SAMPLES, 1), random.Random(pages)
        self._sample = [first + chance.randrange(min(step, pages - first)) for first in range(0, pages, step)]
        self._before = self._look()

    def whole(self, first: int) -> float:
        """Estimate how many pages from `first` on are not zero, by the part of the touched pages in the sample."""
        touched = [
            then != _ZERO
            for page, then in zip(self._sample, self._before, strict=True)
            if page >= first and self.touched[page]
        ]
        return self.touched.count(1, first) * (sum(touched) / len(touched) if touched else 1.0)

    def rewritten(self) -> float | None:
        """Estimate how many pages have changed since this object was created; None if we may not look any more."""
        if self._once:
            return 0.0
        try:
            both = [pair for pair in zip(self._before, self._look(), strict=True) if None not in pair]
        except OSError:
            return None
        return sum(then != now for then, now in both) / max(len(both), 1) * len(self.touched)

    def _look(self) -> list[int | None]:
        """Return a checksum of each page of the sample; None for a page that was swapped out, because reading it would
        bring it back. A page that was never touched is zero, and is not read, because that would touch it."""
        found: list[int | None] = []
        with self._file("pagemap") as flags, self._file("mem") as pages:
            for page in self._sample:
                address = self._start + page * PAGE
                entry = os.pread(flags, ENTRY, address // PAGE * ENTRY)
                if entry and entry[FLAGS] & SWAPPED:
                    found.append(None)
                else:
                    touched = entry and _TOUCHED[entry[FLAGS]]
                    found.append(crc32(os.pread(pages, PAGE, address)) if touched else _ZERO)
        return found

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        fd = os.open(f"/proc/{self._pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def memory(pid: int, size: int, *, once: bool = False) -> Memory | None:
    """Return the mapping of `size` bytes in process `pid` that may be read and written; of several, the fullest.

    None if there is none, or we may not look.
    """
    found = []
    try:
        for line in read_lines(f"/proc/{pid}/maps", "surrogateescape"):
            span, flags = line.split(maxsplit=2)[:2]
            start, end = (int(number, 16) for number in span.split("-"))
            if end - start == size and flags.startswith("rw"):
                found.append(Memory(pid, start, size, once=once))
    except OSError:
        return None
    return max(found, key=lambda it: it.touched.count(1), default=None)
