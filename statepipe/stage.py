"""The one idea: a stage is a function from an iterator of buffers to an iterator of buffers.

The iterator's normal end is a clean end of the stream; anything else is an exception, which simply propagates.
Back-pressure is laziness. A test of a stage is `b"".join(stage(iter([...])))`.

Threads are placed, not woven in. `ahead` pulls its upstream from a thread of its own, so that what lies above
it works while what lies below writes; `parallel` maps a function over a pool in order and within bounds. Both
stand on the same two facts: the native libraries we call release the GIL (tests/unit/test_gil.py), and a bounded
queue between two threads is back-pressure.

Closing goes from the sink to the source. A generator may be closed only by the thread that pulls it, so `ahead`
closes its upstream from inside its thread; `cancel` is what any thread may call, and it wakes a source that is
blocked in a read.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

from statepipe.errors import InterruptedBySignal, StatepipeError

Buffer = bytes | bytearray | memoryview
"""Bytes in flight. Never written again once yielded."""

Stage = Callable[[Iterator[Buffer]], Iterator[Buffer]]

FLUSH = b""
"""An empty buffer: nothing more for now, push out what you hold."""

T = TypeVar("T")
R = TypeVar("R")


class Cancelled(Exception):
    """Raised by a source whose `cancel` was called: nobody is left to want its bytes."""


def close(iterator: object) -> None:
    """Close a generator or link, if it can be closed at all (a list's iterator cannot)."""
    closer = getattr(iterator, "close", None)
    if closer is not None:
        closer()


def cancel(iterator: object) -> None:
    """Wake the source behind `iterator`, whichever thread is blocked in it. Safe from any thread."""
    canceller = getattr(iterator, "cancel", None)
    if canceller is not None:
        canceller()


class Link:
    """A stage in its place in a chain: it counts what passes, signs errors, and closes in the right order.

    `bytes` is what the stage has put out so far.
    """

    def __init__(self, name: str, stage: Stage, upstream: Iterator[Buffer]) -> None:
        self.name = name
        self.bytes = 0
        self._upstream = upstream
        self._downstream = stage(upstream)

    def __iter__(self) -> Link:
        return self

    def __next__(self) -> Buffer:
        try:
            buffer = next(self._downstream)
        except StatepipeError as error:
            self._sign(error)
            raise
        self.bytes += len(buffer)
        return buffer

    def _sign(self, error: StatepipeError) -> None:
        """The first link an error passes is the one it arose in. A signal arises in none."""
        if error.stage is None and not isinstance(error, InterruptedBySignal):
            error.stage = self.name
            if error.offset is None:
                error.offset = getattr(self._upstream, "bytes", None)

    def cancel(self) -> None:
        cancel(self._upstream)

    def close(self) -> None:
        try:
            close(self._downstream)
        finally:
            close(self._upstream)


def chain(source: Iterator[Buffer], stages: Iterable[tuple[str, Stage]]) -> Iterator[Buffer]:
    """Connect named stages behind a source; the result has `close` and `cancel` that reach every link."""
    flow = source
    for name, stage in stages:
        flow = Link(name, stage, flow)
    return flow


class Over(Generic[T]):
    """A generator that a stage has put over its upstream, made to carry `cancel` and `close` down to it."""

    def __init__(self, upstream: object, generator: Iterator[T]) -> None:
        self._upstream = upstream
        self._generator = generator

    def __iter__(self) -> Over[T]:
        return self

    def __next__(self) -> T:
        return next(self._generator)

    def cancel(self) -> None:
        cancel(self._upstream)

    def close(self) -> None:
        try:
            close(self._generator)
        finally:
            close(self._upstream)


class _Failure:
    """An exception on its way from one thread to another."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def ahead(upstream: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Pull `upstream` from a thread of its own, at most `depth` items ahead of the consumer."""
    items: queue.SimpleQueue[object] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def pull() -> None:
        outcome: object = _END
        try:
            while room.acquire() and not stopped.is_set():
                if (item := next(upstream, _END)) is _END:
                    break
                items.put(item)
                del item
        except BaseException as error:  # handed over whole: the consumer's thread raises it
            outcome = _Failure(error)
        try:
            close(upstream)
        except BaseException as error:
            outcome = outcome if isinstance(outcome, _Failure) else _Failure(error)
        items.put(outcome)

    thread = threading.Thread(target=pull, name="ahead", daemon=True)
    try:
        _start(thread)
        while (item := items.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            room.release()
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        cancel(upstream)
        room.release()
        _join(thread)


def _start(thread: threading.Thread) -> None:
    """Start a thread that gets none of the signals that end us: they are for the main thread, which can act on them.

    Nor does one come between the start and its outcome.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join(thread: threading.Thread) -> None:
    """Wait for its end, if it was started."""
    if thread.ident is not None:
        thread.join()


class _Slot(Generic[R]):
    """The place of one result, kept in order while the pool works out of order."""

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        self._value: R | _Failure

    def set(self, value: R | _Failure) -> None:
        self._value = value
        self._done.release()

    def get(self) -> R:
        with self._done:
            pass
        if isinstance(self._value, _Failure):
            raise self._value.error
        return self._value


class _Pool(Generic[T, R]):
    """Worker threads over one function. concurrent.futures would do, but costs 15 ms of every start."""

    def __init__(self, function: Callable[[T], R], workers: int) -> None:
        self._function = function
        self._tasks: queue.SimpleQueue[tuple[T, _Slot[R]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="worker", daemon=True) for _ in range(workers)]

    def start(self) -> None:
        for thread in self._threads:
            _start(thread)

    def submit(self, item: T) -> _Slot[R]:
        slot: _Slot[R] = _Slot()
        self._tasks.put((item, slot))
        return slot

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            item, slot = task
            try:
                slot.set(self._function(item))
            except BaseException as error:  # raised again by get(), in the consumer's thread
                slot.set(_Failure(error))
            del item, slot, task

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            _join(thread)


def parallel(function: Callable[[T], R], upstream: Iterator[T], workers: int | None = None) -> Generator[R, None, None]:
    """Yield `function(item)` for each item of `upstream`, in order, worked out on `workers` threads.

    At most `workers` + 4 items are in flight, so memory is bounded by the items' size. The upstream is pulled
    from a thread of its own: a result is handed on as soon as it and all before it are ready, even while the
    upstream is silent.
    """
    workers = workers or cores()
    pool = _Pool(function, workers)

    def submitted() -> Iterator[_Slot[R]]:
        for item in upstream:
            yield pool.submit(item)

    pending = ahead(Over(upstream, submitted()), workers + 3)
    try:
        pool.start()
        for slot in pending:
            yield slot.get()
    finally:
        close(pending)
        pool.close()


def cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0))
