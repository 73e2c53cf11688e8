"""What goes into another program and what it says, each by a thread of its own, so that nobody waits in a circle.

A program may write before it reads, read everything before it writes, or never do one of them. So one thread pulls
the upstream and fills the program's input, another hears what it says, and whoever pulls the stage takes its output.

We hold the reading end of its input, too: no broken pipe speaks before the program's own status does, and what it has
left unread can be counted once it is gone. The writing end is closed at a clean end of the upstream alone: a program
never takes for an end what was none.
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
"""Bytes of a program's last words that are kept."""

LINES, WIDTH = 3, 200
"""How many lines of them an error tells, and how many characters of each."""

HEARD_OUT = 2.0
"""Seconds that hearing a program out may take once it has ended: who hears us may not go on reading."""


class Feeder:
    """Pulls `upstream` and fills a pipe with it; rings `bell` at each flush mark, and when it is done.

    Done is `ended` (the upstream's clean end was passed on), `refused` (bytes came that nobody will read) or a
    `failure`. `marked`: the last thing to come was a flush mark.
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
                self._end()
            self.ended, self.refused = complete, not complete
        except BaseException as error:  # handed over whole: the thread that pulls the stage raises it
            self.failure = error
        self._bell.ring()

    def _pass_on(self, buffer: Buffer) -> bool:
        """Write it all. False if nobody will read it."""
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
            if left:
                self._wait(LINGER if 0 < before - len(left) < SMALL else None)
        return True

    def _wait(self, linger: int | None) -> None:
        """Until there is room in the pipe, or for `linger` milliseconds, so that there is more. Raises Cancelled."""
        poll = polled(self._stop.fd)
        if linger is None:
            poll.register(self._writing, select.POLLOUT)
        if any(fd == self._stop.fd for fd, _ in poll.poll(linger)):
            raise Cancelled

    def _end(self) -> None:
        with self._lock:
            os.close(self._writing)
            self._writing = -1

    def refuse(self) -> int:
        """From now on nothing is written. How many bytes are in the pipe."""
        with self._lock:
            self._refusing = True
            return waiting(self.reading)

    def stop(self) -> None:
        """Wake it, whatever it waits for. From any thread."""
        self._stop.ring()
        cancel(self._upstream)

    def close(self) -> None:
        """After `stop`, and once no program is left to see its input end."""
        if self._thread.ident is not None:
            join(self._thread)
        self._stop.close()
        for fd in (self.reading, self._writing):
            if fd >= 0:
                os.close(fd)
        self.reading = self._writing = -1


class Listener:
    """Hears a pipe by a thread of its own, and hands `hear` what comes; `writing` is for the program."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear
        self._reading, self.writing = os.pipe()
        self._stop = Bell()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)

    def start(self) -> None:
        """Once the program has its end."""
        os.close(self.writing)
        self.writing = -1
        start(self._thread)

    def _listen(self) -> None:
        poll = polled(self._reading, self._stop.fd)
        left = PIPE_SIZE
        while left > 0:
            ready = {fd for fd, _ in poll.poll()}
            if self._reading not in ready or not (data := os.read(self._reading, 1 << 16)):
                return
            left -= len(data) if self._stop.fd in ready else 0
            self._hear(data)

    def finish(self) -> None:
        """Hear what has been said already, and no more: who holds the pipe now is none of the program."""
        self._stop.ring()
        if self._thread.ident is not None:
            join(self._thread, HEARD_OUT)

    def close(self) -> None:
        """After `finish`. A thread that is still held up keeps its descriptors."""
        if self._thread.is_alive():
            return
        self._stop.close()
        for fd in (self._reading, self.writing):
            if fd >= 0:
                os.close(fd)
        self._reading = self.writing = -1


class Words:
    """What a program says: passed on as it comes, its last lines kept."""

    def __init__(self, pass_on: Callable[[str], object]) -> None:
        self._pass_on = pass_on
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._tail = b""

    def hear(self, data: bytes) -> None:
        """Some more of it."""
        self._tail = (self._tail + data)[-TAIL:]
        with suppress(OSError):  # where nobody can hear it, the verdict still speaks
            self._pass_on(self._decoder.decode(data))

    def last(self) -> str:
        """Its last lines, as one."""
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines()]
        return " / ".join(line[:WIDTH] for line in [line for line in lines if line][-LINES:])
