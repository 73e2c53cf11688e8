"""The folder where running statepipes are found: one socket each, named by its process id.

In /tmp anybody may have made the folder first. One that is another user's is never used: the next place is, and both
who runs and who asks find it by the same rule.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from statepipe.ends.config import home


def runtime_folder() -> str:
    """`$XDG_RUNTIME_DIR/statepipe`, where that variable names a folder of ours; else `/run/statepipe` for root and
    `/tmp/statepipe-UID` for others. It need not exist.

    A variable that leads into another user's folder, as after `sudo -E`, is not followed.
    """
    uid = os.geteuid()
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and _owner(base) == uid:
        return os.path.join(base, "statepipe")
    return "/run/statepipe" if uid == 0 else _in_tmp()


def _in_tmp() -> str:
    return f"/tmp/statepipe-{os.geteuid()}"


def open_runtime_folder() -> tuple[int, str]:
    """A descriptor of runtime_folder(), made if need be, and its path. Raises OSError.

    Where it is in /tmp, and somebody else was there first, `.cache/statepipe` in our home serves.
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
    """What to say of it once, if `path`, which is used, is not the place that is looked at first."""
    return (
        None if path == runtime_folder() else f"{runtime_folder()} is no folder of yours; {path} is used in its place"
    )


def _at_home() -> str | None:
    """None where there is no home, or it is not ours, as after `sudo`."""
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
