"""Which pages of a guest have left: one bit a page, for each of them may leave once.

The bits of 4096 pages are one number, so that a run of pages costs one operation, and QEMU's own bitmap of what has
arrived is read as it is: bit n is page n (QEMU migration/ram.c, ramblock_recv_bitmap_send).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PART = 4096
"""Pages whose bits are one number: 16 MiB of a guest. A guest of 1 TiB takes 40 MB."""


class Sent:
    """The pages of blocks of so many `pages` each, of which none has left yet.

    Whoever marks pages holds a lock; whether some are left may be asked by anybody.
    """

    def __init__(self, pages: Sequence[int]) -> None:
        self._parts = [[0] * -(-count // PART) for count in pages]

    def mark(self, block: int, first: int, count: int) -> list[tuple[int, int]]:
        """Count these pages as sent; those of them that were not, in runs of (first, count)."""
        found: list[tuple[int, int]] = []
        for number, at, size in _cut(first, count):
            mask = ((1 << size) - 1) << at
            parts = self._parts[block]
            new = mask & ~parts[number]
            parts[number] |= mask
            base = number * PART
            for start, length in [(at, size)] if new == mask else _ones(new):
                if found and sum(found[-1]) == base + start:
                    found[-1] = found[-1][0], found[-1][1] + length
                else:
                    found.append((base + start, length))
        return found

    def lacks(self, block: int, first: int, count: int) -> int:
        """How many of these pages have not left."""
        return sum(
            size - (self._parts[block][number] >> at & (1 << size) - 1).bit_count()
            for number, at, size in _cut(first, count)
        )

    def take(self, block: int, bitmap: bytes) -> None:
        """These have arrived, says the destination, and no others."""
        size = PART // 8
        parts = self._parts[block]
        parts[:] = [int.from_bytes(bitmap[at * size : (at + 1) * size], "little") for at in range(len(parts))]


def _cut(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """The pages in their parts: the part's number, the first page in it, how many."""
    stop = first + count
    while first < stop:
        number, at = divmod(first, PART)
        size = min(stop - first, PART - at)
        yield number, at, size
        first += size


def _ones(bits: int) -> Iterator[tuple[int, int]]:
    """The runs of ones in a number: (first, count)."""
    while bits:
        start = (bits & -bits).bit_length() - 1
        rest = bits >> start
        length = (~rest & rest + 1).bit_length() - 1
        yield start, length
        bits = rest >> length << start + length
