"""The part that all compressors share: cut the stream into blocks, and compress them on all cores, in order.

A block is a list of buffers, which the worker joins. A flush mark ends a block early, so that everything before the
mark can leave, and follows it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from statepipe.memorylimit import workers_within
from statepipe.stage import FLUSH, Buffer, Over, Stage, cut, joined
from statepipe.threads import parallel
from statepipe.typed import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def over_blocks(
    function: Callable[[Buffer], R], upstream: Iterator[Buffer], size: int, memory: int = 0, *, spare: int = 3
) -> Generator[R | None, None, None]:
    """Yield `function` of each block of `size` bytes, computed on all cores, in order; None stands for a flush mark.

    `memory`: bytes that `function` needs while it works; it limits the number of workers. Each worker also holds its
    block as buffers, the joined block and the result, and one more block waits. `spare` as in `parallel`.
    """

    def work(buffers: list[Buffer]) -> R | None:
        return function(joined(buffers)) if buffers else None

    workers = workers_within(memory + 4 * size) if memory else None
    with closing(parallel(work, Over(upstream, cut(upstream, size, early=True)), workers, spare=spare)) as results:
        yield from results


def in_blocks(function: Callable[[Buffer], bytes], size: int, memory: int = 0) -> Stage:
    """Return a stage that outputs `function` of each block; `memory` as in `over_blocks`.

    An empty stream becomes one empty block: a program that failed writes nothing at all.
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
    """Makes one context for each thread: a native library's context is for one thread at a time."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._own = threading.local()

    def get(self) -> T:
        """Return the calling thread's context."""
        context: T | None = getattr(self._own, "context", None)
        if context is None:
            context = self._own.context = self._make()
        return context
