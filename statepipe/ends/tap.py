"""Read a stream and leave its bytes in the kernel, which moves them on once a stage has seen them.

A stage that follows a guest's stream must see it, and changes nothing. A read and a write copy every byte twice. A tap
copies it once: tee(2) gives a second reference to the pages in a pipe, of which one is read and the other is spliced.

Measured with both ends over the loopback: 1.45 CPU s per GB, where reads and writes take 2.0 to 2.3, in pieces of
256 KiB; 512 KiB were no better (docs/measurements.md).

A regular file is read and written: sendfile after pread gained nothing, and a program that writes to the file between
the two would have bytes sent that no stage has seen. The pages in a pipe do not change, unless the program before it
gave its own to the kernel (vmsplice, splice from a file), or another program reads from the same pipe. So this is not
for a stage that vouches for every byte (`Vouching`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import cache

from statepipe.wakeups import READ_SIZE, enlarge_pipe


@cache
def _tee() -> Callable[[int, int, int, int], int]:
    """Return the C library's tee, which releases the GIL as well: Python has none. Raises OSError without it."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "tee", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.argtypes, call.restype = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint], ctypes.c_ssize_t
    found: Callable[[int, int, int, int], int] = call
    return found


def tee(source: int, copy: int, count: int) -> int:
    """Give a pipe a second reference to up to so many bytes that are in another; return their number, 0 at its end.

    Raises OSError.
    """
    from ctypes import get_errno

    while (given := _tee()(source, copy, count, 0)) < 0:
        code = get_errno()
        if code != errno.EINTR:  # a signal's handler runs before the next call
            raise OSError(code, os.strerror(code))
    return given


class Tap:
    """A tap of a pipe: its bytes are seen before they are moved. `pending`: how many were seen, and are still in it.
    `source` is that pipe.

    After `read`, all of them must be moved or dropped before the next.
    """

    def __init__(self, source: int) -> None:
        self.pending = 0
        self.source = source
        self._out, self._in = _pipe()

    def read(self) -> bytes:
        """Return a copy of the next bytes, b"" at the end. Raises OSError, and has taken nothing then."""
        self.pending = tee(self.source, self._in, READ_SIZE)
        return _read_exactly(self._out, self.pending)

    def move(self, sink: int, count: int) -> int:
        """Move up to so many of the pending bytes to the sink; return their number. Raises OSError: moved nothing."""
        moved = os.splice(self.source, sink, min(count, self.pending))
        self.pending -= moved
        return moved

    def drop(self) -> None:
        """Drop the pending bytes. Raises OSError, and EOFError if another program has read them."""
        _read_exactly(self.source, self.pending)
        self.pending = 0

    def close(self) -> None:
        """Close what it opened."""
        os.close(self._out)
        os.close(self._in)


class SocketTap(Tap):
    """A tap of a connection, whose bytes are moved into a pipe of ours first. Raises OSError without tee."""

    def __init__(self, source: int) -> None:
        held, self._fill = _pipe()
        try:
            super().__init__(held)
        except OSError:
            _close(held, self._fill)
            raise
        self._connection = source
        try:
            self._try_out()
        except OSError:
            self.close()
            raise

    def _try_out(self) -> None:
        """Raise OSError if what fits into the one pipe may not fit into the other, or if there is no tee."""
        if fcntl.fcntl(self._in, fcntl.F_GETPIPE_SZ) < fcntl.fcntl(self._fill, fcntl.F_GETPIPE_SZ):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        os.write(self._fill, b"\0")
        super().read()
        self.drop()

    def read(self) -> bytes:
        count = os.splice(self._connection, self._fill, READ_SIZE)
        seen = super().read() if count else b""
        assert len(seen) == count, "two pipes of one size, and the copy does not fit"
        return seen

    def close(self) -> None:
        super().close()
        _close(self.source, self._fill)


def new_tap(source: int, sink: int) -> Tap | None:
    """Return a tap of a source; None if a read and a write cost no more. Raises OSError if none can be made."""
    source_mode, sink_mode = os.fstat(source).st_mode, os.fstat(sink).st_mode
    if not (stat.S_ISSOCK(sink_mode) or stat.S_ISFIFO(sink_mode)):  # into a file, the bytes are copied anyway
        return None
    if stat.S_ISFIFO(source_mode):
        return Tap(source)
    return SocketTap(source) if stat.S_ISSOCK(source_mode) else None


def _pipe() -> tuple[int, int]:
    out, into = os.pipe()
    enlarge_pipe(into)
    return out, into


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def _read_exactly(fd: int, count: int) -> bytes:
    """Read bytes that are known to be in a pipe. Raises OSError, and EOFError if they are gone at its end."""
    data = b""
    while len(data) < count:
        if not (piece := os.read(fd, count - len(data))):
            raise EOFError
        data += piece
    return data
