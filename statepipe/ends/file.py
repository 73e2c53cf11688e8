"""A file that exists under its name only when it is whole.

The folder is reached once (place.py) and held. The bytes go to a file without a name (O_TMPFILE), so that whatever
kills us, kill -9 and power included, leaves nothing behind. `commit` makes them durable and only then names them:
fsync, link under a temporary name that nobody can guess, rename, fsync of the folder. The file that is replaced keeps a
second name until the new one stands for good. Where the file system has no nameless files, the temporary name is there
from the start; it is locked while in use, and one that nobody locks is swept by the next save.

The pages are dropped from the host's cache behind the writer: a saved guest as large as the host's memory would
else push everyone's working set out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress

from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.ends.place import open_place
from statepipe.errors import StatepipeError
from statepipe.stage import Buffer

DROP_WINDOW = 32 << 20
"""Bytes after which the written pages are sent to disk, and those of the window before are dropped."""

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class FileSink:
    """Writes a new file at `path`, mode 0600, replacing what was there only by `commit`.

    As a context manager it removes every trace on the way out unless committed. Raises StatepipeError.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self.bytes = 0
        self._linked = False
        self._older: int | None = None
        try:
            self._folder, self._base = open_place(path)
        except (OSError, ValueError) as error:  # a NUL in it, say
            raise failure(f"create {path}", _as_os_error(error)) from error
        unguessed = os.urandom(6).hex()
        self._part, self._older_name = f".{self._base}.{unguessed}.part", f".{self._base}.{unguessed}.older.part"
        try:
            _refuse_special(path, self._base, self._folder)
            sweep(self._folder, self._base)
            self._fd = self._open()
        except BaseException as error:
            os.close(self._folder)
            if isinstance(error, OSError):
                raise failure(f"create {path}", error) from error
            raise

    def _open(self) -> int:
        fd = open_nameless(self._folder)
        if fd is None:
            fd = os.open(self._part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
            self._linked = True
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def __enter__(self) -> FileSink:
        return self

    def __exit__(self, *error: object) -> None:
        """Uncommitted bytes vanish with the descriptor, or with the temporary name.

        What close says counts for nothing: of what was committed fsync has told, and nobody waits for the rest.
        """
        with suppress(OSError):  # what cannot be removed now, the next save sweeps
            if self._linked:
                os.unlink(self._part, dir_fd=self._folder)
        self._linked = False
        self._forget_older()
        with suppress(OSError):
            os.close(self._fd)
        os.close(self._folder)

    def write(self, buffer: Buffer) -> None:
        """Append it. Raises StatepipeError (disk full, quota, error of the device)."""
        before = self.bytes // DROP_WINDOW
        try:
            self.bytes += write_all(self._fd, buffer)
            if self.bytes // DROP_WINDOW != before:
                self._drop()
        except OSError as error:
            raise failure(f"write {self.name} at byte {self.bytes}", error) from error

    def _drop(self) -> None:
        """Starts the write-out of the newest window and frees those already on disk, without waiting."""
        os.posix_fadvise(self._fd, 0, self.bytes, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Make the file durable and give it its name. Raises StatepipeError, and then there is no such file."""
        self.sync()
        try:
            if not self._linked:
                self._link()
            self._keep_older()
            os.rename(self._part, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._linked = False
            self._sync_name()
        except OSError as error:
            raise failure(f"complete {self.name}", error) from error

    def sync(self) -> None:
        """Wait until all that was written is on the disk: the long part of a commit. Raises StatepipeError."""
        try:
            os.fsync(self._fd)
            self._drop()
        except OSError as error:
            raise failure(f"complete {self.name}", error) from error

    def _link(self) -> None:
        """Give the nameless file its temporary name: a link cannot replace a file, a rename can.

        The folder's descriptor is there to have Python call linkat, which alone follows the link in /proc.
        """
        descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(self._fd), self._part, src_dir_fd=descriptors, dst_dir_fd=self._folder, follow_symlinks=True)
        finally:
            os.close(descriptors)
        self._linked = True

    def _sync_name(self) -> None:
        """A name that may not survive a crash is no name: take it away rather than promise it."""
        try:
            os.fsync(self._folder)
        except OSError:
            self._take_back()
            raise

    def withdraw(self) -> None:
        """Take the committed file away again, as another's verdict was no. Raises StatepipeError."""
        try:
            self._take_back()
            os.fsync(self._folder)
        except OSError as error:
            raise failure(f"take back {self.name}", error) from error

    def _keep_older(self) -> None:
        """Give the file that is about to be replaced a second name, locked against sweeping.

        Where that is not possible (another's file, a file system without links) there will be nothing to put back.
        """
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._older = os.open(self._base, flags, dir_fd=self._folder)
            fcntl.flock(self._older, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.link(
                self._base,
                self._older_name,
                src_dir_fd=self._folder,
                dst_dir_fd=self._folder,
                follow_symlinks=False,
            )

    def _take_back(self) -> None:
        """Undo the rename: the older file is back, or there is none."""
        try:
            os.rename(self._older_name, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileNotFoundError:
            os.unlink(self._base, dir_fd=self._folder)

    def _forget_older(self) -> None:
        if self._older is not None:
            with suppress(OSError):
                os.unlink(self._older_name, dir_fd=self._folder)
            with suppress(OSError):
                os.close(self._older)
            self._older = None


def open_nameless(folder: int) -> int | None:
    """A new file without a name in the open `folder`, or None where the file system has none. Raises OSError."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise


def _as_os_error(error: OSError | ValueError) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _refuse_special(name: str, base: str, folder: int) -> None:
    """A rename would put a file in the place of a device, and cannot put one in the place of a folder."""
    try:
        mode = os.stat(base, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise StatepipeError(f"{name} is not a regular file", hint="name a file; a new one will be made")


def sync_folder(folder: str) -> None:
    """Make a rename or unlink in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep(folder: int, base: str) -> None:
    """Remove temporary files of a save of `base` that was killed: those of ours that no process holds locked.

    What cannot be removed (its owner lives, or was quicker) is no reason not to save.
    """
    ours = re.compile(re.escape(f".{base}.") + r"[0-9a-f]+(\.older)?\.part")
    for name in os.listdir(folder):
        if ours.fullmatch(name):
            with suppress(OSError):
                _sweep_one(folder, name)


def _sweep_one(folder: int, name: str) -> None:
    if os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid != os.geteuid():
        return
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)


class FileSource(FdSource):
    """Buffers from a file opened by name, from its beginning. Raises StatepipeError if it cannot be opened."""

    sealed: str | None = None

    def __init__(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
        except OSError as error:
            raise failure(f"open {path}", error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StatepipeError(f"{path} is not a regular file", hint="a saved state is read at both its ends")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        super().__init__(fd, path)

    def tail(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, without moving the reading position. Raises StatepipeError."""
        try:
            return os.pread(self.fd, size, offset)
        except OSError as error:
            raise failure(f"read {self.name}", error) from error

    def size(self) -> int:
        """The file's size in bytes."""
        return os.fstat(self.fd).st_size

    def stored(self) -> int:
        """The same: what lies on the disk is what it gives (ends/sealed.py)."""
        return self.size()

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)
        super().__exit__(*error)
