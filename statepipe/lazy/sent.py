"""Which pages of a guest were sent: one bit a page, since each page is sent only once.

The bits of 4096 pages are one number, so that a run of pages costs one operation. QEMU's bitmap of the received pages
has the same form: bit n is page n (QEMU migration/ram.c, ramblock_recv_bitmap_send).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PART = 4096
"""Pages whose bits are one number: 16 MiB of a guest. A guest of 1 TiB takes 40 MB."""


class Sent:
    """The pages of blocks with so many `pages` each; none is sent at first.

    The caller holds a lock for `mark` and `take`; `lacks` needs none.
    """

    def __init__(self, pages: Sequence[int]) -> None:
        self._parts = [[0] * -(-count // PART) for count in pages]

    def mark(self, block: int, first: int, count: int) -> list[tuple[int, int]]:
        """Count these pages as sent. Return those that were not sent before, as runs of (first, count)."""
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
        """Return how many of these pages were not sent."""
        return sum(
            size - (self._parts[block][number] >> at & (1 << size) - 1).bit_count()
            for number, at, size in _cut(first, count)
        )

    def take(self, block: int, bitmap: bytes) -> None:
        """Replace what is known of a block by the destination's bitmap of received pages."""
        size = PART // 8
        parts = self._parts[block]
        parts[:] = [int.from_bytes(bitmap[at * size : (at + 1) * size], "little") for at in range(len(parts))]


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
