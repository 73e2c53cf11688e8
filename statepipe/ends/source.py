"""Files that are read: a state, from its beginning and at its end, or whatever a path names."""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
from contextlib import suppress

from statepipe.descriptors import demand, demand_readable, named_by
from statepipe.ends.fd import FdSource, as_os_error, failure
from statepipe.errors import StatepipeError
from statepipe.wakeups import READ_SIZE


class FileSource(FdSource):
    """Buffers from a file opened by name, from its beginning. Raises StatepipeError if it cannot be opened.

    With `fd`, the file is already open: the descriptor is ours then, but its position is shared.
    """

    sealed: str | None = None

    def __init__(self, path: str, fd: int | None = None) -> None:
        self._at, self._is_shared = 0, fd is not None
        try:
            if fd is None:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
        except OSError as error:
            raise failure(f"open {path}", error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StatepipeError(
                f"{path} is not a regular file",
                hint="give a regular file: a saved state is read at its beginning and its end",
            )
        with suppress(OSError):  # this is only a hint
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        super().__init__(fd, path)

    def again(self) -> FileSource:
        """Open the same file again from its beginning. Raises StatepipeError."""
        try:
            return FileSource(self.name, fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as error:
            raise failure(f"open {self.name} again", error) from error

    def _take(self) -> bytes:
        """Read by position if others can move the descriptor; else move it, so that fdinfo shows the progress."""
        buffer = os.pread(self.fd, READ_SIZE, self._at) if self._is_shared else os.read(self.fd, READ_SIZE)
        self._at += len(buffer)
        return buffer

    @property
    def expected(self) -> int:
        """Return the bytes from here to the end."""
        return self.size() - self._at

    def tail(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`, or fewer at the end of the file, without moving the reading position.

        Raises StatepipeError.
        """
        try:
            data = os.pread(self.fd, size, offset)
            while 0 < len(data) < size:  # a disk error follows, or the end
                if not (more := os.pread(self.fd, size - len(data), offset + len(data))):
                    break
                data += more
            return data
        except OSError as error:
            raise failure(f"read {self.name}", error) from error

    def size(self) -> int:
        """Return the file's size in bytes."""
        return os.fstat(self.fd).st_size

    def stored(self) -> int:
        """Return `size`: the bytes that are read are those on the disk (unlike in state/sealed.py)."""
        return self.size()

    def has_name(self) -> bool:
        """Return False once the file was removed, or another one has taken its name."""
        return os.fstat(self.fd).st_nlink > 0

    @property
    def beside(self) -> str:
        """The path to which the names of files that belong to it are added."""
        return self.name

    def doubt(self, offset: int, size: int) -> bool:
        """Return False: what a disk has returned, it returns again."""
        return False

    def give_up(self) -> None:
        """Do nothing: nobody waits for a disk for long."""

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)
        super().__exit__(*error)


class AnyFile(FdSource):
    """Buffers from a file, a pipe or a device opened by name. Raises StatepipeError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        fd = named_by(path)
        if fd is not None:
            demand(fd)
            demand_readable(fd, path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except (OSError, ValueError) as error:  # a NUL in it
            raise failure(f"open {path}", as_os_error(error)) from error
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            hint = f"pipe a folder through tar: tar -c {shlex.quote(path)} | statepipe …"
            raise StatepipeError(f"{path} is a folder", hint=hint)
        super().__init__(fd, path)

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)
        super().__exit__(*error)
