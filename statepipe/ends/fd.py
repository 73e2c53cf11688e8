"""The plain ends of a pipeline: a descriptor to read from, and one to write to.

A read polls a wake-up descriptor too, so that `cancel` ends a wait that would last for ever.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import closing

from statepipe.errors import ReaderGone, StatepipeError
from statepipe.stage import FLUSH, Buffer, Cancelled
from statepipe.typed import TYPE_CHECKING, Self
from statepipe.wakeups import READ_SIZE, Bell, enlarge_pipe, polled

if TYPE_CHECKING:
    from statepipe.ends.tap import Tap

REFUSED = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)
"""Errors of a kernel or a sandbox for a call that it does not have, or not for these descriptors."""


def failure(action: str, error: OSError) -> StatepipeError:
    """Return the StatepipeError for an OSError; `action` says what was tried, on what."""
    hint = _HINTS.get(error.errno or 0)
    if error.errno == errno.ENOENT:
        from statepipe.objectstore.scheme import advice

        hint = advice(action) or hint
    return StatepipeError(f"cannot {action}: {os.strerror(error.errno or 0)}", hint=hint)


def reader_gone(name: str) -> ReaderGone:
    """Return the error for an output whose reader has closed it."""
    return ReaderGone(f"the reader of {name} has closed it")


_HINTS = {
    errno.ENOSPC: "make room on that file system, or save to another one",
    errno.EDQUOT: "your disk quota is used up: make room, or save elsewhere",
    errno.EFBIG: "the file would be too large: check 'ulimit -f' and the file system's limit",
    errno.EIO: "the device reports an error: read the kernel's log",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "check the permissions of the file and its folder",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "give it a shorter name: most file systems allow 255 bytes",
}


class FdSource:
    """Buffers from a descriptor until its end of file. `bytes` counts the bytes read.

    With a `tap` (tap.py), it returns copies of the bytes, and the originals are to be moved on or dropped.
    With `idle` (milliseconds), it yields a flush mark whenever no bytes arrived for that long. Raises
    StatepipeError that contains `name` if a read fails, Cancelled after `cancel`.
    """

    def __init__(self, fd: int, name: str, idle: int | None = None) -> None:
        self.fd = fd
        self.name = name
        self.bytes = 0
        self.tap: Tap | None = None
        self._idle = idle
        self._wake = Bell()
        self._poll = polled(fd, self._wake.fd)
        enlarge_pipe(fd)

    def __iter__(self) -> FdSource:
        return self

    def __next__(self) -> Buffer:
        try:
            buffer = self._read()
        except OSError as error:
            raise self.lost(error) from error
        if buffer is None:
            return FLUSH
        if not buffer:
            raise StopIteration
        self.bytes += len(buffer)
        return buffer

    def _read(self) -> bytes | None:
        """Return the next bytes, b"" at the end of the file, None when idle."""
        while True:
            if not self._await(self._idle):
                return None
            try:
                return self._take()
            except BlockingIOError:  # another reader of a non-blocking descriptor was faster
                continue

    def _take(self) -> bytes:
        if self.tap is not None:
            try:
                if not self.tap.pending:
                    return self.tap.read()
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
            self.untap()  # the kernel has no such way, or a stage asks for more before it has passed on the last
        return os.read(self.fd, READ_SIZE)

    def untap(self) -> None:
        """Go back to ordinary reads; the bytes that are pending in the tap were seen.

        Raises OSError, and StatepipeError if another program has read them.
        """
        if self.tap is not None:
            tap, self.tap = self.tap, None
            with closing(tap):
                try:
                    tap.drop()
                except EOFError as error:
                    what = f"{self.name} has ended before bytes that were in it: another program reads from it, too"
                    raise StatepipeError(what, hint="give each program an input of its own") from error

    def wait(self) -> None:
        """Wait for bytes or the end, for a caller that moves the bytes by other means. Raises Cancelled."""
        self._await(None)

    def _await(self, limit: int | None) -> bool:
        """Wait for bytes or the end, for up to `limit` milliseconds; return whether they came. Raises Cancelled."""
        ready = self._poll.poll(limit)
        if any(fd == self._wake.fd for fd, _ in ready):
            raise Cancelled
        return bool(ready)

    def lost(self, error: OSError) -> StatepipeError:
        """Return the error for an OSError of a read."""
        return failure(f"read {self.name}", error)

    @property
    def expected(self) -> int | None:
        """Return the bytes from here to the end of a regular file; None for anything else."""
        status = os.fstat(self.fd)
        return status.st_size - os.lseek(self.fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None

    def is_quiet(self) -> bool:
        """Return whether there is nothing to read now, and the end has not come either."""
        return not any(fd == self.fd for fd, _ in self._poll.poll(0))

    def cancel(self) -> None:
        self._wake.ring()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close what we opened, after the last read; the descriptor still belongs to the caller."""
        self._wake.close()
        if self.tap is not None:
            self.tap.close()


class FdSink:
    """Writes buffers to a descriptor. Raises ReaderGone once its reader has closed it."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.bytes = 0
        enlarge_pipe(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Does nothing: bytes that were written cannot be taken back."""

    def write(self, buffer: Buffer) -> None:
        """Write the whole buffer. Raises StatepipeError."""
        try:
            self.bytes += write_all(self.fd, buffer)
        except OSError as error:
            raise self.lost(error) from error

    def wrote(self, count: int) -> None:
        """Count bytes that a caller wrote to `fd` by other means."""
        self.bytes += count

    def lost(self, error: OSError) -> StatepipeError:
        """Return the error for an OSError of a write."""
        return reader_gone(self.name) if isinstance(error, BrokenPipeError) else failure(f"write {self.name}", error)

    def commit(self) -> None:
        """Does nothing: a pipe needs nothing at the end of the stream."""


class Nowhere:
    """A sink that drops every buffer, for a pipeline that is run for its stages."""

    bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Does nothing."""

    def write(self, buffer: Buffer) -> None:
        self.bytes += len(buffer)

    def commit(self) -> None:
        """Does nothing."""


def write_all(fd: int, buffer: Buffer) -> int:
    """Write every byte, in as many calls as the kernel needs. Returns their number; raises OSError."""
    left = memoryview(buffer)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            wait_until_writable(fd)
    return len(buffer)


def wait_until_writable(fd: int, within: float | None = None) -> bool:
    """Wait until a write succeeds or fails at once, for up to `within` seconds; return whether it does.

    Uses poll, because select is limited to descriptors up to 1023.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if within is None else within * 1000))


def as_os_error(error: OSError | ValueError) -> OSError:
    """Return the error of a path that no system call takes, such as one with a NUL, as one of the system."""
    return error if isinstance(error, OSError) else OSError(errno.EINVAL, os.strerror(errno.EINVAL))
