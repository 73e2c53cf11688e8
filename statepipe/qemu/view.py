"""The files of a host as another process sees them: in its folder, under its root, in its mount namespace.

QEMU in a container calls a file by a name that leads out here to another file, or to none. What it has is reached
through /proc/PID/root, step by step from one open folder to the next; a link in there is followed within it, as the
process itself follows it, if it is root's, ours, that process's user's or of whom the root there belongs to: any other
user's leads where he likes. Nothing is opened by a name of several steps: whoever is in there could put a link in the
place of a folder meanwhile, and the kernel would follow that out here, to a file of ours.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from statepipe.qemu.process import names_open, owner

LINKS = 40
"""The most links on the way to one file, as the kernel has it (path_resolution(7))."""


class View:
    """The files as process `pid` sees them; as we see them, where it may not be looked at or is not known (0)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        same = _sees_what_we_see(pid)
        self._is_known = same is not None
        self._root = f"/proc/{pid}/root" if same is False else "/"

    def full(self, path: str) -> str | None:
        """A path of its own from the root on; None for one relative to a folder that may not be looked at.

        One that has left its folder (-daemonize) has opened it before: it is told by what it has open.
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
        """The name without links, by which its files are compared; None for what is no file's name."""
        try:
            if self._root == "/":
                return os.path.realpath(re.sub("^//+", "/", path))  # two slashes are one, but not for realpath
            with _Walk(self._root, {0, os.geteuid(), owner(self._pid)}) as walk:
                walk.go(path)
                return "/" + "/".join(walk.names)
        except (ValueError, OSError):
            return None

    @contextmanager
    def place(self, path: str) -> Iterator[str]:
        """Within it, the name by which we open what it calls `path`. Raises OSError where there is no such file, or a
        folder on its way is not ours to look into."""
        if self._root == "/":
            yield path
            return
        with _Walk(self._root, {0, os.geteuid(), owner(self._pid)}) as walk:
            try:
                walk.go(path)
            except ValueError as error:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
            yield f"/proc/self/fd/{walk.descriptor()}"

    def lacks(self, path: str) -> bool:
        """Whether it was seen that no file has this name, as that of a disk that was unlinked while it was open."""
        if not (self._is_known and os.path.isabs(path)):
            return False
        try:
            with self.place(path) as place:
                os.lstat(place)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # a folder that is not ours to look into
            return False
        return False


class _Walk:
    """A way from the root of a process to one of its files. `names` are those of its components, without links; those
    of the users `trusted`, and of the root's, are followed."""

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
        """Follow the path from the root on. What is not there has its name alone. Raises ValueError for what is no
        file's name, OSError for too many links and a stranger's."""
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
        """Of the file that was come to. Raises OSError if none was."""
        if self._failure is not None:
            raise self._failure
        return self._opened[-1]

    def _enter(self, name: str) -> str | None:
        """One step down; where a link leads, if it is one: then none was made."""
        fd = None
        if len(self._opened) > len(self.names):  # else there is nothing to look into
            try:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._opened[-1])
            except OSError as error:
                self._failure = error
        if fd is not None and stat.S_ISLNK(os.fstat(fd).st_mode):
            try:
                return self._link(fd)
            finally:
                os.close(fd)
        self.names.append(name)
        self._opened += [] if fd is None else [fd]
        return None

    def _link(self, fd: int) -> str:
        self._links += 1
        if self._links > LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if os.fstat(fd).st_uid not in self._trusted:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return os.readlink("", dir_fd=fd)

    def _back_to(self, depth: int) -> None:
        """Up to where so many names are left; from the root there is no way up."""
        depth = max(depth, 0)
        self.names = self.names[:depth]
        for fd in self._opened[depth + 1 :]:
            os.close(fd)
        self._opened = self._opened[: depth + 1]
        if len(self._opened) > depth:
            self._failure = None


def _sees_what_we_see(pid: int) -> bool | None:
    """None where that is not known."""
    try:
        ours, its = (os.readlink(f"/proc/{who}/ns/mnt") for who in ("self", pid))
        return ours == its and os.path.samefile(f"/proc/{pid}/root", "/")
    except OSError:
        return None
