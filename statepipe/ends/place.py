"""Find the place of a new file: its folder as a descriptor, opened step by step, and its name there.

In a world-writable folder such as /tmp, another user can place a symbolic link, and root would follow it and replace a
file that this user must not change. The kernel can refuse such links (fs.protected_symlinks), but not for a program
that reads links itself to replace their target, as we do. So the same rule applies here: in such a folder a link is
followed only if it belongs to us, to root, or to the folder's owner. Each checked folder is held by a descriptor and
used through it, so that no one can change the path meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat

from statepipe.descriptors import is_strangers
from statepipe.errors import StatepipeError

LINKS = 40
"""Links in one path at most, as in the kernel (path_resolution(7))."""


class FolderWatch:
    """How the open `folder` was found: by `path`, and from the working folder if that is relative.

    A folder that is moved or replaced takes what is in it along, and nothing is at the path then.
    """

    def __init__(self, path: str, folder: int) -> None:
        self._path, self._seen = path, (_start(path), _key(os.fstat(folder)))
        self._is_known = self._now() == self._seen  # else this file system's inodes do not tell

    def leads_elsewhere(self) -> bool:
        """Return whether the path now leads to another folder, or nowhere. It does not count if this process has gone
        to another working folder itself, or may not look any more. Raises StatepipeError as `open_place`."""
        try:
            return self._is_known and _start(self._path) == self._seen[0] and self._now() != self._seen
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False

    def _now(self) -> tuple[object, object]:
        folder, _ = open_place(self._path)
        try:
            return _start(self._path), _key(os.fstat(folder))
        finally:
            os.close(folder)


def _start(path: str) -> object:
    """Return what tells the working folder from others, if `path` begins there."""
    return None if path.startswith("/") else _key(os.stat("."))


def _key(status: os.stat_result) -> object:
    return status.st_dev, status.st_ino


def open_place(path: str) -> tuple[int, str]:
    """Return a descriptor of the folder of the file `path`, and the file's name there, which is not a link.

    The caller closes the descriptor. Raises OSError, and StatepipeError for an untrusted link or a path that does not
    end in a file name.
    """
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    at = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    links = 0
    try:
        if not todo or path.endswith("/"):
            raise _no_file(path)
        while True:
            name = todo.pop()
            target = None if name == ".." else _link(at, name, path)
            if target is not None:
                links += 1
                if links > LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                if target.startswith("/"):
                    at = _exchange(at, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                if not todo:
                    raise _no_file(path)
            elif todo:
                at = _exchange(at, os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at))
            elif name == "..":
                raise _no_file(path)
            else:
                return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at), name
    finally:
        os.close(at)


def _exchange(before: int, after: int) -> int:
    os.close(before)
    return after


def _no_file(path: str) -> StatepipeError:
    return StatepipeError(f"{path} is not a regular file", hint="name a file; a new one will be made")


def _link(folder: int, name: str, path: str) -> str | None:
    """Return the target of a link; None if the name is not a link, or is one that only the kernel can follow.

    Raises OSError, and StatepipeError for an untrusted link.
    """
    try:
        seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(seen)
        if not stat.S_ISLNK(status.st_mode):
            return None
        if status.st_dev == os.stat("/proc").st_dev:
            return None  # a link in /proc to a descriptor or a process, whose text is not a path
        if is_strangers(status, os.fstat(folder)):
            what = f"{path} contains a link of user {status.st_uid} in a world-writable folder"
            raise StatepipeError(what, hint="name the file itself, or save into a folder of your own")
        return os.readlink("", dir_fd=seen)
    finally:
        os.close(seen)
