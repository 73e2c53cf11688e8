"""How much of a migration stream is still to come, as far as the stream itself and its QEMU's memory can tell.

In the first round QEMU sends every page once, as 9 bytes if it is zero and as 4,104 if not. Which pages are zero, only
sending them shows; but a page that the guest never touched is, and the kernel knows those of a QEMU on this host
(qemu/memory.py), and of the others a sample tells how many are zero. What the guest rewrites meanwhile comes again
(rewriting.py): that much was changed when a round began, less what of it has been sent, and the rounds that will
follow. Median errors are in docs/measurements.md.

Where QEMU is not on this host, all that can be told is an upper bound of the first round: pages left, at the bytes
that a page has taken so far. A guest's free memory often lies in one piece, and until that has passed it is up to 2.5
times too much. Median errors at a steady rate: 1 to 6 % where zero pages are spread and the guest is idle after one
round, 7 to 11 % with a second round of 5 %; 82 and 86 % on two real streams of guests with 256 MB, 38 % of it free in
one piece. Later rounds are each taken to shrink as the last one did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.stages.context import GuestMemory
from statepipe.stages.rewriting import Rewriting, to_come

TAIL = 100_000
"""Bytes of devices and vmdesc of a bare PC, behind the last page."""

SHRINKING = 0.1
"""What the second round is to the first, before it has been seen: an idle guest's is 1 to 5 %, a busy one's all."""

ZERO, WHOLE = 9, 8
"""Bytes of a zero page in the stream, and of what a whole one has beside the page itself."""

LARGE = 16 << 20
"""Bytes of a RAM block that is worth a look: the guest's memory, and not a ROM or a frame buffer."""

Look = Callable[[int], GuestMemory | None]
"""At QEMU's RAM block of so many bytes."""


class Remaining:
    """Follows a stream by its parser; `bytes()` may be asked from any thread."""

    def __init__(self, stream: QemuStream, look: Look, clock: Callable[[], float]) -> None:
        self._stream, self._look_at, self._clock = stream, look, clock
        self._memory: dict[str, GuestMemory] | None = None
        self._rewriting = Rewriting(self._rewritten, clock)
        self._round = 0
        self._begun, self._since = 0, clock()  # the round: pages before it, and when
        self._due = 0.0  # pages that the round began with, from the second on
        self._sizes: list[int] = []

    @property
    def is_bound(self) -> bool:
        """Whether `bytes` is an upper bound alone."""
        return not self._memory

    def look(self) -> None:
        """After each buffer that the parser was fed."""
        if self._memory is None and self._sent():
            blocks = [block for block in self._stream.blocks.values() if block.length >= LARGE]
            found = {block.name: self._look_at(block.length) for block in blocks}
            self._memory = {name: memory for name, memory in found.items() if memory is not None}
            self._rewriting = Rewriting(self._rewritten, self._clock)
        if self._memory:
            self._rewriting.look(now=self._stream.rounds > max(self._round, 1))
        if self._stream.rounds != self._round:
            self._next_round()

    def _next_round(self) -> None:
        """QEMU has just read which pages were written since the last one began."""
        if self._round:
            self._sizes.append(self._sent() - self._begun)
            self._due = self._rewriting.within(self._clock() - self._since)
        self._round, self._begun, self._since = self._stream.rounds, self._sent(), self._clock()

    def _rewritten(self) -> float | None:
        """Pages of all blocks that were looked at."""
        counts = [memory.rewritten() for memory in (self._memory or {}).values()]
        return None if None in counts else sum(count for count in counts if count is not None)

    def bytes(self, rate: float) -> int | None:
        """Bytes still to come, at so many a second; None before the first page, after the last, and without an end."""
        if not self._sent() or self._stream.phase is not Phase.RAM or rate <= 0:
            return None
        self._distrust()
        left = self._foreseen(rate) if self._memory else self._pages() * self._stream.offset / self._sent()
        return None if left is None else int(left) + TAIL

    def _distrust(self) -> None:
        """More whole pages than were touched: what was looked at is another guest's memory."""
        if self._memory and self._round <= 1:
            passed = sum(memory.touched.count(1, 0, first) for memory, first in self._ahead())
            if self._whole() > passed + LARGE // self._stream.page_size:
                self._memory = {}

    def _foreseen(self, rate: float) -> float | None:
        page = self._stream.page_size + WHOLE
        done = self._sent() - self._begun
        left = self._first_round() if self._round <= 1 else max(self._due - done, 0.0) * page
        if self._stream.switchover is not None:
            return left
        since = self._clock() - self._since
        return to_come(left, since, rate, lambda seconds: self._rewriting.within(seconds) * page)

    def _sent(self) -> int:
        pages = self._stream.pages
        return pages.normal + pages.zero + pages.xbzrle + pages.compressed

    def _whole(self) -> int:
        return self._sent() - self._stream.pages.zero

    def _first_round(self) -> float:
        """Bytes left of the round that sends every page. Blocks that were not looked at are taken to be zero."""
        whole = sum(memory.whole(first) for memory, first in self._ahead())
        left = max(self._stream.ram_bytes / self._stream.page_size - self._sent(), whole)
        return whole * (self._stream.page_size + WHOLE) + (left - whole) * ZERO

    def _ahead(self) -> Iterator[tuple[GuestMemory, int]]:
        """Of each block that was looked at, the first page that was not sent yet in this round."""
        name, page = self._stream.place
        is_behind = True
        for block in self._stream.blocks.values():
            is_behind = is_behind and block.name != name
            if memory := (self._memory or {}).get(block.name):
                first = page + 1 if block.name == name else len(memory.touched) if is_behind else 0
                yield memory, first

    def _pages(self) -> float:
        done = self._sent() - self._begun
        if len(self._sizes) < 1:
            return max(self._stream.ram_bytes / self._stream.page_size - done, 0)
        shrinking = self._sizes[-1] / self._sizes[-2] if len(self._sizes) > 1 else SHRINKING
        return max(self._sizes[-1] * min(shrinking, 1.0) - done, 0)
