"""Where a FILE that somebody names is written: a new file that takes its name when whole, or an open descriptor.

`/dev/stdout`, `/dev/fd/3` and links to them are no names for a file: they stand for what the caller has opened, a log
perhaps, with what others have written before it. That is written on, where it stands: nothing of it is cut off or
replaced, and nothing can be taken back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress

from statepipe.descriptors import demand, named_by
from statepipe.ends.fd import FdSink, failure
from statepipe.ends.file import FileSink
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import UsageError


class DescriptorSink(FdSink):
    """Writes to a descriptor of the caller's. Raises UsageError unless it is open for writing.

    A reader has it as it comes; that all of it came, our exit status says.
    """

    def __init__(self, path: str, fd: int) -> None:
        demand(fd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise UsageError(f"{path} is not open for writing", hint=f"for example: {fd}> FILE")
        super().__init__(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), path)

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what counts, `sync` has told
            os.close(self.fd)

    def sync(self) -> None:
        """Wait until it is on the disk, if it goes there. Raises StatepipeError."""
        try:
            if stat.S_ISREG(os.fstat(self.fd).st_mode):
                os.fsync(self.fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise failure(f"complete {self.name}", error) from error

    def commit(self) -> None:
        """Nothing more to do than `sync`."""
        self.sync()

    def withdraw(self) -> None:
        """What left, left: the exit status says that it does not count."""


Output = FileSink | DescriptorSink


def new_output(path: str, mode: int = 0o600, replaceable: Replaceable | None = None) -> Output:
    """Begin to write what `path` names; a new file has that mode, less the umask. Raises StatepipeError.

    Of a file that is there, `replaceable` tells by its beginning whether it may be replaced; None: any may be.
    """
    fd = named_by(path)
    return FileSink(path, mode, replaceable) if fd is None else DescriptorSink(path, fd)
