"""A state that is read from a descriptor: standard input, or the /dev/fd/N of a shell's <(…).

A state is read at both ends, and twice if it cannot be read at an offset. So what cannot be sought in is first copied
to a file: one without a name, in $TMPDIR or /var/tmp, that nobody else may open and that is gone with us, however we
end. A regular file that is someone's standard input is used in place. Input that does not begin like a state is not
copied: it may never end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator

from statepipe.descriptors import demand, demand_readable
from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.ends.file import open_nameless
from statepipe.ends.source import FileSource
from statepipe.errors import StatepipeError, UsageError
from statepipe.formats.beginning import HEAD
from statepipe.stage import Buffer
from statepipe.threads import held

FOLDER = "/var/tmp"
"""The folder of the copy unless TMPDIR names one: it may be as large as a guest's memory, and /tmp often is memory."""

SPARE = 256 << 20
"""Bytes that are left free on the file system, or a hundredth of it if that is less: others write there too."""

LOOK = 16 << 20
"""Bytes between two looks at how much is free."""

Judge = Callable[[bytes], None]
"""Raises StatepipeError for input that begins with these bytes and should not be copied."""


def from_descriptor(fd: int, name: str, judge: Judge) -> FileSource:
    """Return what the caller's descriptor `fd` has from its position on; if `judge` allows it, all of it is read.

    Raises StatepipeError if it cannot be read or copied, UsageError for a terminal or a descriptor that is not open.
    """
    demand(fd)
    demand_readable(fd, name)
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal, and a state is not text", hint="name a FILE, or use a pipe")
    if stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0:
        source = FileSource(name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        os.lseek(fd, 0, os.SEEK_END)  # so that a QEMU that shares it does not read the state as monitor commands
        return source
    return FileSource(name, _copy(fd, name, judge))


def _copy(fd: int, name: str, judge: Judge) -> int:
    """Return a file without a name that has all of the input. Raises StatepipeError."""
    folder = os.environ.get("TMPDIR") or FOLDER
    kept, done = -1, 0
    try:
        kept = _nameless(folder)
        with FdSource(fd, name) as source:
            for buffer in _judged(source, judge):
                if done % LOOK + len(buffer) >= LOOK:
                    its = os.fstatvfs(kept)
                    if its.f_bavail * its.f_frsize < min(SPARE, its.f_blocks * its.f_frsize // 100):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += write_all(kept, buffer)
    except BaseException as error:
        if kept >= 0:
            os.close(kept)
        if not isinstance(error, OSError):  # reading fails with StatepipeError
            raise
        hint = "a state is read at both ends, so it is copied first: set TMPDIR to a folder with room, or name a file"
        raise StatepipeError(str(failure(f"copy {name} to {folder}", error)), hint=hint, offset=done) from error
    return kept


def _judged(source: Iterator[Buffer], judge: Judge) -> Iterator[Buffer]:
    """Yield the same bytes, once the first ones were judged: up to HEAD of them."""
    head = bytearray()
    for buffer in source:
        head += buffer
        if len(head) >= HEAD:
            break
    judge(bytes(head[:HEAD]))
    yield head
    yield from source


def _nameless(folder: str) -> int:
    """Create a file without a name there, for our user alone. Raises OSError."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_nameless(at)
    finally:
        os.close(at)
    if fd is not None:
        return fd
    import tempfile

    with held():  # a signal between the two would leave the name
        fd, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)
    return fd
