"""A unix socket that gets its name in a folder only after it listens.

So a name that refuses a connection was left by a killed process, and any process may remove it. Names are reached
through the folder's descriptor in /proc: the folder that was checked is the one that is used, and a long path does not
exceed the 108 bytes of a unix socket's name (unix(7)).

Each command listens as a job. So this is about `_socket`, on which `socket` builds: that takes 4 ms more of each start.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
from contextlib import closing, suppress

File = tuple[int, int]
"""Device and inode, which distinguish a socket from a later one with the same name."""

NO_SECOND_NAME = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
"""Errors of link(2) where a file can have only one name (FAT), or in a sandbox (AppArmor: EACCES)."""


def inside(folder: int, name: str) -> str:
    """Return a path to a name in the open folder."""
    return f"/proc/self/fd/{folder}/{name}"


def file_of(folder: int, name: str) -> File | None:
    """Return the file with this name in the open folder; None if it does not exist or cannot be read."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove(folder: int, name: str, file: File | None) -> None:
    """Remove the name if it still belongs to the same file."""
    with suppress(OSError):  # the folder may have been removed, and the name with it
        if file is not None and file_of(folder, name) == file:
            os.unlink(name, dir_fd=folder)


def sweep(folder: int, name: str) -> None:
    """Remove the name of a socket without a listener. A busy or stopped process still listens."""
    file = file_of(folder, name)
    with suppress(OSError), closing(_new()) as knock:
        if stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            knock.setblocking(False)
            try:
                knock.connect(inside(folder, name))
            except ConnectionRefusedError:
                remove(folder, name, file)


def listen(folder: int, name: str, queue: int, mode: int = 0o600, path: str = "") -> tuple[_socket.socket, File]:
    """Listen under that name in the open folder; return the socket and its file. `mode` decides who may connect.

    `queue` connections can wait to be accepted. `path` is the folder's path, for systems without /proc. Where a file
    can have only one name (FAT), the name exists an instant before the socket listens. Raises OSError, with EADDRINUSE
    if the name is in use.
    """
    place = os.path.dirname(inside(folder, name))
    place = place if os.path.isdir(place) or not path else path
    hidden = f".statepipe.{os.getpid()}.{os.urandom(4).hex()}"
    listener = _bound(f"{place}/{hidden}", mode)
    try:
        try:
            listener.listen(queue)
            file = file_of(folder, hidden)  # before another process can know of it and remove it
            assert file is not None
            os.link(hidden, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            return listener, file
        finally:
            os.unlink(hidden, dir_fd=folder)
    except OSError as error:
        listener.close()
        if error.errno == errno.EEXIST:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
        if error.errno not in NO_SECOND_NAME:
            raise
    listener = _bound(f"{place}/{name}", mode)
    listener.listen(queue)
    file = file_of(folder, name)
    assert file is not None
    return listener, file


def _new() -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)


def _bound(path: str, mode: int) -> _socket.socket:
    """Return a socket with that name, whose file has that mode. Raises OSError."""
    bound = _new()
    others = mode & 0o077 != 0
    umask = os.umask(0o777 & ~mode) if others else 0  # the umask would reduce the mode, but all threads share it
    try:
        os.fchmod(bound.fileno(), mode)  # before it has a name: the name takes this mode
        bound.bind(path)
    except BaseException as error:
        bound.close()
        if isinstance(error, OSError) and error.errno is None:  # Python's own error for a long path
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from error
        raise
    finally:
        if others:
            os.umask(umask)
    return bound
