"""The folder where running statepipes are found: one socket each, named by its process id.

Names are reached through the folder's descriptor in /proc: so what was checked is what is used, and a long path does
not run into the 108 bytes of a unix socket's name (unix(7)).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress


def runtime_folder() -> str:
    """`$XDG_RUNTIME_DIR/statepipe`, where that variable names a folder of ours; else `/run/statepipe` for root and
    `/tmp/statepipe-UID` for others. It need not exist.

    A variable that leads into another user's folder, as after `sudo -E`, is not followed.
    """
    uid = os.geteuid()
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and _owner(base) == uid:
        return os.path.join(base, "statepipe")
    return "/run/statepipe" if uid == 0 else f"/tmp/statepipe-{uid}"


def _owner(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def open_folder(path: str) -> int:
    """A descriptor of the folder, which is made if need be. Raises OSError, also if it is not ours alone."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _own(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _own(fd: int, path: str) -> None:
    """In /tmp another user may have made it first, to hear what we say."""
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"{path} belongs to user {found.st_uid}")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.fchmod(fd, 0o700)


def inside(folder: int, name: str) -> str:
    """A path to a name in the open folder."""
    return f"/proc/self/fd/{folder}/{name}"


def node(folder: int, name: str) -> int:
    """The inode of a name in the open folder, which tells a socket from a later one of the same name; 0 for none."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
    except OSError:
        return 0
