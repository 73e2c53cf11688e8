"""The primitives for threads: which work runs in parallel is decided with these, around the stages.

`ahead` pulls its upstream in a separate thread, so that upstream stages work while downstream stages write;
`parallel` maps a function over a pool, in order and with a limit. Both rely on two facts: the native libraries that we
call release the GIL (tests/unit/test_gil.py), and a bounded queue between two threads provides back-pressure.

Only the thread that pulls a generator may close it, so `ahead` closes its upstream inside its own thread.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile

from statepipe.errors import StatepipeError
from statepipe.stage import Over, cancel, close
from statepipe.typed import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Failure:
    """An exception passed from one thread to another."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def _as_one(item: object) -> int:
    return 1


def ahead(upstream: Iterator[T], depth: int, weight: Callable[[T], int] = _as_one) -> Generator[T, None, None]:
    """Pull `upstream` in a separate thread, at most `depth` items ahead of the consumer.

    An item of more `weight` counts as so many, but never as more than `depth`.
    """
    items: queue.SimpleQueue[object] = queue.SimpleQueue()
    # Not a Semaphore: a signal's exception during its release could leave its lock taken, and every thread would hang.
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    stopped = False

    def pull() -> None:
        outcome: object = _END
        try:
            while True:
                room.get()
                if stopped or (item := next(upstream, _END)) is _END:
                    break
                for _ in range(1, min(weight(item), depth)):  # type: ignore[arg-type]
                    room.get()
                items.put(item)
                del item
        except BaseException as error:  # passed on: the consumer's thread raises it
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
            for _ in range(min(weight(item), depth)):  # type: ignore[arg-type]
                room.put(None)
            yield item  # type: ignore[misc]
    finally:
        stopped = True
        cancel(upstream)
        for _ in range(depth):
            room.put(None)
        join(thread)
        if thread.ident is None:  # the thread could not be started
            close(upstream)


class NoThread(StatepipeError):
    """No further thread can be started at present (pthread_create(3), EAGAIN)."""


def start(thread: threading.Thread) -> None:
    """Start a thread that receives none of the ending signals: only the main thread can act on them.

    No such signal arrives between the start and its result. SIGTTOU is blocked too, because a write to a terminal from
    the background (stty tostop) would stop the whole process. Raises NoThread if no thread can be started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, signal.SIGTTOU))
    try:
        begin(thread)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(thread: threading.Thread) -> None:
    """Start a thread with the current signal mask. Raises NoThread if no thread can be started."""
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
    """Run `work` in a thread of that name during the context. At the exit, `end` makes it return, and we wait for it.

    Raises NoThread. Exceptions of `work` are not passed on: it must report them itself.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        start(thread)  # inside `try`: a signal that arrives now must still end the thread
        yield
    finally:
        end()
        join(thread)


@contextmanager
def beside_if_possible(name: str, work: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Do as `beside`; if no thread can be started, the context runs without it."""
    with ExitStack() as running:
        with suppress(NoThread):
            running.enter_context(beside(name, work, end))
        yield


LIMITS = "check 'ulimit -u' and 'ulimit -v', and pids.max and memory.max of the cgroup"
"""The hint if threads or memory run out."""


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end us."""


@contextmanager
def held() -> Iterator[None]:
    """Block ending signals during the context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


RAISED: list[int] = []
"""The ending signal whose exception the main thread has raised (pipeline/signals.py), if any."""


def pending() -> int | None:
    """Return the signal that ends a long wait although no exception does; None if there is none.

    In the main thread, one that waits for the end of `held`; in others, one that the main thread has raised: it waits
    for them then.
    """
    if threading.current_thread() is not threading.main_thread():
        return RAISED[0] if RAISED else None
    waiting = signal.sigpending()
    return next((each for each in ENDING if each in waiting and signal.getsignal(each) is not signal.SIG_IGN), None)


def join(thread: threading.Thread, within: float | None = None) -> bool:
    """Wait at most `within` seconds for the end of a thread, if it was started; return whether it has ended.

    Ending signals are blocked meanwhile: in CPython 3.9 to 3.12 an exception during `Thread.join` marks a running
    thread as ended, and then `join` and `is_alive` return wrong results. To let a signal end the wait, use an `End`.
    """
    if thread.ident is not None:
        with held():
            thread.join(within)
    return not thread.is_alive()


class End:
    """The end of some work: one thread reports it as its last action, and another thread can wait for it.

    A signal's exception can interrupt a wait, and the next wait still returns the right result. This is not an Event,
    because such an exception could leave an Event's lock taken, and the reporting thread would hang.
    """

    def __init__(self) -> None:
        self.come = False
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()

    def tell(self) -> None:
        """Report the end."""
        self.come = True
        self._told.put(None)

    def wait(self, within: float | None = None) -> bool:
        """Wait for the end, at most `within` seconds; return whether it was reported. Raises a signal's exception."""
        if not self.come:
            with suppress(queue.Empty):
                self._told.get(timeout=within)
        return self.come


class _Slot(Generic[R]):
    """Holds one result, so that results stay in order while the pool works out of order."""

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self._done = threading.Lock()
        self._done.acquire()
        self._value: R | _Failure

    def set(self, value: R | _Failure) -> None:
        self._value = value
        self._done.release()

    def take(self) -> R:
        """Return the result, once, and let go of it."""
        with self._done:
            value = self._value
            del self._value
        if isinstance(value, _Failure):
            raise value.error
        return value


class _Pool(Generic[T, R]):
    """Worker threads for one function. concurrent.futures would work too, but adds 15 ms to every start."""

    def __init__(self, function: Callable[[T], R], workers: int) -> None:
        self._function = function
        self._tasks: queue.SimpleQueue[tuple[T, _Slot[R]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name="worker", daemon=True) for _ in range(workers)]

    def start(self) -> None:
        """Start the workers, or as many as possible. Raises NoThread if not even one can be started."""
        start(self._threads[0])
        with held():
            self._threads[1:] = takewhile(_starts, self._threads[1:])

    def submit(self, item: T, weight: int) -> _Slot[R]:
        slot: _Slot[R] = _Slot(weight)
        self._tasks.put((item, slot))
        return slot

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            item, slot = task
            try:
                slot.set(self._function(item))
            except BaseException as error:  # raised again by take(), in the consumer's thread
                slot.set(_Failure(error))
            del item, slot, task

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            join(thread)


SPARE = 14
"""Pieces of a megabyte that may wait before and behind the workers. Where other programs want the cores, each wait for
another thread takes a turn of theirs. With 20 programs at 2 cores, 3 pieces: 950 MB decoded in 18 s; 22 pieces: in 9 s,
with the same processor time. 14 was not measured; 22 was, for `decompress`."""


def parallel(
    function: Callable[[T], R],
    upstream: Iterator[T],
    workers: int | None = None,
    *,
    spare: int = 3,
    weight: Callable[[T], int] = _as_one,
) -> Generator[R, None, None]:
    """Yield `function(item)` for each item of `upstream`, in order, computed on `workers` threads.

    At most `workers` + `spare` + 1 items are in flight, which limits memory. One of more `weight` counts as so many,
    but `workers` + 4 always fit. A separate thread pulls the upstream, so a result is yielded as soon as it and all
    before it are ready, even while the upstream waits.
    """
    workers = workers or cores()
    pool = _Pool(function, workers)
    most = (workers + spare) // (workers + 3)

    def submitted() -> Iterator[_Slot[R]]:
        for item in upstream:
            yield pool.submit(item, min(weight(item), most))

    pending = ahead(Over(upstream, submitted()), workers + spare, lambda slot: slot.weight)
    try:
        pool.start()
        for slot in pending:
            yield slot.take()
    finally:
        close(pending)
        pool.close()


def cores() -> int:
    """Return the number of cores that this process may use; all cores if a sandbox does not allow the query."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1
