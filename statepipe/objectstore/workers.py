"""Threads for requests: as many as are needed at once, up to a limit, and none is waited for without an end.

A request must not run in the main thread: a signal's exception would be caught by the client library, and taken for a
failure of the network. A thread that is stuck in a request at the end is left to itself; the process ends without it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from statepipe.errors import InterruptedBySignal
from statepipe.threads import NoThread, join, pending, start
from statepipe.typed import Generic, TypeVar

T = TypeVar("T")

LEAVING = 0.5
"""Seconds for threads to end; one that reads a piece of an object takes some milliseconds."""


class Workers:
    """Runs work in `most` threads at most. Work must not raise."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def run(self, work: Callable[[], object]) -> None:
        """Have a thread do it, as soon as one is free. Raises NoThread if there is none."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._most:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                try:
                    start(thread)
                    self._threads.append(thread)
                except NoThread:
                    if not self._threads:
                        raise
            self._tasks.put(work)

    def _work(self) -> None:
        while (work := self._tasks.get()) is not None:
            work()
            del work
            with self._lock:
                self._idle += 1

    def close(self) -> None:
        """End the threads that can end soon."""
        until = time.monotonic() + LEAVING
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            join(thread, max(until - time.monotonic(), 0))


HEED = 0.1
"""Seconds between two looks for a signal that is held."""


class Aside(Generic[T]):
    """Work that a thread of its own does, while the one that wants its result hears signals.

    A signal ends the wait and not the work: `wait` then tells whether there is a result after all. Raises NoThread.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._result: T | None = None
        self._is_done = False
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self._result = work()
            except BaseException as error:  # `take` raises it
                self.error = error
            self._is_done = True
            self._bell.put(None)

        self._thread = threading.Thread(target=run, name="request", daemon=True)
        start(self._thread)

    def wait(self, within: float | None = None) -> bool:
        """Wait for the end of the work, at most `within` seconds; return whether it has ended."""
        if not self._is_done:
            with suppress(queue.Empty):
                self._bell.get(timeout=within)
        return self._is_done

    def take(self) -> T:
        """Wait, and return the result or raise the error of the work.

        Raises InterruptedBySignal also for a signal that is held (threads.held), or that ends the main thread.
        """
        while not self.wait(HEED):
            heed()
        return self.result()

    def result(self) -> T:
        """Return the result of work that has ended, or raise its error."""
        join(self._thread)
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]


def heed() -> None:
    """Raise InterruptedBySignal for a signal that ends a long wait although no exception does."""
    if (number := pending()) is not None:
        raise InterruptedBySignal(number)


def aside(work: Callable[[], T]) -> T:
    """Do it in a thread, and return what it returns or raise what it raises, or a signal's exception."""
    return Aside(work).take()
