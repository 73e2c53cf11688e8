"""Hand a save image to libvirt through a FIFO, however often it opens it before it reads on.

libvirt 9.0 opens the image once, reads its beginning (header, XML, cookie), and lets QEMU read on. Later versions (11.3
and 12.9 do) read the beginning, close the image, and open it a second time. What was read from a FIFO is gone, so each
open finds a FIFO of its own:

1. A FIFO at the path holds the first byte. Its pipe has room for one piece and is full, so it becomes writable exactly
   when libvirt has read that byte: then libvirt has it open.
2. Only then does the next FIFO take its name, and only after that the rest of the beginning is written. libvirt waits
   for it, so it cannot open the same FIFO twice.
3. The first piece of the stream is written when all of the beginning has been read. The reader that reads it, too, gets
   the stream. If the reader has closed its FIFO, everything begins again in the next one.

No step waits for a time, but libvirt must open the image within LATEST. A reader whose stream has no end mark refuses
it, so nothing runs if we are killed.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
from contextlib import suppress
from typing import NamedTuple, Self

from statepipe.ends.fd import failure, reader_gone
from statepipe.errors import ReaderGone, StatepipeError
from statepipe.libvirt.folders import claim, own_path
from statepipe.libvirt.virsh import LibvirtSilent
from statepipe.libvirt.work import LATEST
from statepipe.stage import Buffer
from statepipe.wakeups import enlarge_pipe

OPENS = 16
"""Most times that the image is opened before its stream is read: libvirt 12.9 opens it twice."""

IMAGE = "image"
"""The FIFO's name in its folder."""

FIRST = 1
"""Bytes that a FIFO holds before it is opened."""

PIECE = 4096
"""Bytes of the stream that are written to a reader that may go away: they fit into the one slot of a small pipe."""


_MAKE = "make a folder for libvirt's FIFO"


class Withdrawn(ReaderGone):
    """The program that has the image read ended before all of it was read."""


class Fifo(NamedTuple):
    """Both ends of a FIFO. We read it, too: so no open of it waits for the other end, and what is in it stays there."""

    reading: int
    writing: int


class Offer:
    """A sink for QEMU's stream, which libvirt reads from the FIFO at `path` behind `beginning`. `bytes` counts the
    stream's alone.

    `ended` is to be a descriptor that becomes readable when virsh has ended, which is started when the offer is there.
    Entering makes `folder`, which is only ours; leaving removes it with all that is in it. `lock` keeps others from
    sweeping it. Raises StatepipeError.
    """

    def __init__(self, beginning: bytes) -> None:
        self.bytes = 0
        self.ended: int | None = None
        self._beginning = memoryview(beginning)
        self._taken = -1
        self._next = Fifo(-1, -1)
        self.lock = -1
        try:
            self.folder = own_path("load")
        except OSError as error:
            raise failure(_MAKE, error) from error
        self.path = os.path.join(self.folder, IMAGE)

    def __enter__(self) -> Self:
        try:
            self.lock = claim(self.folder)
        except OSError as error:
            raise failure(_MAKE, error) from error
        try:
            self._next = self._place()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Withdraw it, and close and remove what is left."""
        self.withdraw()
        self._close(self._next.reading)
        self._next = Fifo(-1, -1)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._close(self.lock)
        self.lock = -1

    def put(self, name: str, data: bytes) -> str:
        """Write a file for virsh into the folder, and return its path. Raises StatepipeError."""
        path = os.path.join(self.folder, name)
        try:
            with open(path, "xb") as file:
                file.write(data)
        except OSError as error:
            raise failure(f"write {path}", error) from error
        return path

    def write(self, buffer: Buffer) -> None:
        """Write the whole buffer; the first waits until libvirt reads the stream.

        Raises Withdrawn if virsh ends before all is written, ReaderGone if libvirt closes the stream, LibvirtSilent if
        it never opens the image, StatepipeError.
        """
        left = memoryview(buffer).cast("B")
        if self._taken < 0:
            self._taken = self._hand(left[:PIECE])
            self.bytes += len(left[:PIECE])
            left = left[PIECE:]
            enlarge_pipe(self._taken)
        if not self._write(self._taken, left):
            raise reader_gone(f"the image at {self.path}")
        self.bytes += len(left)

    def commit(self) -> None:
        """End the stream, all of which is written."""
        self.withdraw()

    def withdraw(self) -> None:
        """End the stream where it is, and let nobody open it any more. A second call does nothing."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # first: an open from now on is refused
        self._close(self._taken)
        self._close(self._next.writing)
        self._taken, self._next = -1, self._next._replace(writing=-1)

    def wake(self) -> None:
        """Wake an open that was under way while the offer was withdrawn."""
        if self._next.reading >= 0:
            wake(self._next.reading)

    # --- from one reader to the next

    def _hand(self, piece: memoryview) -> int:
        """Return the descriptor whose reader has read the first piece of the stream. Raises StatepipeError."""
        for _ in range(OPENS):
            if (writing := self._serve(piece)) is not None:
                return writing
        what = f"libvirt opened the image {OPENS} times and did not read the guest's state"
        raise StatepipeError(what, hint="report this, with the versions that virsh version prints")

    def _serve(self, piece: memoryview) -> int | None:
        """Wait for a reader, and give it the beginning and the piece. Return the descriptor to it; None if it closes
        the FIFO before it has read them. Raises StatepipeError."""
        reading, writing = self._next
        self._wait(writing, LATEST)
        self._next = self._place()
        os.close(reading)  # from now on we are told when libvirt, the only reader, closes it
        rest = self._beginning[FIRST:]
        if all(self._write(writing, part) and self._is_read(writing) for part in (rest, piece)):
            return writing
        os.close(writing)
        return None

    def _place(self) -> Fifo:
        """Put a new FIFO with the first byte in it at the path, over the one that libvirt has open. Raises
        StatepipeError."""
        new = f"{self.path}.new"
        reading = writing = -1
        try:
            os.mkfifo(new, 0o600)
            reading = os.open(new, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            writing = os.open(new, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIECE)
            if size > os.sysconf("SC_PAGE_SIZE"):
                raise StatepipeError(f"the smallest pipe of this kernel has {size} bytes, which is more than a page")
            os.write(writing, self._beginning[:FIRST])
            os.rename(new, self.path)
        except BaseException as error:
            self._close(reading)
            self._close(writing)
            if isinstance(error, OSError):
                raise failure(f"offer the state at {self.path}", error) from error
            raise
        return Fifo(reading, writing)

    def _write(self, writing: int, data: memoryview) -> bool:
        """Write all of it; return False if the reader has closed the FIFO. Raises Withdrawn, StatepipeError.

        Without virsh, libvirt could not be asked what became of the domain: so its end counts before each write.
        """
        while data:
            self._wait(writing)
            try:
                data = data[os.write(writing, data) :]
            except BlockingIOError:  # it has room, but not for a piece of a page
                continue
            except BrokenPipeError:
                return False
            except OSError as error:
                raise failure(f"write the image at {self.path}", error) from error
        return True

    def _is_read(self, writing: int) -> bool:
        """Wait until what is in the FIFO was read; return False if its reader has closed it. Raises Withdrawn."""
        return not self._wait(writing) & select.POLLERR

    def _wait(self, writing: int, within: float | None = None) -> int:
        """Return what poll() reports of a descriptor, once there is something. Raises Withdrawn, and LibvirtSilent if
        there is nothing within so many seconds (None: without limit)."""
        poll = select.poll()
        poll.register(writing, select.POLLOUT)
        if self.ended is not None:
            poll.register(self.ended, select.POLLIN)
        seen = dict(poll.poll(None if within is None else within * 1000))
        if not seen:
            what = f"libvirt has not opened the image after {within:g} s"
            raise LibvirtSilent(what, hint="is libvirtd at work? see: systemctl status libvirtd")
        if self.ended in seen:
            raise Withdrawn(f"virsh ended before libvirt had read the image at {self.path}")
        return seen[writing]

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            os.close(fd)


def wake(reading: int) -> None:
    """Let each open of a FIFO return that waits for a writer, and would for ever: one comes and goes. `reading` is a
    descriptor of the FIFO, which need not have a name any more."""
    os.close(os.open(f"/proc/self/fd/{reading}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
