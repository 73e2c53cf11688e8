"""A set of pages of a guest, such as those that were sent: one bit a page.

The bits of 4096 pages are one number, so that a run of pages costs one operation. QEMU's bitmap of the received pages
has the same form: bit n is page n (QEMU migration/ram.c, ramblock_recv_bitmap_send).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PART = 4096
"""Pages whose bits are one number: 16 MiB of a guest. A guest of 1 TiB takes 40 MB."""

Runs = list[tuple[int, int]]
"""Pages in a row, in ascending order: (first, count)."""


class PageSet:
    """Some of the pages of blocks with so many `pages` each; none at first.

    Threads that change it share a lock; reading needs none.
    """

    def __init__(self, pages: Sequence[int]) -> None:
        self._pages = tuple(pages)
        self._parts = [[0] * -(-count // PART) for count in pages]

    def add(self, block: int, first: int, count: int) -> Runs:
        """Add these pages. Return those that were not in the set before."""
        found: Runs = []
        for number, at, size in _cut(first, count):
            mask = ((1 << size) - 1) << at
            parts = self._parts[block]
            new = mask & ~parts[number]
            parts[number] |= mask
            base = number * PART
            for start, length in [(at, size)] if new == mask else _ones(new):
                _append(found, base + start, length)
        return found

    def remove(self, block: int, page: int) -> None:
        """Remove a page, if it is in the set."""
        number, at = divmod(page, PART)
        self._parts[block][number] &= ~(1 << at)

    def lacks(self, block: int, first: int, count: int) -> int:
        """Return how many of these pages are not in the set."""
        return sum(
            size - (self._parts[block][number] >> at & (1 << size) - 1).bit_count()
            for number, at, size in _cut(first, count)
        )

    def among(self, block: int, first: int, count: int) -> Runs:
        """Return those of these pages that are in the set."""
        found: Runs = []
        for number, at, size in _cut(first, count):
            for start, length in _ones(self._parts[block][number] >> at & (1 << size) - 1):
                _append(found, number * PART + at + start, length)
        return found

    def runs(self) -> Iterator[tuple[int, Runs]]:
        """Return all pages: the number of each block, with its pages."""
        for block, pages in enumerate(self._pages):
            yield block, self.among(block, 0, pages)

    def __len__(self) -> int:
        return sum(bits.bit_count() for parts in self._parts for bits in parts)

    def take(self, block: int, bitmap: bytes) -> None:
        """Replace the pages of a block by those of a bitmap."""
        size = PART // 8
        parts = self._parts[block]
        parts[:] = [int.from_bytes(bitmap[at * size : (at + 1) * size], "little") for at in range(len(parts))]


def _append(found: Runs, first: int, count: int) -> None:
    """Append pages, joined with the last run if they follow it."""
    if found and sum(found[-1]) == first:
        found[-1] = found[-1][0], found[-1][1] + count
    else:
        found.append((first, count))


def _cut(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Split pages into parts: the number of the part, the first page in it, how many."""
    stop = first + count
    while first < stop:
        number, at = divmod(first, PART)
        size = min(stop - first, PART - at)
        yield number, at, size
        first += size


def _ones(bits: int) -> Iterator[tuple[int, int]]:
    """Return the runs of ones in a number as (first, count)."""
    while bits:
        start = (bits & -bits).bit_length() - 1
        rest = bits >> start
        length = (~rest & rest + 1).bit_length() - 1
        yield start, length
        bits = rest >> length << start + length
