"""Threads for requests: as many as are needed at once, up to a limit, and none is waited for without an end.

A request must not run in the main thread: a signal's exception would be caught by the client library, and taken for a
failure of the network. A thread that is stuck in a request at the end is left to itself; the process ends without it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from statepipe.threads import NoThread, join, start

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
