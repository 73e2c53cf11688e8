"""Pipe sizes as measured (docs/measurements.md), and how to end a wait for a pipe.

Reads of 256 KiB into new memory from pipes enlarged to 1 MiB were the fastest of all variants.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import termios
import threading
from contextlib import suppress
from struct import unpack

from statepipe.typed import Self

READ_SIZE = 256 << 10
PIPE_SIZE = 1 << 20


def enlarge_pipe(fd: int) -> None:
    """Enlarge a pipe to PIPE_SIZE bytes. Does nothing for other files, or above the user's pipe quota."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise


_ONE = (1).to_bytes(8, sys.byteorder)
"""The value that is added to an eventfd (eventfd(2))."""


class Bell:
    """Wakes a poll() from any thread. Ringing does nothing after `close`, when its number may belong to another file.

    It is closed with its last reference at the latest; one that ends a wait in another thread cannot be closed sooner.
    """

    def __init__(self) -> None:
        self.fd, self._lock = -1, threading.Lock()
        try:
            self.fd = self._writing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:  # a sandbox or an emulated kernel without eventfd: a pipe needs one more descriptor
            self.fd, self._writing = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._writing, False)

    def __del__(self) -> None:
        self.close()

    def ring(self) -> None:
        """Make every poll of it return at once, until `hush`."""
        with self._lock:
            if self.fd >= 0:
                with suppress(BlockingIOError):  # it is already ringing
                    os.write(self._writing, _ONE)

    def hush(self) -> None:
        """Undo `ring`."""
        with suppress(BlockingIOError):  # it was not ringing
            while os.read(self.fd, len(_ONE)):
                continue

    def close(self) -> None:
        """Close it; a second call does nothing."""
        with self._lock:
            for fd in {self.fd, self._writing} if self.fd >= 0 else ():
                os.close(fd)
            self.fd = -1


class Stoppable:
    """A context whose waits end when it is exited, from any thread: each wait also polls `_stop`, which rings then."""

    def __init__(self) -> None:
        self._stop = Bell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.ring()


def polled(*fds: int) -> select.poll:
    """Return a poll() that waits until one of these descriptors is readable."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


SMALL = 64 << 10
"""Bytes below which single moves cost too many turns of a loop. gpg reads and writes 8 KiB."""

LINGER = 1
"""Milliseconds to let small pieces collect: 1 MiB in a pipe lasts that long at 1 GB/s. With gpg, 400 MB then take 9000
turns instead of 59000."""


def waiting(fd: int) -> int:
    """Return the number of bytes in a pipe."""
    count: int = unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    return count
