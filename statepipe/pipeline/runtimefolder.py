"""The folder in which running statepipes are found: a socket for each, named by its process id.

In /tmp another user may have created the folder first. Such a folder is never used, but the next place; the job and its
client follow the same rule.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from statepipe.ends.config import home


def runtime_folder() -> str:
    """Return `$XDG_RUNTIME_DIR/statepipe` if that variable names a folder of ours; else `/run/statepipe` for root and
    `/tmp/statepipe-UID` for others. It need not exist.

    A variable that names another user's folder, as after `sudo -E`, is ignored.
    """
    uid = os.geteuid()
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and _owner(base) == uid:
        return os.path.join(base, "statepipe")
    return "/run/statepipe" if uid == 0 else _in_tmp()


def _in_tmp() -> str:
    return f"/tmp/statepipe-{os.geteuid()}"


def open_runtime_folder() -> tuple[int, str]:
    """Open runtime_folder(), and create it if needed; return the descriptor and the path. Raises OSError.

    If it is in /tmp and another user was first, this is `.cache/statepipe` in our home.
    """
    path = runtime_folder()
    try:
        return open_folder(path), path
    except OSError:
        another = _at_home() if path == _in_tmp() else None
        if another is None:
            raise
        return open_folder(another), another


def passed_over(path: str) -> str | None:
    """Return a notice if `path`, which is used, is not the first choice."""
    first = runtime_folder()
    return None if path == first else f"{first} is not a folder of yours; using {path} instead"


def _at_home() -> str | None:
    """Return the folder in our home; None if there is no home, or it is another user's, as after `sudo`."""
    own = home()
    if own is None or _owner(own) != os.geteuid():
        return None
    cache = os.path.join(own, ".cache")
    with suppress(OSError):  # most have it
        os.mkdir(cache, 0o700)
    return os.path.join(cache, "statepipe") if _owner(cache) == os.geteuid() else None


def _owner(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def open_folder(path: str) -> int:
    """Open a folder, and create it if needed; return the descriptor. Raises OSError, also if it is another user's."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():  # in /tmp another user may have created it, to spy on us
            raise PermissionError(errno.EPERM, f"{path} belongs to user {found.st_uid}")
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd
