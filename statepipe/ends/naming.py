"""Give a complete file its name in an open folder: in the place of any file, of one certain file, or of none.

rename(2) replaces whatever has the name by then. So link(2) gives the name only if no file has it, and a file is
replaced by an exchange of both names (renameat2), after which it is seen whether it was one that may go. Each is one
step: no other process ever sees two files or none. Where a file can have only one name (FAT), renameat2 gives a new
one. Where the system lacks renameat2, we look and then rename: a file that takes the place of an older state between
the two is replaced, and without links so is one that appears at a free name.

A file that is replaced keeps a second name until the new one is durable, so that it can be put back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

from statepipe.ends.rendezvous import NO_SECOND_NAME

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
"""renameat2(2)"""

UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.ENOTTY, errno.EPERM, errno.EACCES)
"""Errors of a kernel, a file system or a sandbox for a call that it does not support or allow."""


def link_nameless(fd: int, name: str, folder: int) -> None:
    """Give a file without a name one that no file has. Raises OSError.

    Passing the folder's descriptor makes Python call linkat, which is needed to follow the link in /proc.
    """
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), name, src_dir_fd=descriptors, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(descriptors)


def link(folder: int, name: str, another: str) -> None:
    """Give a file of the folder a second name, which no file has. Raises OSError."""
    os.link(name, another, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def rename(folder: int, name: str, new: str) -> None:
    """Rename a file within the folder; a file that has the new name is replaced. Raises OSError."""
    os.rename(name, new, src_dir_fd=folder, dst_dir_fd=folder)


def rename_to_free(folder: int, name: str, new: str) -> None:
    """Rename a file within the folder. Raises FileExistsError if a file has the new name, OSError."""
    try:
        _renameat2(folder, name, new, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        with suppress(FileNotFoundError):
            os.stat(new, dir_fd=folder, follow_symlinks=False)
            raise _exists() from error
        rename(folder, name, new)


def take_free(fd: int, folder: int, part: str, base: str, *, has_part: bool) -> None:
    """Give the open file the name `base`, if no file has it; with `has_part`, its name was `part`.

    Raises FileExistsError, OSError.
    """
    try:
        link(folder, part, base) if has_part else link_nameless(fd, base, folder)
    except FileExistsError:
        if not is_named(fd, folder, base):  # else a server lost its answer to the first request, and was asked again
            raise
    except OSError as error:
        if not has_part or error.errno not in NO_SECOND_NAME:
            raise
        rename_to_free(folder, part, base)
        _demand(fd, folder, base)
        return
    _demand(fd, folder, base)
    drop_name(fd, folder, part)


def replace(fd: int, folder: int, part: str, base: str, may_go: Callable[[str], bool]) -> None:
    """Give the open file, whose name is `part`, the name `base`, which another file has. Afterwards that one has the
    name `part`, or no name here. It is replaced only if `may_go`, called with the name that it has, allows that: before
    the exchange and after it.

    Raises FileExistsError if it may not be replaced, FileNotFoundError if no file has the name, OSError.
    """
    os.stat(base, dir_fd=folder, follow_symlinks=False)
    if not may_go(base):
        raise _exists()
    if _exchange(folder, part, base) and not may_go(part):  # another took the name meanwhile, or it was written to
        _exchange_back(folder, part, base)
        raise _exists()
    _demand(fd, folder, base)


def _exchange(folder: int, name: str, base: str) -> bool:
    """Exchange the two names, and return True; where the system cannot, rename the first, in the place of the other.

    Raises OSError.
    """
    try:
        _renameat2(folder, name, base, RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        rename(folder, name, base)
        return False
    return True


def _exchange_back(folder: int, part: str, base: str) -> None:
    """Undo an exchange of the two names. Raises OSError."""
    try:
        _renameat2(folder, part, base, RENAME_EXCHANGE)
    except FileNotFoundError:  # somebody removed ours at once
        rename_to_free(folder, part, base)


def _demand(fd: int, folder: int, base: str) -> None:
    """Raises FileExistsError if the name is not the open file's: the temporary name was another's by then."""
    if not is_named(fd, folder, base):
        raise _exists()


def _exists() -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def is_named(fd: int, folder: int, base: str) -> bool:
    """Return whether the open file has the name `base` in the open folder."""
    try:
        return _has_name(fd, folder, base)
    except OSError:
        return False


def drop_name(fd: int, folder: int, name: str) -> None:
    """Remove a name of the open file. If it cannot be removed now, the next save removes it."""
    if is_named(fd, folder, name):
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)


def undo_naming(fd: int, folder: int, names: Mapping[str, str]) -> None:
    """Put the older file back in the place of the open one, or remove the open one if there was none.

    `names` are those of `FileSink.naming`. Raises FileExistsError if another file has the name by now, OSError.
    """
    base, part = names["base"], names["part"]
    drop_name(fd, folder, part)  # if it has both names, the temporary one is not the older file's
    try:
        if not _has_name(fd, folder, base):
            raise _exists()
    except FileNotFoundError:  # somebody has removed it
        return
    for name in (names["older"], part):  # after an exchange, the older file may still have the temporary name alone
        with suppress(FileNotFoundError):
            _put_back(fd, folder, name, base)
            return
    rename_to_free(folder, base, part)
    if not is_named(fd, folder, part):  # another file took the name between the two calls
        rename_to_free(folder, part, base)
        raise _exists()
    os.unlink(part, dir_fd=folder)


def _put_back(fd: int, folder: int, older: str, base: str) -> None:
    """Give the file `older` the name of the open one, which is removed. Raises FileNotFoundError if there is no file
    `older`, FileExistsError if `base` is another one's name by now, OSError."""
    if not _exchange(folder, older, base):
        return
    if not is_named(fd, folder, older):
        _exchange_back(folder, older, base)
        raise _exists()
    os.unlink(older, dir_fd=folder)


def take_back(fd: int, folder: int, names: Mapping[str, str]) -> None:
    """Do for a killed process what `FileSink.withdraw` does. Raises OSError."""
    drop_part(fd, folder, names)
    if is_named(fd, folder, names["base"]):
        undo_naming(fd, folder, names)
        sync_names(folder)


def keep(fd: int, folder: int, names: Mapping[str, str]) -> None:
    """Do for a killed process what a commit leaves to do: make the name durable, and let the older file go."""
    with suppress(OSError):
        sync_names(folder)
    drop_part(fd, folder, names)
    with suppress(OSError):
        os.unlink(names["older"], dir_fd=folder)


def drop_part(fd: int, folder: int, names: Mapping[str, str]) -> None:
    """Remove the temporary name for a killed process: of the new file, or of the older one after an exchange."""
    drop_name(fd, folder, names["part"])
    with suppress(OSError):
        older = os.open(names["older"], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            drop_name(older, folder, names["part"])
        finally:
            os.close(older)


def sweep(folder: int, base: str) -> None:
    """Remove temporary files that a killed save of `base` left: our files that no process has locked.

    A file that cannot be removed (its owner lives, or removed it first) does not prevent the save.
    """
    ours = re.compile(re.escape(f".{base}.") + r"[0-9a-f]+(\.older)?\.part")
    for name in os.listdir(folder):
        with suppress(OSError):
            if ours.fullmatch(name) and os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid == os.geteuid():
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=folder)
                finally:
                    os.close(fd)


def sync_names(folder: int) -> None:
    """Make names in the open folder durable, if its file system supports that. Raises OSError."""
    if_known(lambda: os.fsync(folder))


def if_known(call: Callable[[], None]) -> None:
    """Make a call that the system need not support. Raises OSError for other errors."""
    try:
        call()
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise


def _has_name(fd: int, folder: int, base: str) -> bool:
    """As `is_named`. Raises FileNotFoundError if no file has the name, OSError."""
    return os.path.samestat(os.stat(base, dir_fd=folder, follow_symlinks=False), os.fstat(fd))


def _renameat2(folder: int, name: str, new: str, flags: int) -> None:
    """Call renameat2(2), which Python does not offer. Raises OSError; ENOSYS where the C library lacks it."""
    import ctypes  # few files are replaced

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    number = errno.ENOSYS
    if call is not None:
        if call(folder, os.fsencode(name), folder, os.fsencode(new), flags) == 0:
            return
        number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
