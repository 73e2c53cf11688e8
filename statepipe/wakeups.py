"""Sizes of pipes as they were measured (docs/measurements.md), and how a wait for one is ended.

Reads of 256 KiB of fresh memory from pipes enlarged to 1 MiB are the cheapest of what was tried.
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
from typing import Self

READ_SIZE = 256 << 10
PIPE_SIZE = 1 << 20


def enlarge_pipe(fd: int) -> None:
    """Make a pipe hold PIPE_SIZE bytes. A hint: refused for other files, and over the user's pipe quota."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise


_ONE = (1).to_bytes(8, sys.byteorder)
"""What is added to an eventfd (eventfd(2))."""


class Bell:
    """Wakes a poll() from any thread. Rung after it was put away, it does nothing: its number may be another's then.

    It is put away with the last who holds it, at the latest: one that ends a wait in another thread cannot be sooner.
    """

    def __init__(self) -> None:
        self.fd, self._lock = -1, threading.Lock()
        try:
            self.fd = self._writing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:  # a sandbox, or an emulated kernel: a pipe takes one descriptor more
            self.fd, self._writing = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._writing, False)

    def __del__(self) -> None:
        self.close()

    def ring(self) -> None:
        """Until `hush`, every poll of it returns at once."""
        with self._lock:
            if self.fd >= 0:
                with suppress(BlockingIOError):  # it rings already, as loud as it can
                    os.write(self._writing, _ONE)

    def hush(self) -> None:
        """As if it had not rung."""
        with suppress(BlockingIOError):  # it had not
            while os.read(self.fd, len(_ONE)):
                continue

    def close(self) -> None:
        """Put it away; a second time does nothing."""
        with self._lock:
            for fd in {self.fd, self._writing} if self.fd >= 0 else ():
                os.close(fd)
            self.fd = -1


class Stoppable:
    """What has waits that end as it is left, from any thread: each polls `_stop` too, which has rung then."""

    def __init__(self) -> None:
        self._stop = Bell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.ring()


def polled(*fds: int) -> select.poll:
    """A poll() for reading of these descriptors."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


SMALL = 64 << 10
"""Bytes: who moves less at a time makes us turn too often. gpg reads and writes 8 KiB."""

LINGER = 1
"""Milliseconds to let small pieces gather: a pipe's 1 MiB lasts so long at 1 GB/s. Around gpg, 400 MB then take 9000
turns and not 59000."""


def waiting(fd: int) -> int:
    """How many bytes are in a pipe."""
    count: int = unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    return count
