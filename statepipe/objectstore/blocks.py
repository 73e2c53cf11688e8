"""The blocks of an object that are in memory or on their way, and those who wait for them.

Whoever wants blocks claims them, and is told which ones nobody has asked for yet; these are on their way from then on.
So each is asked for once, however many threads want it. What fails is forgotten: the next one asks anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from statepipe.stage import Cancelled

Rows = list[tuple[int, int]]
"""Blocks that follow one another: the first, and the one after the last."""

Bell = SimpleQueue[None]
"""Rung for one who waits. Not an Event: a signal's exception could leave its lock taken."""


class Block:
    """A block that is there, or on its way: then who waits for it has its bell here."""

    __slots__ = ("bells", "data", "error")

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.error: BaseException | None = None
        self.bells: list[Bell] = []

    @property
    def is_done(self) -> bool:
        """Whether nobody has to wait for it."""
        return self.data is not None or self.error is not None


class Blocks:
    """At most `most` bytes of blocks that are there; those that were not used for longest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._bells: set[Bell] = set()
        self.kept = 0  # bytes

    def claim(self, first: int, after: int, limit: int = 0) -> tuple[list[Block], Rows]:
        """Return the blocks from `first` on, up to `after`, and the rows of those that the caller must ask for.

        If the last of them is missing, so are those that follow it, up to `limit` or one that is not missing.
        """
        rows: Rows = []
        with self._lock:
            for number in range(first, after):
                self._want(number, rows)
                self._blocks.move_to_end(number)
            blocks = [self._blocks[number] for number in range(first, after)]
            while rows and rows[-1][1] == after < limit and after not in self._blocks:
                self._want(after, rows)
                after += 1
        return blocks, rows

    def _want(self, number: int, rows: Rows) -> None:
        if number in self._blocks:
            return
        self._blocks[number] = Block()
        if rows and rows[-1][1] == number:
            rows[-1] = rows[-1][0], number + 1
        else:
            rows.append((number, number + 1))

    def arrived(self, number: int, data: bytes) -> None:
        """Keep a block that was claimed."""
        with self._lock:
            block = self._blocks[number]
            block.data = data
            self.kept += len(data)
            while self.kept > self._most:
                oldest = next((at for at, it in self._blocks.items() if it.data is not None and at != number), None)
                if oldest is None:
                    break
                self._drop(oldest)
            self._tell(block)

    def failed(self, numbers: Iterable[int], error: BaseException) -> None:
        """Have those who wait for these blocks raise the error. Whoever wants them later claims them anew."""
        with self._lock:
            for number in numbers:
                block = self._blocks.get(number)
                if block is not None and not block.is_done:
                    block.error = error
                    del self._blocks[number]
                    self._tell(block)

    def forget(self, numbers: Iterable[int]) -> None:
        """Forget those of these blocks that are there."""
        with self._lock:
            for number in numbers:
                block = self._blocks.get(number)
                if block is not None and block.data is not None:
                    self._drop(number)

    def wait(self, block: Block, is_over: Callable[[], bool]) -> bytes:
        """Return the bytes of a block. Raises its error; Cancelled if `is_over` once `ring` was called."""
        if not block.is_done:
            with self._waiting() as bell:
                while not block.is_done:
                    if is_over():
                        raise Cancelled
                    with self._lock:
                        is_done = block.is_done
                        if not is_done and bell not in block.bells:
                            block.bells.append(bell)
                    if not is_done:
                        bell.get()
        if block.error is not None:
            raise block.error
        assert block.data is not None
        return block.data

    def ring(self) -> None:
        """Have all who wait look whether it is over."""
        with self._lock:
            for bell in self._bells:
                bell.put(None)

    @contextmanager
    def _waiting(self) -> Iterator[Bell]:
        bell: Bell = SimpleQueue()
        with self._lock:
            self._bells.add(bell)
        try:
            yield bell
        finally:
            with self._lock:
                self._bells.discard(bell)

    def _tell(self, block: Block) -> None:
        for bell in block.bells:
            bell.put(None)
        block.bells.clear()

    def _drop(self, number: int) -> None:
        data = self._blocks.pop(number).data
        assert data is not None
        self.kept -= len(data)
