"""The files of a host as another process sees them: in its folder, under its root, in its mount namespace.

In a container, QEMU's name for a file leads to another file or to none out here. Its files are reached through
/proc/PID/root, step by step from one open folder to the next. A link in there is followed inside that root, as the
process would follow it, if it belongs to root, us, that process's user or the owner of that root; any other user could
lead us anywhere. No name of several steps is opened: meanwhile something in there could replace a folder by a link,
which the kernel would follow out here, to a file of ours.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from statepipe.qemu.process import files_open, names_open, owner

LINKS = 40
"""Links on the way to one file at most, as in the kernel (path_resolution(7))."""


class View:
    """The files as process `pid` sees them; as we see them, if we may not look or the process is unknown (0)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._root, self._is_known = "/", False
        with suppress(OSError):
            ours, its = (os.readlink(f"/proc/{who}/ns/mnt") for who in ("self", pid))
            if ours != its or not os.path.samefile(f"/proc/{pid}/root", "/"):
                self._root = f"/proc/{pid}/root"
            self._is_known = True

    def full(self, path: str) -> str | None:
        """Return the absolute form of the process's path; None if that is relative to a folder that we may not see.

        A process that has left its folder (-daemonize) opened its files before, so the name is found among those.
        """
        if os.path.isabs(path):
            return path
        try:
            full = os.path.join(os.readlink(f"/proc/{self._pid}/cwd"), path)
        except OSError:
            return None
        if self.lacks(full):
            end = "/" + re.sub(r"^(\.\.?(/|$))*", "", os.path.normpath(path))
            its = {name for name in names_open(self._pid) if name.endswith(end)}
            return its.pop() if len(its) == 1 else full
        return full

    def real(self, path: str) -> str | None:
        """Return the path without links, to compare files; None if no file can have that name."""
        try:
            if self._root == "/":
                return os.path.realpath(re.sub("^//+", "/", path))  # realpath keeps two slashes
            with _Walk(self._root, {0, os.geteuid(), owner(self._pid)}) as walk:
                walk.go(path)
                return "/" + "/".join(walk.names)
        except (ValueError, OSError):
            return None

    @contextmanager
    def place(self, path: str) -> Iterator[str]:
        """Yield the name by which we can open the process's `path` in the context. Raises OSError if there is no such
        file, or we may not look into a folder on the way."""
        if self._root == "/":
            yield path
            return
        with _Walk(self._root, {0, os.geteuid(), owner(self._pid)}) as walk:
            try:
                walk.go(path)
            except ValueError as error:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
            yield f"/proc/self/fd/{walk.descriptor()}"

    def is_same(self, one: str, other: str) -> bool:
        """Return whether both names lead to the same file, such as two hard links, or to the same block device.

        Both are looked at, and none is opened. False if we may not look.
        """
        try:
            with self.place(one) as place:
                first = os.stat(place)
            with self.place(other) as place:
                return _is_same(first, os.stat(place))
        except (OSError, ValueError):
            return False

    def has_replaced(self, path: str) -> bool:
        """Return whether it is certain that the process has another file open than the one with this name now.

        For a path that the process did open, such as a disk: a copy was put in its place by a rename, for example.
        """
        opened = files_open(self._pid) if self._is_known else []
        if not opened:
            return False
        try:
            with self.place(path) as place:
                now = os.stat(place)
        except (OSError, ValueError):  # whoever reads it says what is wrong
            return False
        return not any(_is_same(now, each) for each in opened)

    def lacks(self, path: str) -> bool:
        """Return whether it is certain that no file has this name, such as a disk that was removed while open."""
        if not (self._is_known and os.path.isabs(path)):
            return False
        try:
            with self.place(path) as place:
                os.lstat(place)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # perhaps a folder that we may not look into
            pass
        return False


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Return whether both are the same file, or nodes of the same block device."""
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev
    return os.path.samestat(one, other)


class _Walk:
    """The way from the root of a process to one of its files. `names` are the components without links. Links are
    followed if they belong to a `trusted` user or the owner of that root."""

    def __init__(self, root: str, trusted: Collection[int | None]) -> None:
        self.names: list[str] = []
        self._opened = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._trusted = {*trusted, os.fstat(self._opened[0]).st_uid}
        self._failure: OSError | None = None
        self._links = 0

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *error: object) -> None:
        self._back_to(0)
        os.close(self._opened[0])

    def go(self, path: str) -> None:
        """Follow the path from the root on; components that do not exist only get a name. Raises ValueError for a name
        that no file can have, OSError for too many links or a link of an untrusted user."""
        left = path.split("/")[::-1]
        while left:
            name = left.pop()
            if name == "..":
                self._back_to(len(self.names) - 1)
            elif name not in ("", ".") and (target := self._enter(name)) is not None:
                if target.startswith("/"):
                    self._back_to(0)
                left += target.split("/")[::-1]

    def descriptor(self) -> int:
        """Return the descriptor of the file that was reached. Raises OSError if there is none."""
        if self._failure is not None:
            raise self._failure
        return self._opened[-1]

    def _enter(self, name: str) -> str | None:
        """Go one step down; or return where the link with that name leads."""
        fd = None
        if len(self._opened) > len(self.names):  # else the folder does not exist
            try:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._opened[-1])
            except OSError as error:
                self._failure = error
        if fd is not None and stat.S_ISLNK(os.fstat(fd).st_mode):
            try:
                self._links += 1
                if self._links > LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if os.fstat(fd).st_uid not in self._trusted:
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
                return os.readlink("", dir_fd=fd)
            finally:
                os.close(fd)
        self.names.append(name)
        self._opened += [] if fd is None else [fd]
        return None

    def _back_to(self, depth: int) -> None:
        """Go up until `depth` names are left, but not above the root."""
        depth = max(depth, 0)
        self.names = self.names[:depth]
        for fd in self._opened[depth + 1 :]:
            os.close(fd)
        self._opened = self._opened[: depth + 1]
        if len(self._opened) > depth:
            self._failure = None
