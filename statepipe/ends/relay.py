"""Move bytes that no stage changes inside the kernel, and carry what flows the other way meanwhile.

If one side is a pipe, splice passes its pages on without a copy; from a file to a socket, sendfile does. Between two
others, they go through a pipe of ours. The caller sees no difference except in CPU time.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from statepipe.ends.fd import FdSource, wait_until_writable
from statepipe.stage import Buffer, Cancelled
from statepipe.threads import End, join, start
from statepipe.wakeups import PIPE_SIZE, READ_SIZE, enlarge_pipe, polled

PIECE = PIPE_SIZE
"""Bytes requested in one call: what an enlarged pipe holds."""

Moved = Callable[[int], object]
"""Receives the number of bytes that each step moved."""

Room = Callable[[int], int]
"""Waits until bytes may move; returns how many of the requested ones."""


def can_relay(*fds: int) -> bool:
    """Return whether the descriptors block. A non-blocking one is shared with a program that needs it so."""
    return all(map(os.get_blocking, fds))


class Mover:
    """Moves bytes inside the kernel from one descriptor to another. `held` is 0: none is ever on its way.

    `silence` limits a wait for the sink (patiently).
    """

    held = 0

    def __init__(
        self, source: int, sink: int, call: Callable[[int, int, int], int], silence: float | None = None
    ) -> None:
        self._source, self._sink, self._call, self._silence = source, sink, call, silence

    def __call__(self, count: int) -> int:
        """Move up to so many bytes; return their number, 0 at the end. A call that raises OSError has moved nothing."""
        call = self._call
        return patiently(lambda: call(self._source, self._sink, count), self._source, self._sink, self._silence)

    def rest(self) -> Iterator[Buffer]:
        """Take back the bytes that are on their way."""
        return iter(())

    def close(self) -> None:
        """Does nothing: the descriptors are the caller's."""


class LongMover(Mover):
    """The same in two hops, through a pipe of ours. `held` is the number of bytes in it: read, and not yet written.

    An OSError while it holds bytes is the sink's, else the source's.
    """

    def __init__(self, source: int, sink: int) -> None:
        super().__init__(source, sink, os.splice)
        self.held = 0
        self._out, self._in = os.pipe()
        enlarge_pipe(self._in)

    def __call__(self, count: int) -> int:
        if not self.held:
            self.held = patiently(lambda: os.splice(self._source, self._in, count), self._source, self._in)
        if not self.held:
            return 0
        moved = patiently(lambda: os.splice(self._out, self._sink, min(self.held, count)), self._out, self._sink)
        self.held -= moved
        return moved

    def rest(self) -> Iterator[Buffer]:
        while self.held:
            piece = os.read(self._out, min(self.held, READ_SIZE))
            self.held -= len(piece)
            yield piece

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)


def move(source: FdSource, step: Mover, moved: Moved, room: Room) -> None:
    """Repeat the step until it finds the end. Raises what a step and the source's wait raise."""
    source.wait()
    while count := step(room(PIECE)):
        moved(count)
        if not step.held:
            source.wait()


def mover(source: int, sink: int, silence: float | None = None) -> Mover:
    """Return the way inside the kernel from one descriptor to another; `silence` as in `patiently`.

    Raises OSError if no pipe can be made.
    """
    modes = [os.fstat(fd).st_mode for fd in (source, sink)]
    if any(map(stat.S_ISFIFO, modes)):
        enlarge_pipe(source)
        enlarge_pipe(sink)
        return Mover(source, sink, os.splice, silence)
    if stat.S_ISREG(modes[0]) and stat.S_ISSOCK(modes[1]):
        return Mover(source, sink, lambda source, sink, count: os.sendfile(sink, source, None, count), silence)
    return LongMover(source, sink)


def patiently(call: Callable[[], int], source: int, sink: int, silence: float | None = None) -> int:
    """Make the call, and wait too if a program that shares a descriptor makes it non-blocking, as node and QEMU do.

    This can happen at any time. A blocking socket of ours reports the same when its patience ends: that is an error.
    So is a wait of `silence` seconds for such a socket, if it is the source that does not block.
    """
    while True:
        try:
            return call()
        except BlockingIOError:
            if not os.get_blocking(sink):
                wait_until_writable(sink)
            elif not os.get_blocking(source):
                polled(source).poll()
                if not wait_until_writable(sink, silence):  # a pipe that does not block waits for no other one either
                    raise
            else:
                raise


class Returning(Protocol):
    """The bytes that come back, from a plain socket or a TLS connection."""

    bytes: int

    def __iter__(self) -> Iterator[Buffer]: ...

    def cancel(self) -> None: ...


class Backflow:
    """A thread that carries the bytes that come back on a connection while the stream goes the other way.

    `write` takes each buffer. After it fails, the rest is read and dropped, so that the stream itself does not stall.
    When the connection breaks, `broken` is called, because the stream's source may stay silent for a long time.
    """

    def __init__(
        self, source: Returning, write: Callable[[Buffer], object], broken: Callable[[], object] = lambda: None
    ) -> None:
        self._source, self._broken = source, broken
        self._write: Callable[[Buffer], object] | None = write
        self._error: BaseException | None = None
        self._end = End()
        self._thread = threading.Thread(target=self._carry, name="backflow", daemon=True)

    def start(self) -> None:
        """Start the thread; call it once."""
        start(self._thread)

    def _carry(self) -> None:
        try:
            for buffer in self._source:
                try:
                    if self._write is not None:
                        self._write(buffer)
                except OSError:
                    self._write = None
        except Cancelled:
            return
        except BaseException as error:  # raised again by wait(), in the consumer's thread
            self._error = error
            self._broken()
        finally:
            self._end.tell()

    def wait(self, silence: float | None) -> None:
        """Wait until the other side ends. Raises the error of reading it, and TimeoutError after `silence` seconds."""
        before = -1
        while not self._end.come:
            if self._source.bytes == before:
                raise TimeoutError
            before = self._source.bytes
            self._end.wait(silence)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the thread."""
        if self._thread.ident is not None:
            self._source.cancel()
            join(self._thread)
