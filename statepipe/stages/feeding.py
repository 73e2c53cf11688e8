"""Feed another program and read its standard error, each in a separate thread, so that no two wait for each other.

A program may write before it reads, read everything before it writes, or never do one of them. So one thread pulls the
upstream and fills the program's input, another reads its messages, and the thread that pulls the stage reads its
output.

We keep the reading end of the program's input too. So its exit status is known before any broken pipe, and the bytes
that it left unread can be counted after its end. The writing end is closed only at a clean end of the upstream, so the
program never takes a failure for the end of its input.
"""

from __future__ import annotations

import codecs
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from statepipe.stage import Buffer, Cancelled, cancel, close
from statepipe.threads import join, start
from statepipe.wakeups import LINGER, PIPE_SIZE, SMALL, Bell, enlarge_pipe, polled, waiting

TAIL = 4096
"""Bytes of a program's last messages that are kept."""

LINES, WIDTH = 3, 200
"""How many lines of them an error quotes, and how many characters of each."""

HEARD_OUT = 2.0
"""Seconds that reading the rest may take after the program has ended: the reader of our own output may be stuck."""


class Feeder:
    """Pulls `upstream` and writes it to a pipe; rings `bell` at each flush mark and when it is done.

    Done means `ended` (the clean end of the upstream was passed on), `refused` (there were more bytes, which nobody
    will read), or a `failure`. `marked`: the last buffer was a flush mark.
    """

    def __init__(self, upstream: Iterator[Buffer], bell: Bell) -> None:
        self.marked = self.ended = self.refused = False
        self.failure: BaseException | None = None
        self._upstream, self._bell = upstream, bell
        self.reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        enlarge_pipe(self._writing)
        self._lock = threading.Lock()
        self._refusing = False
        self._stop = Bell()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    @property
    def done(self) -> bool:
        return self.ended or self.refused or self.failure is not None

    def start(self) -> None:
        start(self._thread)

    def _run(self) -> None:
        try:
            try:
                complete = all(self._pass_on(buffer) for buffer in self._upstream)
            finally:
                close(self._upstream)
            if complete:
                with self._lock:
                    os.close(self._writing)
                    self._writing = -1
            self.ended, self.refused = complete, not complete
        except BaseException as error:  # the thread that pulls the stage raises it
            self.failure = error
        self._bell.ring()

    def _pass_on(self, buffer: Buffer) -> bool:
        """Write all of it; return False if nobody will read it. Raises Cancelled."""
        self.marked = not len(buffer)
        if self.marked:
            self._bell.ring()
        left = memoryview(buffer)
        while left:
            before = len(left)
            with self._lock:
                if self._refusing:
                    return False
                with suppress(BlockingIOError):  # full
                    left = left[os.write(self._writing, left) :]
            if left:  # wait for room, or a moment for more of it
                poll = polled(self._stop.fd)
                linger = LINGER if 0 < before - len(left) < SMALL else None
                if linger is None:
                    poll.register(self._writing, select.POLLOUT)
                if any(fd == self._stop.fd for fd, _ in poll.poll(linger)):
                    raise Cancelled
        return True

    def refuse(self) -> int:
        """Write nothing from now on; return the number of bytes in the pipe."""
        with self._lock:
            self._refusing = True
            return waiting(self.reading)

    def stop(self) -> None:
        """End any wait of the thread. Safe from any thread."""
        self._stop.ring()
        cancel(self._upstream)

    def close(self) -> None:
        """Close everything. Only after `stop`, and after the program has ended: it would see the end of its input."""
        join(self._thread)
        self._stop.close()
        for fd in (self.reading, self._writing):
            if fd >= 0:
                os.close(fd)
        self.reading = self._writing = -1


class PipeReader:
    """Reads a pipe in a separate thread and passes the bytes to `hear`; `writing` is for the program."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear
        self._reading, self.writing = os.pipe()
        self._stop = Bell()
        self._thread = threading.Thread(target=self._read, name="pipe reader", daemon=True)

    def start(self) -> None:
        """Start, after the program has got its end of the pipe."""
        os.close(self.writing)
        self.writing = -1
        start(self._thread)

    def _read(self) -> None:
        poll = polled(self._reading, self._stop.fd)
        left = PIPE_SIZE
        while left > 0:
            ready = {fd for fd, _ in poll.poll()}
            if self._reading not in ready or not (data := os.read(self._reading, 1 << 16)):
                return
            left -= len(data) if self._stop.fd in ready else 0
            self._hear(data)

    def finish(self) -> None:
        """Read what is in the pipe, and no more: other processes may still have the other end."""
        self._stop.ring()
        join(self._thread, HEARD_OUT)

    def close(self) -> None:
        """Close everything, after `finish`; a thread that is still stuck keeps its descriptors."""
        if self._thread.is_alive():
            return
        self._stop.close()
        for fd in (self._reading, self.writing):
            if fd >= 0:
                os.close(fd)
        self._reading = self.writing = -1


class Stderr:
    """The messages of a program: passes them on at once and keeps the last lines."""

    def __init__(self, pass_on: Callable[[str], object]) -> None:
        self._pass_on = pass_on
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._tail = b""

    def hear(self, data: bytes) -> None:
        """Take more bytes."""
        self._tail = (self._tail + data)[-TAIL:]
        with suppress(OSError):  # nobody can read it; the error still quotes it
            self._pass_on(self._decoder.decode(data))

    def last(self) -> str:
        """Return the last lines, joined to one."""
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines()]
        return " / ".join(line[:WIDTH] for line in [line for line in lines if line][-LINES:])
