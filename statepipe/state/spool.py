"""A state that comes through a descriptor: standard input, or the /dev/fd/N of a shell's <(…).

A state is read at both its ends, and twice if it has no fixed places. What cannot be sought in is kept in a file
meanwhile: one without a name, in $TMPDIR or /var/tmp, that nobody else may open and that is gone with us, however we
end. A file that is somebody's standard input is used where it lies. What does not begin like a state is not kept: it
may have no end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator

from statepipe.descriptors import demand, demand_readable
from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.ends.file import FileSource, open_nameless
from statepipe.errors import StatepipeError, UsageError
from statepipe.formats.beginning import HEAD
from statepipe.stage import Buffer
from statepipe.threads import held

FOLDER = "/var/tmp"
"""Where it is kept unless $TMPDIR says otherwise: it may be as large as a guest's memory, and /tmp often is memory."""


SPARE = 256 << 20
"""Bytes that are left free on the file system, or a hundredth of it where that is less: others write there too."""

LOOK = 16 << 20
"""Bytes that are kept between two looks at how much is free."""

Judge = Callable[[bytes], None]
"""Raises StatepipeError for what begins with these bytes and is not to be kept."""


def from_descriptor(fd: int, name: str, judge: Judge) -> FileSource:
    """What a descriptor of the caller's gives from where it stands; all of it is then read, if `judge` lets it.

    Raises StatepipeError where it cannot be read or kept, UsageError for a terminal and for one that is not open.
    """
    demand(fd)
    demand_readable(fd, name)
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal, and a state is not text", hint="name a FILE, or use a pipe")
    if stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0:
        source = FileSource(name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        os.lseek(fd, 0, os.SEEK_END)  # a QEMU that shares it finds no state at its monitor
        return source
    return FileSource(name, _kept(fd, name, judge))


def _kept(fd: int, name: str, judge: Judge) -> int:
    """A file without a name that has all of it. Raises StatepipeError."""
    folder = os.environ.get("TMPDIR") or FOLDER
    try:
        kept = _nameless(folder)
    except OSError as error:
        raise _no_room(name, folder, 0, error) from error
    done = 0
    try:
        with FdSource(fd, name) as source:
            for buffer in _judged(source, judge):
                if done % LOOK + len(buffer) >= LOOK:
                    _demand_room(kept)
                done += write_all(kept, buffer)
    except OSError as error:
        os.close(kept)
        raise _no_room(name, folder, done, error) from error
    except BaseException:
        os.close(kept)
        raise
    return kept


def _judged(source: Iterator[Buffer], judge: Judge) -> Iterator[Buffer]:
    """The same buffers, once their first bytes were judged: as many as there are, up to HEAD."""
    head = bytearray()
    for buffer in source:
        head += buffer
        if len(head) >= HEAD:
            break
    judge(bytes(head[:HEAD]))
    yield head
    yield from source


def _demand_room(kept: int) -> None:
    """Raises OSError where the file system is nearly full."""
    its = os.fstatvfs(kept)
    if its.f_bavail * its.f_frsize < min(SPARE, its.f_blocks * its.f_frsize // 100):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _nameless(folder: str) -> int:
    """A new file there, for our eyes only. Raises OSError."""
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


def _no_room(name: str, folder: str, done: int, error: OSError) -> StatepipeError:
    hint = "a state is read at both its ends: have TMPDIR name a folder with room for all of it, or name a file"
    return StatepipeError(str(failure(f"keep {name} in {folder}", error)), hint=hint, offset=done)
