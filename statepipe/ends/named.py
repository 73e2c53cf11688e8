"""A unix socket that listens under a name: it gets one, keeps watch over it, and takes it away at the end.

A name can be lost while its socket listens on, whole and unreachable: a folder is tidied up, or another program takes
the name for itself. Nothing tells of it, so whoever waits looks at the name now and then (`Named.lost`).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import Any, Self

from statepipe.ends.listeners import BACKLOG, ListeningSocket
from statepipe.errors import PeerError

LOOK = 1.0
"""Seconds between two looks at a name, at the most."""


class NameLost(PeerError):
    """Nobody who comes by the name finds us any more."""


class Named:
    """A socket that listens at `path` for those whom its mode lets in. A socket that nobody listens on gives way.

    Its name is taken away when it is closed, unless another has it by then. Raises OSError.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        folder, name = os.path.split(path)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _is_left_over(path):
                os.unlink(path)
            place = f"/proc/self/fd/{opened}"  # however long the folder's own path is
            self._socket, self._made = _listening(place if os.path.isdir(place) else folder, opened, name, mode)
        finally:
            os.close(opened)

    def lost(self) -> NameLost | None:
        """What became of its name, if that leads here no more; nothing is known where it may not be looked at."""
        try:
            if _file_at(self._path) == self._made:
                return None
            what = "another file has its name now"
        except (FileNotFoundError, NotADirectoryError):
            what = "its name was removed"
        except OSError:
            return None
        hint = "start it again, at a place that nobody tidies up or gives to another"
        return NameLost(f"nobody finds the socket {self._path} any more: {what}", hint=hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select and its kind."""
        return self._socket.fileno()

    def settimeout(self, value: float | None) -> None:
        """As a socket's."""
        self._socket.settimeout(value)

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._socket.setblocking(flag)

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's."""
        return self._socket.accept()

    def getsockname(self) -> Any:
        """As a socket's."""
        return self._socket.getsockname()

    def close(self) -> None:
        """A second time does nothing."""
        if self._socket.fileno() >= 0 and self.lost() is None:
            with suppress(OSError):
                os.unlink(self._path)
        self._socket.close()


def name_lost(listener: ListeningSocket) -> NameLost | None:
    """What became of the name of a listener that has one, if it leads here no more."""
    return listener.lost() if isinstance(listener, Named) else None


_File = tuple[int, int]
"""Its device and inode."""


def _file_at(path: str) -> _File:
    """Which file has the name now. Raises OSError."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino


_NO_SECOND_NAME = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
"""What link(2) says where a file can have no second name (FAT), or in a sandbox."""


def _listening(place: str, folder: int, name: str, mode: int) -> tuple[socket.socket, _File]:
    """One that listens, with its file. It is found under `name` in the folder, which `place` leads to, once it does.

    Where a file can have no second name, it is found there an instant before. Raises OSError where something is.
    """
    hidden = f".statepipe.{os.getpid()}.{os.urandom(4).hex()}"
    listener = _bound(f"{place}/{hidden}", mode)
    try:
        listener.listen(BACKLOG)
        made = _file_at(f"{place}/{hidden}")  # before anybody knows of it, and may take it away
        os.link(hidden, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        return listener, made
    except OSError as error:
        listener.close()
        if error.errno == errno.EEXIST:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
        if error.errno not in _NO_SECOND_NAME:
            raise
    finally:
        os.unlink(hidden, dir_fd=folder)
    listener = _bound(f"{place}/{name}", mode)
    listener.listen(BACKLOG)
    return listener, _file_at(f"{place}/{name}")


def _bound(path: str, mode: int) -> socket.socket:
    """A socket with that name, whose file has that mode. Raises OSError."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    umask = os.umask(0o777 & ~mode)  # it would take more from the mode than was meant
    try:
        os.fchmod(bound.fileno(), mode)  # before it has a name: the name takes this mode
        bound.bind(path)
    except BaseException as error:
        bound.close()
        if isinstance(error, OSError) and error.errno is None:  # Python's own word on a long path
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from error
        raise
    finally:
        os.umask(umask)
    return bound


def _is_left_over(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except FileNotFoundError:
        return False
    return False
