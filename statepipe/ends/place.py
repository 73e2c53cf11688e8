"""Where a new file goes: its folder as a descriptor, reached step by step, and its name there.

In a folder that everybody may write to, as /tmp, a symbolic link is another user's word: root would be led to replace
what that user may not touch. The kernel follows such links for nobody but their owner (fs.protected_symlinks), where it
is told to; but a program that reads links itself, to put a file in the place of their target, asks it nothing. So the
same rule stands here: there a link counts if it is ours, root's, or that of the folder's owner. What was looked at is
held by a descriptor, and used through it: nobody changes the way meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat

from statepipe.descriptors import is_strangers
from statepipe.errors import StatepipeError

LINKS = 40
"""Links on one way, as in the kernel (path_resolution(7))."""


def open_place(path: str) -> tuple[int, str]:
    """A descriptor of the folder that the file `path` is in, or will be, and its name there, itself no link.

    The caller closes the descriptor. Raises OSError, and StatepipeError for a link that is not to be trusted, or a path
    that ends in no name of a file.
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
    """What the name stands for, if it is a link; None if it is none, or one that only the kernel can follow."""
    try:
        seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(seen)
        if not stat.S_ISLNK(status.st_mode):
            return None
        if status.st_dev == os.stat("/proc").st_dev:
            return None  # a descriptor's or a process's own: what it reads as is no path
        _refuse_strangers(folder, status, path)
        return os.readlink("", dir_fd=seen)
    finally:
        os.close(seen)


def _refuse_strangers(folder: int, link: os.stat_result, path: str) -> None:
    if is_strangers(link, os.fstat(folder)):
        raise StatepipeError(
            f"{path} leads over a link of user {link.st_uid}, in a folder that everybody may write to",
            hint="name the file itself, or save into a folder of your own",
        )
