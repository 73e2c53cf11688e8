"""Estimate how many bytes of a migration stream are still to come, from the stream and from QEMU's memory.

In the first round QEMU sends every page once, as 9 bytes if it is zero and as 4,104 if not. Only sending a page shows
whether it is zero. But a page that the guest never touched is zero, and the kernel knows these pages of a QEMU on this
host (qemu/memory.py); a sample tells how many of the others are zero. Pages that the guest rewrites meanwhile are sent
again (rewriting.py): those that had changed when a round began, less those already sent, and the rounds that will
follow. Median errors are in docs/measurements.md.

If QEMU is not on this host, only an upper bound of the first round is known: the pages left, each as large as the
average page so far. A guest's free memory is often in one piece; until it has passed, the bound is up to 2.5 times too
large. Median errors at a steady rate: 1 to 6 % if zero pages are spread and the guest is idle after one round, 7 to
11 % with a second round of 5 %; 82 and 86 % on two real streams of guests with 256 MB, 38 % of it free in one piece.
Each later round is assumed to shrink as the last one did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.formats.qemu.stream import Phase, QemuStream
from statepipe.stages.context import GuestMemory
from statepipe.stages.rewriting import Rewriting, to_come

TAIL = 100_000
"""Bytes of the devices and vmdesc of a plain PC, after the last page."""

SHRINKING = 0.1
"""The assumed size of the second round relative to the first: 1 to 5 % for an idle guest, all for a busy one."""

ZERO, WHOLE = 9, 8
"""Bytes of a zero page in the stream, and of a whole page's header."""

LARGE = 16 << 20
"""Bytes from which a RAM block is the guest's memory, and not a ROM or a frame buffer."""

Look = Callable[[int], GuestMemory | None]
"""Returns QEMU's RAM block of so many bytes, if it can be seen."""


class Remaining:
    """Follows a stream through its parser. `bytes()` is safe from any thread."""

    def __init__(self, stream: QemuStream, look: Look, clock: Callable[[], float]) -> None:
        self._stream, self._look_at, self._clock = stream, look, clock
        self._memory: dict[str, GuestMemory] | None = None
        self._rewriting = Rewriting(self._rewritten, clock)
        self._round = 0
        self._begun, self._since = 0, clock()  # of the round: the pages sent before it, and its time
        self._due = 0.0  # from the second round on: the pages that were due when it began
        self._sizes: list[int] = []

    @property
    def is_bound(self) -> bool:
        """Return whether `bytes` is only an upper bound."""
        return not self._memory

    def look(self) -> None:
        """Update the estimate; called after each buffer that the parser was fed."""
        if self._memory is None and self._sent():
            blocks = [block for block in self._stream.blocks.values() if block.length >= LARGE]
            found = {block.name: self._look_at(block.length) for block in blocks}
            self._memory = {name: memory for name, memory in found.items() if memory is not None}
            self._rewriting = Rewriting(self._rewritten, self._clock)
        if self._memory:
            self._rewriting.look(now=self._stream.rounds > max(self._round, 1))
        if self._stream.rounds != self._round:  # QEMU has just read which pages were written since the last round began
            if self._round:
                self._sizes.append(self._sent() - self._begun)
                self._due = self._rewriting.within(self._clock() - self._since)
            self._round, self._begun, self._since = self._stream.rounds, self._sent(), self._clock()

    def _rewritten(self) -> float | None:
        """Return the rewritten pages of all visible blocks."""
        counts = [memory.rewritten() for memory in (self._memory or {}).values()]
        return None if None in counts else sum(count for count in counts if count is not None)

    def bytes(self, rate: float) -> int | None:
        """Return the bytes still to come, at `rate` bytes a second.

        None before the first page, after the last, and if no end is in sight.
        """
        if not self._sent() or self._stream.phase is not Phase.RAM or rate <= 0:
            return None
        if self._memory and self._round <= 1:
            passed = sum(memory.touched.count(1, 0, first) for memory, first in self._ahead())
            if self._sent() - self._stream.pages.zero > passed + LARGE // self._stream.page_size:
                self._memory = {}  # more whole pages than touched ones: the memory is another guest's
        left = self._foreseen(rate) if self._memory else self._bound()
        return None if left is None else int(left) + TAIL

    def _sent(self) -> int:
        pages = self._stream.pages
        return pages.normal + pages.zero + pages.xbzrle + pages.compressed

    def _foreseen(self, rate: float) -> float | None:
        """Return the bytes of pages left, from QEMU's memory. Blocks that cannot be seen count as zero pages."""
        stream, page = self._stream, self._stream.page_size + WHOLE
        if self._round <= 1:
            whole = sum(memory.whole(first) for memory, first in self._ahead())
            pages = max(stream.ram_bytes / stream.page_size - self._sent(), whole)
            left = whole * page + (pages - whole) * ZERO
        else:
            left = max(self._due - (self._sent() - self._begun), 0.0) * page
        if stream.switchover is not None:
            return left
        since = self._clock() - self._since
        return to_come(left, since, rate, lambda seconds: self._rewriting.within(seconds) * page)

    def _ahead(self) -> Iterator[tuple[GuestMemory, int]]:
        """Yield each visible block with the first page that was not yet sent in this round."""
        name, page = self._stream.place
        is_behind = True
        for block in self._stream.blocks.values():
            is_behind = is_behind and block.name != name
            if memory := (self._memory or {}).get(block.name):
                first = page + 1 if block.name == name else len(memory.touched) if is_behind else 0
                yield memory, first

    def _bound(self) -> float:
        """Return the bytes of pages left in this round, from the stream alone."""
        if self._sizes:
            shrinking = self._sizes[-1] / self._sizes[-2] if len(self._sizes) > 1 else SHRINKING
            pages = self._sizes[-1] * min(shrinking, 1.0)
        else:
            pages = self._stream.ram_bytes / self._stream.page_size
        return max(pages - (self._sent() - self._begun), 0) * self._stream.offset / self._sent()
