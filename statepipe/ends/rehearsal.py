"""Whether a file can be put under a name: asked of the kernel before the first byte, and not learnt after the last.

Each question changes nothing. That a new file may be made in the folder, its opening there has shown; here is what
would yet fail as it takes its name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress

from statepipe.errors import StatepipeError, UsageError
from statepipe.formats.beginning import HEAD, beginning
from statepipe.imagelocks import is_image_of_qemu

FS_IOC_GETFLAGS, FS_IMMUTABLE_FL, FS_APPEND_FL = 0x80086601, 0x10, 0x20
"""ioctl_iflags(2): what lsattr shows."""

NAME_MAX = 255
"""Bytes of a name where the file system does not say (limits.h)."""


Replaceable = Callable[[bytes], bool]
"""Whether a file that begins with these bytes is of the kind that may be replaced."""


def refuse_impossible(path: str, base: str, folder: int, replaceable: Replaceable | None = None) -> None:
    """Raises StatepipeError, or OSError, where no file can take the name `base` in the open folder; `path` is both.

    What is there must be a file: a rename would put one in the place of a device. And one that `replaceable` allows,
    or that is empty; None: any.
    """
    if _flags(folder) & (FS_IMMUTABLE_FL | FS_APPEND_FL):
        hint = "name a file elsewhere; lsattr -d shows the folder's flags"
        raise StatepipeError(f"{path} is in a folder where no file is renamed (immutable, or append-only)", hint=hint)
    try:
        there = os.stat(base, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(there.st_mode):
        raise StatepipeError(f"{path} is not a regular file", hint="name a file; a new one will be made")
    if _is_mounted(base, folder):
        raise StatepipeError(
            f"{path} is a mount point, and no file can take its place",
            hint="a container's -v FILE:FILE makes one: mount the folder that it is in, or name another file",
        )
    if _is_in_use(base, folder):
        raise StatepipeError(
            f"{path} is a disk image that a QEMU has open, and would be lost to its guest",
            hint="name another file",
        )
    if replaceable is not None and there.st_size:
        _refuse_another_kind(path, base, folder, replaceable)
    _refuse_kept(path, base, folder, there)


def _refuse_another_kind(path: str, base: str, folder: int, replaceable: Replaceable) -> None:
    try:
        seen = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            head = os.pread(seen, HEAD, 0)
        finally:
            os.close(seen)
        what = None if replaceable(head) else f"it is no saved state: it begins {beginning(head)}"
    except PermissionError:
        what = "what it is may not be looked at"
    if what is not None:
        raise UsageError(
            f"{path} is there already, and {what}",
            hint="name another file; to have it replaced all the same, say --overwrite",
        )


def _is_in_use(base: str, folder: int) -> bool:
    """Whether it is a disk of a guest that runs; not known of one that may not be read."""
    try:
        seen = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return bool(is_image_of_qemu(seen))
    finally:
        os.close(seen)


def _refuse_kept(path: str, base: str, folder: int, there: os.stat_result) -> None:
    """A file that may not be removed may not be replaced. rmdir(2) of it asks for the same rights, and removes none."""
    try:
        os.rmdir(base, dir_fd=folder)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        around = os.fstat(folder)
        if around.st_mode & stat.S_ISVTX and os.geteuid() not in (there.st_uid, around.st_uid):
            why = f"it is user {there.st_uid}'s, in a folder where only owners replace what is theirs (sticky)"
        else:
            why = "it may neither be changed nor removed (lsattr shows its flags)"
        raise StatepipeError(f"cannot replace {path}: {why}", hint="name another file") from error
    except OSError:  # it is no folder: all else is well
        return


def _flags(fd: int) -> int:
    """Those of chattr(1); none where the file system knows none."""
    with suppress(OSError):
        flags: int = struct.unpack_from("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
        return flags
    return 0


def _is_mounted(base: str, folder: int) -> bool:
    """Whether something is mounted there; not known without /proc."""
    try:
        seen = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            return _mount(seen) != _mount(folder)
        finally:
            os.close(seen)
    except OSError:
        return False


def _mount(fd: int) -> str:
    """The number of the mount that it was opened in (proc_pid_fdinfo(5)); two of one file system differ."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next((line for line in file if line.startswith("mnt_id:")), "")


def shortened(base: str, folder: int, room: int) -> str:
    """As much of a name as leaves room for so many bytes more, in whole characters."""
    try:
        most = os.fpathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        most = NAME_MAX
    while len(os.fsencode(base)) + room > most and base:
        base = base[:-1]
    return base
