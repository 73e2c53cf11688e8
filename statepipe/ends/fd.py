"""The plain ends: a descriptor that bytes come from, and one that they go to.

A read waits in poll() beside a wake-up descriptor, so that `cancel` ends a wait that would last for ever.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
from typing import Self

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.stage import FLUSH, Buffer, Cancelled
from statepipe.wakeups import READ_SIZE, Bell, enlarge_pipe


def failure(action: str, error: OSError) -> StatepipeError:
    """An OSError in our words; `action` says what was tried, on what."""
    hint = _HINTS.get(error.errno or 0)
    return StatepipeError(f"cannot {action}: {os.strerror(error.errno or 0)}", hint=hint)


_HINTS = {
    errno.ENOSPC: "make room on that file system, or save to another one",
    errno.EDQUOT: "your disk quota is used up: make room, or save elsewhere",
    errno.EFBIG: "the file may not grow so large there: look at 'ulimit -f' and the file system's limit",
    errno.EIO: "the device reports an error: look at the kernel's log",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "look at the permissions of the file and its folder",
    errno.ENOENT: "look at the path",
    errno.ENAMETOOLONG: "give it a shorter name: most file systems take 255 bytes",
}


class FdSource:
    """Buffers from a descriptor until its end of file. `bytes` counts what came.

    With `idle` (milliseconds), a flush mark whenever nothing has come for so long. Raises StatepipeError naming
    `name` when a read fails, Cancelled after `cancel`.
    """

    def __init__(self, fd: int, name: str, idle: int | None = None) -> None:
        self.fd = fd
        self.name = name
        self.bytes = 0
        self._idle = idle
        self._wake = Bell()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._wake.fd, select.POLLIN)
        enlarge_pipe(fd)

    def __iter__(self) -> FdSource:
        return self

    def __next__(self) -> Buffer:
        try:
            buffer = self._read()
        except OSError as error:
            raise failure(f"read {self.name}", error) from error
        if buffer is None:
            return FLUSH
        if not buffer:
            raise StopIteration
        self.bytes += len(buffer)
        return buffer

    def _read(self) -> bytes | None:
        """The next bytes, b"" at the end of the file, None when idle."""
        while True:
            ready = self._poll.poll(self._idle)
            if not ready:
                return None
            if any(fd == self._wake.fd for fd, _ in ready):
                raise Cancelled
            try:
                return self._take()
            except BlockingIOError:  # another reader of a non-blocking descriptor was quicker
                continue

    def _take(self) -> bytes:
        return os.read(self.fd, READ_SIZE)

    def wait(self) -> None:
        """Until there is something to read, or the end, for a caller who moves it by other means. Raises Cancelled."""
        if any(fd == self._wake.fd for fd, _ in self._poll.poll()):
            raise Cancelled

    @property
    def expected(self) -> int | None:
        """Bytes from here to the end, where it is a file, which has one."""
        status = os.fstat(self.fd)
        return status.st_size - os.lseek(self.fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None

    @property
    def marks_idle(self) -> bool:
        """Whether it puts out flush marks when nothing comes."""
        return self._idle is not None

    def is_quiet(self) -> bool:
        """Nothing to read at this moment, and not the end either."""
        return not any(fd == self.fd for fd, _ in self._poll.poll(0))

    def cancel(self) -> None:
        self._wake.ring()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of what we opened, once no thread reads any more; the descriptor stays its owner's."""
        self._wake.close()


class FdSink:
    """Writes buffers to a descriptor. A reader that went away is SIGPIPE's outcome: quiet, exit code 141."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.bytes = 0
        enlarge_pipe(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened, so nothing is undone: what left, left."""

    def write(self, buffer: Buffer) -> None:
        """Write it all. Raises StatepipeError."""
        try:
            self.bytes += write_all(self.fd, buffer)
        except BrokenPipeError as error:
            raise InterruptedBySignal(signal.SIGPIPE) from error
        except OSError as error:
            raise failure(f"write {self.name}", error) from error

    def commit(self) -> None:
        """The stream is complete; a pipe needs no more."""


class Nowhere:
    """A sink that drops every buffer, for a pipeline whose stages are what matters."""

    bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was kept."""

    def write(self, buffer: Buffer) -> None:
        self.bytes += len(buffer)

    def commit(self) -> None:
        """Nothing to complete."""


def write_all(fd: int, buffer: Buffer) -> int:
    """Write every byte, however the kernel portions it. Returns their number; raises OSError."""
    left = memoryview(buffer)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            wait_until_writable(fd)
    return len(buffer)


def wait_until_writable(fd: int) -> None:
    """Until a write does something at once, be it to fail. By poll: select knows no descriptor above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()
