"""A connection over two descriptors, such as a program's standard input and output: a session's link through ssh.

Whoever made the two descriptors knows what is at the other end. Both calls wait in poll beside a bell, with which `cut`
wakes them, because a pipe has no shutdown().
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from contextlib import suppress

from statepipe.session.transport import IOV_MAX, Unframed, after, send_all
from statepipe.stage import Buffer
from statepipe.wakeups import Bell, enlarge_pipe, polled


class PipeTransport(Unframed):
    """Owns both descriptors. `release` is called once after they are closed, to free what else belongs to them.

    `name` is for messages, `identity` is what the caller knows about the peer.
    """

    def __init__(
        self, reading: int, writing: int, name: str, identity: str, release: Callable[[], object] = lambda: None
    ) -> None:
        self.name, self.identity = name, identity
        self.delay, self.is_stuck = None, False  # only ssh knows
        self._reading, self._writing, self._release = reading, writing, release
        self._bell = Bell()
        self._cut = False
        self._left: list[memoryview] = []
        enlarge_pipe(reading)
        enlarge_pipe(writing)
        os.set_blocking(writing, False)
        self._may_read = polled(reading, self._bell.fd)
        self._may_write = polled(self._bell.fd)
        self._may_write.register(writing, select.POLLOUT)

    @property
    def is_behind(self) -> bool:
        """Whether `send_now` has left something."""
        return bool(self._left)

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send what is left, and all buffers. Raises OSError."""

        def send(left: list[memoryview]) -> int:
            self._may_write.poll()
            return self._write(left)

        left, self._left = self._left, []
        send_all(send, [*left, *buffers])

    def send_now(self, buffers: Iterable[Buffer]) -> None:
        """Send what the pipe takes of the buffers without waiting. Raises OSError."""
        left = [*self._left, *(memoryview(buffer) for buffer in buffers)]
        while left and (count := self._write(left[:IOV_MAX])):
            left = after(left, count)
        self._left = left

    def _write(self, left: list[memoryview]) -> int:
        """Write what the pipe takes, and return the number of bytes. Raises OSError."""
        if self._cut:
            raise BrokenPipeError(f"{self.name} was cut")
        try:
            return os.writev(self._writing, left)
        except BlockingIOError:  # less room than poll reported, or none
            return 0

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; return their number, 0 at the end. Raises OSError."""
        while not self._cut:
            self._may_read.poll()
            with suppress(BlockingIOError):  # both descriptors may be one socket, which does not block
                return 0 if self._cut else os.readv(self._reading, [buffer])
        return 0

    def cut(self) -> None:
        """End the connection."""
        self._cut = True
        self._bell.ring()

    def close(self) -> None:
        """Close both descriptors, and release the rest."""
        for fd in {self._reading, self._writing}:
            os.close(fd)
        self._bell.close()
        self._release()
