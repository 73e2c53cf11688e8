"""What every compressor has in common: the stream cut into blocks, each worked on by whichever core is free.

A block is a list of buffers, joined only on the worker that takes it. A flush mark closes a block early, so that
what came before it can leave, and goes on behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

from statepipe.memorylimit import workers_within
from statepipe.stage import FLUSH, Buffer, Over, Stage, cut, joined
from statepipe.threads import parallel

T = TypeVar("T")
R = TypeVar("R")


def over_blocks(
    function: Callable[[Buffer], R], upstream: Iterator[Buffer], size: int, memory: int = 0
) -> Generator[R | None, None, None]:
    """`function` of each block of `size` bytes, on all cores, in order; None stands for a flush mark.

    With `memory`, the bytes that it takes at work, on no more cores than there is room for; each also holds a block as
    it came, in one piece, and what it makes of it, and one waits.
    """

    def work(buffers: list[Buffer]) -> R | None:
        if not buffers:
            return None
        return function(joined(buffers))

    workers = workers_within(memory + 4 * size) if memory else None
    with closing(parallel(work, Over(upstream, cut(upstream, size, early=True)), workers)) as results:
        yield from results


def in_blocks(function: Callable[[Buffer], bytes], size: int, memory: int = 0) -> Stage:
    """A stage that puts out `function` of each block, of which a reader sees only what they hold together.

    `memory` as with `over_blocks`.

    The empty stream is one block too: nothing at all is what a failed program writes.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        empty = True
        with closing(over_blocks(function, upstream, size, memory)) as packed:
            for block in packed:
                empty = empty and block is None
                yield FLUSH if block is None else block
        if empty:
            yield function(b"")

    return stage


class PerThread(Generic[T]):
    """A native library's context is for one thread at a time: this makes one for each that asks."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._own = threading.local()

    def get(self) -> T:
        """The calling thread's own."""
        context: T | None = getattr(self._own, "context", None)
        if context is None:
            context = self._own.context = self._make()
        return context
