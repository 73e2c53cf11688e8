"""A file that exists under its name only when it is whole.

The folder is reached once (place.py) and held. The bytes go to a file without a name (O_TMPFILE), so that whatever
kills us, kill -9 and power included, leaves nothing behind. `commit` makes them durable and only then names them:
fsync, link under a temporary name that nobody can guess, rename, fsync of the folder. The file that is replaced keeps a
second name until the new one stands for good. Where there are no nameless files, or none can be named (no /proc, no
linkat), the temporary name is there from the start; it is locked while in use, and one that nobody locks is swept by
the next save. What would fail at the end is looked for at the beginning (rehearsal.py).

What is only a help may be missing: advice on the cache, locks (then nothing is swept), and fsync of a folder, which
some network file systems do not know. Their names last as they themselves promise; the bytes are on the disk.

The pages are dropped from the host's cache behind the writer: a saved guest as large as the host's memory would
else push everyone's working set out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

from statepipe.descriptors import demand, named_by
from statepipe.ends.fd import FdSource, failure, write_all
from statepipe.ends.place import open_place
from statepipe.ends.rehearsal import Replaceable, refuse_impossible, shortened
from statepipe.errors import StatepipeError
from statepipe.stage import Buffer
from statepipe.threads import held
from statepipe.wakeups import READ_SIZE

DROP_WINDOW = 32 << 20
"""Bytes after which the written pages are sent to disk, and those of the window before are dropped."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What is wrong with a folder, or here, and not with files that have no name."""

_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.ENOTTY, errno.EPERM, errno.EACCES)
"""What a kernel, a file system or a sandbox says of a call that it does not know or allow."""


class FileSink:
    """Writes a new file at `path`, of that mode less the umask, replacing what was there only by `commit`.

    As a context manager it removes every trace on the way out unless committed. Raises StatepipeError.
    """

    def __init__(self, path: str, mode: int = 0o600, replaceable: Replaceable | None = None) -> None:
        self.name, self._mode = path, mode
        self.bytes = 0
        self._linked = False
        self._older: int | None = None
        try:
            self._folder, self._base = open_place(path)
        except (OSError, ValueError) as error:  # a NUL in it, say
            raise failure(f"create {path}", _as_os_error(error)) from error
        unguessed = os.urandom(6).hex()
        stem = shortened(self._base, self._folder, len(f"..{unguessed}.older.part"))
        self._part, self._older_name = f".{stem}.{unguessed}.part", f".{stem}.{unguessed}.older.part"
        try:
            refuse_impossible(path, self._base, self._folder, replaceable)
            sweep(self._folder, stem)
            self._fd = self._open()
        except BaseException as error:
            os.close(self._folder)
            if isinstance(error, OSError):
                raise failure(f"create {path}", error) from error
            raise

    def _open(self) -> int:
        fd = open_nameless(self._folder, self._mode) if self._can_name() else None
        if fd is None:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            fd = os.open(self._part, flags, self._mode, dir_fd=self._folder)
            self._linked = True
        _if_known(lambda: fcntl.flock(fd, fcntl.LOCK_EX))
        return fd

    def _can_name(self) -> bool:
        """Whether a nameless file gets a name here: tried with an empty one, which is gone at once. Raises OSError."""
        spare = open_nameless(self._folder)
        if spare is None:
            return False
        try:
            with held():  # a signal between the two would leave the name
                _link(spare, self._part, self._folder)
                os.unlink(self._part, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (*_UNKNOWN, errno.ENOENT):
                return False
            raise
        finally:
            with suppress(OSError):  # nothing is in it
                os.close(spare)
        return True

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
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, self.bytes, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Make the file durable and give it its name. Raises StatepipeError, and then there is no such file."""
        self.sync()
        try:
            if not self._linked:
                _link(self._fd, self._part, self._folder)
                self._linked = True
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

    def _sync_name(self) -> None:
        """A name that may not survive a crash is no name: take it away rather than promise it."""
        try:
            _sync(self._folder)
        except OSError:
            self._take_back()
            raise

    def withdraw(self) -> None:
        """Take the committed file away again, as another's verdict was no. Raises StatepipeError."""
        try:
            self._take_back()
            _sync(self._folder)
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


def open_nameless(folder: int, mode: int = 0o600) -> int | None:
    """A new file without a name in the open `folder`, or None where there is no such thing. Raises OSError."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        return None


def _link(fd: int, name: str, folder: int) -> None:
    """Give a nameless file its temporary name: a link cannot replace a file, a rename can.

    The folder of descriptors is there to have Python call linkat, which alone follows the link in /proc.
    """
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), name, src_dir_fd=descriptors, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(descriptors)


def _sync(folder: int) -> None:
    """Make names in the open folder durable, where its file system knows how. Raises OSError."""
    _if_known(lambda: os.fsync(folder))


def _if_known(call: Callable[[], None]) -> None:
    """A call that may be unknown here, which changes nothing for us. Raises OSError for what else goes wrong."""
    try:
        call()
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise


def _as_os_error(error: OSError | ValueError) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def sync_folder(folder: str) -> None:
    """Make a rename or unlink in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
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
    """Buffers from a file opened by name, from its beginning. Raises StatepipeError if it cannot be opened.

    Or from one that is open: `fd` is ours then, and the place that it stands at is not.
    """

    sealed: str | None = None

    def __init__(self, path: str, fd: int | None = None) -> None:
        self._at, self._is_shared = 0, fd is not None
        try:
            if fd is None:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
        except OSError as error:
            raise failure(f"open {path}", error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StatepipeError(f"{path} is not a regular file", hint="a saved state is read at both its ends")
        with suppress(OSError):  # which is a hint
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        super().__init__(fd, path)

    def again(self) -> FileSource:
        """The same file from its beginning, however far this has been read. Raises StatepipeError."""
        try:
            return FileSource(self.name, fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as error:
            raise failure(f"open {self.name} again", error) from error

    def _take(self) -> bytes:
        """By position where others may move the descriptor; else its own tells who looks (fdinfo) how far it is."""
        buffer = os.pread(self.fd, READ_SIZE, self._at) if self._is_shared else os.read(self.fd, READ_SIZE)
        self._at += len(buffer)
        return buffer

    @property
    def expected(self) -> int:
        """Bytes from here to the end."""
        return self.size() - self._at

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
        """The same: what lies on the disk is what it gives (state/sealed.py)."""
        return self.size()

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)
        super().__exit__(*error)


class AnyFile(FdSource):
    """Buffers from what is opened by name, a pipe or a device too. Raises StatepipeError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        fd = named_by(path)
        if fd is not None:
            demand(fd)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except (OSError, ValueError) as error:  # a NUL in it
            raise failure(f"open {path}", _as_os_error(error)) from error
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise StatepipeError(f"{path} is a folder", hint=f"for a folder: tar -c {path} | statepipe …")
        super().__init__(fd, path)

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)
        super().__exit__(*error)
