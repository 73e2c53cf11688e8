"""A file that exists under its name only when it is complete.

The folder is opened once (place.py) and held. The bytes go to a file without a name (O_TMPFILE), so that nothing is
left behind if we are killed or the power fails. `commit` makes the bytes durable and only then gives them a name:
fsync, the name (naming.py has the ways), fsync of the folder. If the system has no nameless files, or cannot name them
(no /proc, no linkat), the file has an unpredictable temporary name from the start. That name is locked while in use,
and the next save removes one that is not locked. Conditions that would make the commit fail are checked at the
beginning (rehearsal.py).

Optional features may be missing: advice on the cache, locks (then no old temporary file is removed), and fsync of a
folder, which some network file systems do not support. Then a name is as durable as that file system makes it, and
the bytes are on the disk.

Written pages are dropped from the host's cache, because a saved guest as large as the host's memory would otherwise
displace the working set of every program.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from statepipe.ends.fd import as_os_error, failure, write_all
from statepipe.ends.naming import (
    UNKNOWN,
    drop_name,
    if_known,
    is_named,
    link,
    link_nameless,
    rename,
    replace,
    sweep,
    sync_names,
    take_free,
    undo_naming,
)
from statepipe.ends.place import open_place
from statepipe.ends.rehearsal import (
    Replaceable,
    Seen,
    exists,
    look_at,
    open_there,
    refuse_impossible,
    refuse_there,
    shortened,
)
from statepipe.ends.source import FileSource
from statepipe.errors import StatepipeError
from statepipe.stage import Buffer
from statepipe.threads import held
from statepipe.typed import Any

DROP_WINDOW = 32 << 20
"""Bytes after which the written pages are sent to disk, and those of the previous window are dropped."""

NAMINGS = 10
"""Times that a file is given a name which others take and leave at the same moment, when any file may be replaced."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors about the folder or this process, and not about files without a name."""


class FileSink:
    """Writes a new file at `path` with `mode` minus the umask. Only `commit` replaces an existing file.

    Without `replaceable`, any regular file is replaced. With it, only the file that is there now, if `replaceable`
    allows that by its first bytes; if another file has the name at the end, the commit fails.

    The context manager removes the new file at its exit unless it was committed. Raises StatepipeError.
    """

    def __init__(self, path: str, mode: int = 0o600, replaceable: Replaceable | None = None) -> None:
        self.name, self.bytes = path, 0
        self._linked = self._keeps_older = False
        self._older: int | None = None
        self._seen: Seen | None = None
        self._replaceable = replaceable
        try:
            self._folder, self._base = open_place(path)
        except (OSError, ValueError) as error:  # a NUL in it, say
            raise failure(f"create {path}", as_os_error(error)) from error
        unguessed = os.urandom(6).hex()
        stem = shortened(self._base, self._folder, len(f"..{unguessed}.older.part"))
        self._part, self._older_name = f".{stem}.{unguessed}.part", f".{stem}.{unguessed}.older.part"
        try:
            if replaceable is not None:
                self._seen = look_at(self._base, self._folder)
            refuse_impossible(path, self._base, self._folder, replaceable)
            sweep(self._folder, stem)
            fd = open_nameless(self._folder, mode) if self._can_name() else None
            self._linked = fd is None
            self._fd = self._open_named(mode) if fd is None else fd
        except BaseException as error:
            if self._seen is not None:
                os.close(self._seen.fd)
            os.close(self._folder)
            if isinstance(error, OSError):
                raise failure(f"create {path}", error) from error
            raise

    def _can_name(self) -> bool:
        """Return whether a nameless file can get a name here, tested with an empty one. Raises OSError."""
        spare = open_nameless(self._folder)
        if spare is None:
            return False
        try:
            with held():  # a signal between the two would leave the name
                link_nameless(spare, self._part, self._folder)
                os.unlink(self._part, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (*UNKNOWN, errno.ENOENT):
                return False
            raise
        finally:
            with suppress(OSError):  # the file is empty
                os.close(spare)
        return True

    def _open_named(self, mode: int) -> int:
        """Open a new file with the temporary name, and lock it. Raises OSError."""
        while True:
            fd = os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self._folder)
            try:
                if_known(partial(fcntl.flock, fd, fcntl.LOCK_EX))
                if os.fstat(fd).st_nlink:
                    return fd
            except BaseException:
                drop_name(fd, self._folder, self._part)
                os.close(fd)
                raise
            os.close(fd)  # another save has swept it before it was locked

    def refuse_older(self, refused: Callable[[FileSource], str | None]) -> None:
        """Raises UsageError if `refused` says why the file that this one is to replace must stay. It is not asked where
        any file may be replaced, nor about one that appears later: that is never replaced."""
        older = None if self._seen is None else open_there(self._base, self._folder)
        if older is not None:
            with FileSource(self.name, older) as file:
                if (why := refused(file)) is not None:
                    raise exists(self.name, why)

    def __enter__(self) -> FileSink:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove uncommitted bytes, with the descriptor or with the temporary name.

        Errors of close are ignored: fsync has reported those of a committed file, and other bytes are not needed.
        """
        if self._linked:
            drop_name(self._fd, self._folder, self._part)
        self._linked = False
        if not self._keeps_older:
            with suppress(OSError):  # mostly, there is none
                os.unlink(self._older_name, dir_fd=self._folder)
        if self._older is not None:
            with suppress(OSError):
                os.close(self._older)
            self._older = None
        if self._seen is not None:
            os.close(self._seen.fd)
            self._seen = None
        with suppress(OSError):
            os.close(self._fd)
        os.close(self._folder)

    def write(self, buffer: Buffer) -> None:
        """Append the buffer. Raises StatepipeError (disk full, quota, error of the device)."""
        try:
            self.wrote(write_all(self._fd, buffer))
        except OSError as error:
            raise self.lost(error) from error

    @property
    def fd(self) -> int:
        """The new file's descriptor."""
        return self._fd

    def wrote(self, count: int) -> None:
        """Count bytes that were written to `fd`."""
        before = self.bytes // DROP_WINDOW
        self.bytes += count
        if self.bytes // DROP_WINDOW != before:
            self._drop()

    def lost(self, error: OSError) -> StatepipeError:
        """Return the error for an OSError of a write."""
        return failure(f"write {self.name} at byte {self.bytes}", error)

    def _drop(self) -> None:
        """Starts the write-out of the newest window and frees those already on disk, without waiting."""
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, self.bytes, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Make the file durable and give it its name. Raises StatepipeError, and then the file does not exist, or the
        hint says that it could not be taken back."""
        self.sync()
        try:
            self._take_name()
            sync_names(self._folder)
        except OSError as error:
            told = failure(f"complete {self.name}", error)
            if is_named(self._fd, self._folder, self._base):  # a name that might not survive a crash
                with suppress(OSError):
                    self._take_back()
                told.advise(self._left(), first=True)
            raise told from error

    def _link(self) -> None:
        """Give the file its temporary name, unless it has it. Raises OSError."""
        if not self._linked:
            link_nameless(self._fd, self._part, self._folder)
            self._linked = True

    def _take_name(self) -> None:
        """Give the file its name, in the place of one that may be replaced or of none.

        Raises UsageError if a file that may not be replaced has the name, StatepipeError, OSError.
        """
        for left in reversed(range(NAMINGS)):
            is_free = refuse_there(self.name, self._base, self._folder, self._replaceable) is None
            try:
                if is_free or (self._seen is None and self._replaceable is not None) or not self._replace():
                    take_free(self._fd, self._folder, self._part, self._base, has_part=self._linked)
                break
            except FileExistsError as error:
                if self._replaceable is not None:
                    raise exists(self.name, self._what_is_there()) from error
                if not left:
                    raise
        self._linked = False

    def _what_is_there(self) -> str:
        """Return what is known of the file that may not be replaced."""
        if self._seen is not None and is_named(self._seen.fd, self._folder, self._base):
            return "it was changed since the beginning"
        return "it was not there at the beginning"

    def _replace(self) -> bool:
        """Take the name of a file that may be replaced; return False if no file has that name. Raises FileExistsError,
        OSError."""
        self._link()
        self._keep_older()
        try:
            replace(self._fd, self._folder, self._part, self._base, self._may_go)
        except FileNotFoundError:
            return False
        with suppress(OSError):  # it was renamed, or cannot be kept
            rename(self._folder, self._part, self._older_name)  # does nothing if it has that name, too
        with suppress(OSError):
            os.unlink(self._part, dir_fd=self._folder)
        return True

    def _may_go(self, name: str) -> bool:
        """Return whether the file with this name may be replaced: any regular one, or the one that was there at the
        beginning if it is what it was then. Raises OSError."""
        if self._replaceable is None:
            return stat.S_ISREG(os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode)
        seen = self._seen
        return seen is not None and is_named(seen.fd, self._folder, name) and seen == Seen.of(seen.fd)

    def sync(self) -> None:
        """Wait until all bytes are on the disk: the long part of a commit. Raises StatepipeError."""
        try:
            os.fsync(self._fd)
            self._drop()
        except OSError as error:
            raise failure(f"complete {self.name}", error) from error

    def withdraw(self) -> None:
        """Remove the committed file, because another part of the work failed. Raises StatepipeError."""
        try:
            self._take_back()
            sync_names(self._folder)
        except OSError as error:
            told = failure(f"take back {self.name}", error)
            told.advise(self._left(), first=True)
            raise told from error

    def naming(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Return what another process needs to tell whether the file has its name (`is_named`), and to take it back
        (`take_back`): names and descriptors, which it must duplicate. It keeps the older file locked for us: then no
        other save removes its second name."""
        self._lock_older()
        fds = {"file": self._fd, "place": self._folder}
        return self._names, fds if self._older is None else fds | {"older": self._older}

    @property
    def _names(self) -> dict[str, str]:
        return {"base": self._base, "part": self._part, "older": self._older_name}

    @property
    def folder(self) -> int:
        """The descriptor of the folder that has, or will have, the file."""
        return self._folder

    def _lock_older(self) -> None:
        """Open the file that will be replaced, and lock it so that no save removes its second name. If that is
        impossible (another user's file, no locks), we go on without."""
        if self._older is not None:
            if is_named(self._older, self._folder, self._base):
                return
            os.close(self._older)
            self._older = None
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._older = os.open(self._base, flags, dir_fd=self._folder)
            fcntl.flock(self._older, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _keep_older(self) -> None:
        """Give the file that will be replaced a second name. Without links, an exchange of the names keeps it."""
        self._lock_older()
        with suppress(OSError):
            link(self._folder, self._base, self._older_name)

    def _take_back(self) -> None:
        """Raises OSError; if the new file still has its name then, the older one keeps its second name."""
        try:
            undo_naming(self._fd, self._folder, self._names)
        except OSError:
            self._keeps_older = is_named(self._fd, self._folder, self._base)
            raise

    def _left(self) -> str | None:
        """Return what to do about a file that could not be taken back; None if it was."""
        if not is_named(self._fd, self._folder, self._base):
            return None
        older = os.path.join(os.path.dirname(self.name), self._older_name)
        if os.path.lexists(older):
            command = f"mv {shlex.quote(older)} {shlex.quote(self.name)}"
            return f"{self.name} could not be taken back: put the older file in its place, with: {command}"
        return f"{self.name} could not be taken back: remove it"


def write_private(path: str, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all. Raises StatepipeError."""
    with FileSink(path) as sink:
        sink.write(data)
        sink.commit()


def open_nameless(folder: int, mode: int = 0o600) -> int | None:
    """Open a new file without a name in the open `folder`; None if the system has no such files. Raises OSError."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        return None


def sync_folder(folder: str) -> None:
    """Make a rename or unlink in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_names(fd)
    finally:
        os.close(fd)
