"""The threads that send the parts of an object, several at once, and the memory of these parts, which is limited.

Who writes takes memory for a part, fills it and submits it. While all memory is on its way, taking some waits: so a
slow store slows down the stream.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from statepipe.errors import StatepipeError
from statepipe.objectstore.pace import Pace
from statepipe.objectstore.parts import MOST_PARTS
from statepipe.objectstore.store import Part
from statepipe.threads import NoThread, cores, join, start
from statepipe.units import format_size

BUDGET = 212 << 20
"""Bytes of parts in memory at most, with the one that is being filled: two of 105 MiB. With the interpreter and
botocore (75 MB), the process stays below 300 MB."""

CONNECTIONS = 4
"""Parts in flight at most for each core: sending waits for the network, and hashing (1 GB/s) for a core."""


class Sending:
    """Sends parts by `send`, which is given the number of a part, from 1, and its bytes; at most `in_flight` at once,
    and if that is one, in their order. `parts` has those that were sent. What `send` raises is raised by the next call
    of who writes."""

    def __init__(self, send: Callable[[int, memoryview], Part], in_flight: int) -> None:
        self.parts: dict[int, Part] = {}
        self.submitted = 0
        self._send, self._in_flight = send, min(CONNECTIONS * cores(), in_flight)
        self._error: BaseException | None = None
        self._buffers = 0
        self._tasks: queue.SimpleQueue[tuple[int, bytearray, int] | None] = queue.SimpleQueue()
        self._free = Pace()
        self._threads: list[threading.Thread] = []

    def buffer(self, size: int) -> bytearray:
        """Return memory for a part of that many bytes: new, or that of a part that was sent. Raises StatepipeError."""
        if self._buffers < max(1, min(self._in_flight + 1, BUDGET // size)):
            self._buffers += 1
            buffer = bytearray(size)
        else:
            buffer = self._free.take()
        self._refuse_failed()
        return buffer

    def keep_pace(self, share: float) -> None:
        """Wait until the memory that was taken last may be filled to this share."""
        self._free.keep(share)

    def submit(self, buffer: bytearray, size: int) -> None:
        """Have the first bytes of memory sent as the next part. Raises StatepipeError if there are too many parts."""
        if self.submitted == MOST_PARTS:
            what = f"an object has {MOST_PARTS} parts at most, and those of {format_size(len(buffer))} do not suffice"
            raise StatepipeError(what, hint="tell with --size how much will come")
        self.submitted += 1
        if len(self._threads) < min(self._buffers, self._in_flight):
            self._start_thread()
        self._tasks.put((self.submitted, buffer, size))

    def submit_foreign(self, buffer: bytearray) -> None:
        """Have all of memory sent that `buffer` did not give. Raises StatepipeError."""
        self._buffers += 1
        self.submit(buffer, len(buffer))

    def give_back(self, buffer: bytearray) -> None:
        """Take back memory that is not needed."""
        self._free.put(buffer)

    def wait(self) -> None:
        """Wait until all parts were sent. Raises StatepipeError, a signal's exception."""
        for _ in range(self._buffers):
            self._free.take()
            self._refuse_failed()
        self._buffers = 0
        self._refuse_failed()

    def end(self, within: float) -> None:
        """End the threads, and wait for that, at most that many seconds: one may be stuck in a request."""
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + within
        for thread in self._threads:
            join(thread, max(until - time.monotonic(), 0))

    def _refuse_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _start_thread(self) -> None:
        """Start one more thread that sends; without one more, those that run suffice. Raises NoThread for the first."""
        thread = threading.Thread(target=self._work, name="upload", daemon=True)
        try:
            start(thread)
        except NoThread:
            if not self._threads:
                raise
            return
        self._threads.append(thread)

    def _work(self) -> None:
        """Send parts, until there is no more. After a failure, which who writes raises, the others are dropped."""
        while (task := self._tasks.get()) is not None:
            number, buffer, size = task
            try:
                if self._error is None:
                    self.parts[number] = self._send(number, memoryview(buffer)[:size])
            except BaseException as error:
                self._error = self._error or error
            self._free.put(buffer)
            del task, buffer
