"""Write a FILE given by name: a new file that gets its name when it is complete, an object that is there when it is
complete, or an open descriptor.

`/dev/stdout`, `/dev/fd/3` and links to them do not name a file, but something that the caller opened, such as a log
that already has content. We write at its current position: nothing is truncated or replaced, and nothing can be taken
back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from statepipe.descriptors import demand, named_by
from statepipe.ends.fd import FdSink, failure
from statepipe.ends.file import FileSink
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import UsageError
from statepipe.objectstore.scheme import is_address, local_path
from statepipe.stage import Buffer
from statepipe.telling import Tell, nobody
from statepipe.typed import Any, Protocol, Self, runtime_checkable


class DescriptorSink(FdSink):
    """Writes to a descriptor of the caller. Raises UsageError unless it is open for writing.

    A reader gets the bytes as they come; our exit status reports whether all of them came.
    """

    def __init__(self, path: str, fd: int) -> None:
        demand(fd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise UsageError(f"{path} is not open for writing", hint=f"open it in the shell, for example: {fd}> FILE")
        super().__init__(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), path)

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # `sync` has reported the errors that matter
            os.close(self.fd)

    def sync(self) -> None:
        """Wait until the bytes are on the disk, if it is a file. Raises StatepipeError."""
        try:
            if stat.S_ISREG(os.fstat(self.fd).st_mode):
                os.fsync(self.fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise failure(f"complete {self.name}", error) from error

    def commit(self) -> None:
        """Does nothing: `sync` did it all."""
        self.sync()

    def withdraw(self) -> None:
        """Does nothing: written bytes cannot be taken back, and the exit status reports the failure."""


class Output(Protocol):
    """What a FILE becomes: it is there after `commit`, and then `withdraw` removes it. `sync` is the long part of a
    commit. Leaving the context without a commit undoes what can be undone."""

    name: str
    bytes: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, buffer: Buffer) -> None: ...

    def sync(self) -> None: ...

    def commit(self) -> None: ...

    def withdraw(self) -> None: ...


@runtime_checkable
class Claimable(Output, Protocol):
    """An output that another process can keep or take back, which hears of it by `naming`: names, and descriptors that
    it must duplicate."""

    def naming(self) -> tuple[dict[str, Any], dict[str, int]]: ...


@runtime_checkable
class Measuring(Protocol):
    """An output that asks once, after the first bytes, about how many will come; None: nobody knows."""

    measure: Callable[[], int | None]


def new_output(
    path: str,
    mode: int = 0o600,
    replaceable: Replaceable | None = None,
    *,
    overwrite: bool = False,
    tell: Tell = nobody,
) -> Output:
    """Begin to write the output that `path` names; a new file has `mode` minus the umask. Raises StatepipeError.

    `replaceable` decides by the first bytes of an existing file whether it may be replaced; None: any may be. An object
    replaces none, unless `overwrite`; `tell` hears how its upload goes.
    """
    if is_address(path):
        local = local_path(path)
        if local is None:
            from statepipe.ends.objects import new_object

            return new_object(path, overwrite=overwrite, tell=tell)
        path = local
    fd = named_by(path)
    return FileSink(path, mode, replaceable) if fd is None else DescriptorSink(path, fd)
