"""Check before the first byte is written whether a new file can get its name, and not only after the last byte.

The checks change nothing. That the folder allows new files was shown when the file was opened; these checks cover the
other reasons for which naming it would fail.
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
from statepipe.typed import NamedTuple

FS_IOC_GETFLAGS, FS_IMMUTABLE_FL, FS_APPEND_FL = 0x80086601, 0x10, 0x20
"""ioctl_iflags(2): the flags that lsattr shows."""

NAME_MAX = 255
"""Bytes of a name if the file system does not report its limit (limits.h)."""


Replaceable = Callable[[bytes], bool]
"""Decides whether a file that begins with these bytes may be replaced."""


def refuse_impossible(path: str, base: str, folder: int, replaceable: Replaceable | None = None) -> None:
    """Raises StatepipeError or OSError if no file can get the name `base` in the open folder; `path` is for messages.

    An existing file must be a regular file, because a rename would replace a device too. It must be empty, or
    `replaceable` must allow it (None: any file).
    """
    if _flags(folder) & (FS_IMMUTABLE_FL | FS_APPEND_FL):
        hint = "name a file in another folder; lsattr -d shows the flags of this one"
        raise StatepipeError(
            f"{path} is in a folder where files cannot be renamed (immutable or append-only)", hint=hint
        )
    there = refuse_there(path, base, folder, replaceable)
    if there is None:
        return
    if _is_mounted(base, folder):
        raise StatepipeError(
            f"{path} is a mount point and cannot be replaced",
            hint="name another file, or mount its folder: a container's -v FILE:FILE mounts only the file",
        )
    _refuse_kept(path, base, folder, there)


def refuse_there(path: str, base: str, folder: int, replaceable: Replaceable | None) -> os.stat_result | None:
    """Return what is known of the file that has the name `base`; None if none has it. Raises as refuse_impossible for
    one that may not be replaced."""
    try:
        there = os.stat(base, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(there.st_mode):
        raise StatepipeError(f"{path} is not a regular file", hint="name a file; a new one will be made")
    _refuse_content(path, base, folder, replaceable if there.st_size else None)
    return there


class Seen(NamedTuple):
    """The file that has the name at the beginning, opened so that no later file can be taken for it, and what its
    content was by size and time."""

    fd: int
    size: int
    changed: int

    @classmethod
    def of(cls, fd: int) -> Seen:
        """Look at an open file."""
        found = os.fstat(fd)
        return cls(fd, found.st_size, found.st_mtime_ns)


def look_at(base: str, folder: int) -> Seen | None:
    """Return the file that has the name `base`, or None if there is none. Raises OSError."""
    try:
        return Seen.of(os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder))
    except FileNotFoundError:
        return None


def _refuse_content(path: str, base: str, folder: int, replaceable: Replaceable | None) -> None:
    """Raises StatepipeError for a disk of a running guest, and UsageError for a file that may not be replaced."""
    what = None
    try:
        seen = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if replaceable is None:
            return
        if not isinstance(error, PermissionError):
            raise
        what = "it cannot be read to see what it is"
    else:
        try:
            if is_image_of_qemu(seen):
                what = f"{path} is a disk image that a QEMU has open: its guest would lose it"
                raise StatepipeError(what, hint="name another file")
            head = b"" if replaceable is None else os.pread(seen, HEAD, 0)
        finally:
            os.close(seen)
        if replaceable is not None and not replaceable(head):
            what = f"it is not a saved state: it begins {beginning(head)}"
    if what is not None:
        raise exists(path, what)


def open_there(base: str, folder: int) -> int | None:
    """Open the regular file that has the name `base`; None if it has gone, or cannot be read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError):
        there = os.open(base, flags, dir_fd=folder)
        if stat.S_ISREG(os.fstat(there).st_mode):
            return there
        os.close(there)
    return None


def exists(path: str, what: str) -> UsageError:
    """Return the error for a file that may not be replaced; `what` says why."""
    hint = "name another file, or replace it anyway with --overwrite"
    return UsageError(f"{path} exists already, and {what}", hint=hint)


def _refuse_kept(path: str, base: str, folder: int, there: os.stat_result) -> None:
    """Raise StatepipeError for a file that we cannot remove and so cannot replace. rmdir(2) needs the same rights, and
    never removes a file."""
    try:
        os.rmdir(base, dir_fd=folder)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        around = os.fstat(folder)
        if around.st_mode & stat.S_ISVTX and os.geteuid() not in (there.st_uid, around.st_uid):
            why = f"it belongs to user {there.st_uid}, and in this folder only owners can replace their files (sticky)"
        else:
            why = "it cannot be changed or removed (lsattr shows its flags)"
        raise StatepipeError(f"cannot replace {path}: {why}", hint="name another file") from error
    except OSError:  # it is not a folder: nothing else prevents the removal
        return


def _flags(fd: int) -> int:
    """Return the flags of chattr(1); 0 if the file system has none."""
    with suppress(OSError):
        flags: int = struct.unpack_from("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
        return flags
    return 0


def _is_mounted(base: str, folder: int) -> bool:
    """Return whether something is mounted there; False without /proc."""
    try:
        seen = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            return _mount(seen) != _mount(folder)
        finally:
            os.close(seen)
    except OSError:
        return False


def _mount(fd: int) -> str:
    """Return the number of the mount that it was opened in (proc_pid_fdinfo(5)), which differs for each mount."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next((line for line in file if line.startswith("mnt_id:")), "")


def shortened(base: str, folder: int, room: int) -> str:
    """Return as much of a name, in whole characters, as leaves room for that many more bytes."""
    try:
        most = os.fpathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        most = NAME_MAX
    while len(os.fsencode(base)) + room > most and base:
        base = base[:-1]
    return base
