"""A connection made of two descriptors, as a program has its standard input and output: a session's link over pipes.

What is at the other end, who made the two knows: ssh, of which this is one side. Both calls wait in poll beside a bell,
so that `cut` brings back who is blocked in them; a pipe has no shutdown().
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from contextlib import suppress

from statepipe.stage import Buffer
from statepipe.wakeups import Bell, enlarge_pipe, polled

_IOV_MAX = 1024
"""writev takes no more (limits.h)."""


class PipeTransport:
    """Owns both descriptors. `release` is called once after they are closed, with whatever else belongs to them.

    `name` is for messages, `identity` who is there, by the caller's word.
    """

    def __init__(
        self, reading: int, writing: int, name: str, identity: str, release: Callable[[], object] = lambda: None
    ) -> None:
        self.name, self.identity = name, identity
        self.delay, self.is_stuck = None, False  # ssh alone knows
        self._reading, self._writing, self._release = reading, writing, release
        self._bell = Bell()
        self._cut = False
        enlarge_pipe(reading)
        enlarge_pipe(writing)
        os.set_blocking(writing, False)
        self._may_read = polled(reading, self._bell.fd)
        self._may_write = polled(self._bell.fd)
        self._may_write.register(writing, select.POLLOUT)

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send all of them. Raises OSError."""
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            self._may_write.poll()
            if self._cut:
                raise BrokenPipeError(f"{self.name} was cut")
            with suppress(BlockingIOError):  # less room than there seemed
                _drop(left, os.writev(self._writing, left[:_IOV_MAX]))

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; their number, 0 at the end. Raises OSError."""
        while not self._cut:
            self._may_read.poll()
            with suppress(BlockingIOError):  # both ways may be one socket, which does not wait
                return 0 if self._cut else os.readv(self._reading, [buffer])
        return 0

    def cut(self) -> None:
        """End it now."""
        self._cut = True
        self._bell.ring()

    def close(self) -> None:
        """Let go of everything."""
        for fd in {self._reading, self._writing}:
            os.close(fd)
        self._bell.close()
        self._release()


def _drop(left: list[memoryview], count: int) -> None:
    """What was sent goes from the front."""
    while left and count >= len(left[0]):
        count -= len(left.pop(0))
    if left:
        left[0] = left[0][count:]
