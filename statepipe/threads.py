"""Threads are placed, not woven in: what runs beside what is decided here, and nowhere else.

`ahead` pulls its upstream from a thread of its own, so that what lies above it works while what lies below writes;
`parallel` maps a function over a pool in order and within bounds. Both stand on the same two facts: the native
libraries we call release the GIL (tests/unit/test_gil.py), and a bounded queue between two threads is back-pressure.

A generator may be closed only by the thread that pulls it, so `ahead` closes its upstream from inside its thread.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Generic, TypeVar

from statepipe.errors import StatepipeError
from statepipe.stage import Over, cancel, close

T = TypeVar("T")
R = TypeVar("R")


class _Failure:
    """An exception on its way from one thread to another."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def ahead(upstream: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Pull `upstream` from a thread of its own, at most `depth` items ahead of the consumer."""
    items: queue.SimpleQueue[object] = queue.SimpleQueue()
    # No Semaphore: a signal's exception in the midst of its release could leave its lock taken, and all wait for ever.
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    stopped = False

    def pull() -> None:
        outcome: object = _END
        try:
            while True:
                room.get()
                if stopped or (item := next(upstream, _END)) is _END:
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
        for _ in range(depth):
            room.put(None)
        start(thread)
        while (item := items.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            room.put(None)
            yield item  # type: ignore[misc]
    finally:
        stopped = True
        cancel(upstream)
        room.put(None)
        join(thread)
        if thread.ident is None:  # there could be none
            close(upstream)


class NoThread(StatepipeError):
    """There can be no further thread now (pthread_create(3), EAGAIN): later, perhaps."""


def start(thread: threading.Thread) -> None:
    """Start a thread that gets none of the signals that end us: they are for the main thread, which can act on them.

    Nor does one come between the start and its outcome. Nor is it stopped, and all of us with it, for writing to a
    terminal from the background (SIGTTOU, stty tostop). Raises NoThread where there can be no further thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, signal.SIGTTOU))
    try:
        begin(thread)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(thread: threading.Thread) -> None:
    """Start a thread as it is. Raises NoThread where there can be no further one."""
    if not _starts(thread):
        raise NoThread("no further thread can be started", hint=LIMITS)


def _starts(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:
        if thread.ident is not None:
            raise
        return False
    return True


@contextmanager
def beside(name: str, work: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Within it, `work` goes on in a thread of that name. On leaving, `end` has it return, and that is waited for.

    Raises NoThread. What `work` raises is nobody's: it has to tell by itself.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        start(thread)  # a signal that comes with it finds the thread there
        yield
    finally:
        end()
        join(thread)


LIMITS = "look at 'ulimit -u' and 'ulimit -v', and at pids.max and memory.max of the cgroup"
"""What to try where there are no threads, or there is no memory."""


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end us."""


@contextmanager
def held() -> Iterator[None]:
    """Within it, ending signals wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forget_late() -> None:
    """Within `held`, once what was to be done is done: signals that came meanwhile came too late to deny it."""
    while signal.sigtimedwait(ENDING, 0) is not None:
        continue


def join(thread: threading.Thread, within: float | None = None) -> bool:
    """Wait for its end, if it was started, at most so many seconds; whether it has ended.

    Ending signals wait meanwhile: in CPython 3.9 to 3.12 an exception in the midst of `Thread.join` marks a thread that
    runs as ended, and then neither `join` nor `is_alive` tells the truth. So whoever wants a signal to end the wait, or
    to come in meanwhile, waits for an `End` instead.
    """
    if thread.ident is not None:
        with held():
            thread.join(within)
    return not thread.is_alive()


class End:
    """Something that comes to its end once: one thread tells it, as its very last act, and another may wait for it.

    A signal's exception may come into the midst of a wait, and the next wait still tells the truth. No Event: such an
    exception could leave its lock taken, and whoever tells it would wait for ever.
    """

    def __init__(self) -> None:
        self.come = False
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()

    def tell(self) -> None:
        """It has come."""
        self.come = True
        self._told.put(None)

    def wait(self, within: float | None = None) -> bool:
        """Until it has come, or so many seconds have passed; whether it has. Raises what a signal raises."""
        if not self.come:
            with suppress(queue.Empty):
                self._told.get(timeout=within)
        return self.come


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
        """Fewer will do where there cannot be more. Raises NoThread where there is not one."""
        start(self._threads[0])
        with held():
            self._threads[1:] = takewhile(_starts, self._threads[1:])

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
            join(thread)


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
    """The number of cores this process may run on; all that there are, where a sandbox does not let us ask."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1
