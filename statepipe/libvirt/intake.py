"""Take a save image from libvirt through two FIFOs, and be the one who decides whether libvirt commits it.

`virsh save NAME PATH` writes an image in two steps. libvirt opens PATH and writes the beginning, whose magic says
"unfinished", and QEMU's stream; it closes PATH. Then it opens PATH again and writes the header once more, with the
magic of a finished image. If that succeeds, it ends the guest; if not, the guest runs on. So the second open is a
question, and the 92 bytes that were read are the answer "yes".

A FIFO alone cannot say "no": 92 bytes fit into its pipe before anybody reads them. So there are two.

1. The first FIFO is at PATH and is open for reading, so libvirt's open never waits. Its pipe has one page, which
   libvirt fills with the XML: until we have read something, libvirt cannot come to its second open.
2. The second FIFO is open for reading as well, and its pipe is full of bytes of ours. When the first bytes of the image
   arrive, it takes over PATH. libvirt's second open finds it, and its 92 bytes wait for room.
3. The pipe has no writer but libvirt. poll() reports a FIFO without a writer as hung up, so we see the question.
4. To say "yes", our bytes are read, and then the 92.
5. To say "no", the folder of PATH gets another name: an open that comes late finds nothing. (If PATH alone were
   removed, a first open that comes late would make a regular file, and libvirt would commit that.) Then the reader is
   closed. A write of libvirt fails (EPIPE), whether it waits or comes later, as a writer of ours keeps the pipe full.
   An open that was on its way waits for a reader: one comes and goes every 100 ms, and no byte finds room meanwhile.

The kernel drops what is in a pipe when its last end is closed. So a second process holds the reader, too, in case
statepipe is killed (witness.py).
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Self

from statepipe.ends.fd import failure
from statepipe.errors import StatepipeError, TruncatedError
from statepipe.formats.libvirtimage import HEADER_SIZE, SAVED, ImageHeader, parse_header
from statepipe.libvirt.folders import claim, own_path
from statepipe.libvirt.virsh import LibvirtSilent
from statepipe.threads import beside
from statepipe.wakeups import enlarge_pipe, polled

IMAGE, FINAL = "image", "final"
"""The names of the two FIFOs: the first is the one that libvirt opens, and the second takes its place."""

REFUSED = ".refused"
"""What the folder's name ends in once libvirt's request is refused."""

KNOCK = 0.1
"""Seconds between two openings that let a waiting open of libvirt's return."""

SIGNED = 60_000
"""Milliseconds in which libvirt writes the 92 bytes that it has asked to write; it takes less than one."""


class Intake:
    """The two FIFOs, made on entering. `path` is what libvirt is to open, `data` the descriptor that the image is read
    from, `question` the reader of the second FIFO, `lock` what keeps others from sweeping the folder.

    The context manager closes and removes all. Raises StatepipeError if they cannot be made.
    """

    def __init__(self) -> None:
        self.data = self.question = self._writing = self.lock = -1
        self._is_left = False
        try:
            self.folder = own_path("save")
        except OSError as error:
            raise failure("make a folder for libvirt's FIFO", error) from error
        self.path = os.path.join(self.folder, IMAGE)

    def __enter__(self) -> Self:
        try:
            self.lock = claim(self.folder)
            self._make()
        except BaseException as error:
            self._remove()
            if isinstance(error, OSError):
                raise failure(f"make a FIFO at {self.path}", error) from error
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _make(self) -> None:
        final = os.path.join(self.folder, FINAL)
        for path in (self.path, final):
            os.mkfifo(path, 0o600)
        page = os.sysconf("SC_PAGE_SIZE")
        self.data = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.question = os.open(final, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl(self.data, F_SETPIPE_SZ, page)
        writing = os.open(final, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = fcntl(writing, F_SETPIPE_SZ, page)
            for _ in range(size // page):
                os.write(writing, bytes(page))  # one full page in each of its slots, so that nothing is added to one
            if select.select([], [writing], [], 0)[1]:
                raise StatepipeError(f"a pipe of {size} bytes is not full with as many")
        finally:
            os.close(writing)

    def leave(self) -> None:
        """Leave the folder to another process, which removes it."""
        self._is_left = True

    def _remove(self) -> None:
        for fd in (self.data, self.question, self._writing):
            if fd >= 0:
                os.close(fd)
        self.data = self.question = self._writing = -1
        if not self._is_left:
            remove(self.folder)
        if self.lock >= 0:
            os.close(self.lock)
        self.lock = -1

    # --- the image

    def await_image(self, ended: int, within: float) -> bool:
        """Wait until libvirt has opened the image and written; then its second open will find the second FIFO.

        Return False if the descriptor `ended` is readable first: virsh has ended, and libvirt has written nothing.
        Raises LibvirtSilent if neither happens within so many seconds, StatepipeError.
        """
        poll, deadline = polled(self.data, ended), time.monotonic() + within
        while not (ready := dict(poll.poll(_left(deadline)))).get(self.data, 0) & select.POLLIN:
            if ended in ready:
                return False
            if not ready:
                raise LibvirtSilent(f"libvirt has not begun the save after {within:g} s", hint=_STUCK)
            poll.unregister(self.data)  # libvirt has closed it without a byte: virsh will end, and say why
        try:
            os.rename(os.path.join(self.folder, FINAL), self.path)
        except OSError as error:
            raise failure(f"put the second FIFO at {self.path}", error) from error
        enlarge_pipe(self.data)
        return True

    def read_beginning(self) -> tuple[ImageHeader, bytes]:
        """Return the header and the data_len bytes behind it. Raises IntegrityError, TruncatedError, StatepipeError."""
        start = self._read(HEADER_SIZE)
        header = parse_header(start)
        return header, self._read(header.data_len)

    def _read(self, size: int) -> bytes:
        """Return exactly so many bytes of the image. Raises TruncatedError if it ends before, StatepipeError."""
        found, poll = bytearray(), polled(self.data)
        while len(found) < size:
            poll.poll()
            try:
                part = os.read(self.data, size - len(found))
            except BlockingIOError:
                continue
            except OSError as error:
                raise failure("read libvirt's image", error) from error
            if not part:
                raise TruncatedError(f"libvirt's image ends after {len(found)} of {size} bytes", offset=len(found))
            found += part
        return bytes(found)

    # --- the question

    def await_question(self, ended: int, within: float) -> bool:
        """Wait until libvirt asks to commit. Return False if it does not: virsh has ended (`ended` is readable). Raises
        LibvirtSilent if neither happens within so many seconds."""
        deadline = time.monotonic() + within
        with select.epoll() as epoll:
            # A level would be reported for ever, as the pipe is full. An edge is there when a writer comes or goes.
            epoll.register(self.question, select.EPOLLIN | select.EPOLLET)
            epoll.register(ended, select.EPOLLIN)
            while True:
                seen = {fd for fd, _ in epoll.poll(max(deadline - time.monotonic(), 0))}
                if is_asked(self.question):
                    return True
                if ended in seen:
                    return False
                if not seen:
                    raise LibvirtSilent(f"libvirt has not finished the save after {within:g} s", hint=_STUCK)

    # --- the refusal

    def keep_full(self) -> int:
        """Open a writer, which keeps the pipe full whoever closes it, and return it. Raises OSError."""
        if self._writing < 0:
            self._writing = keep_full(self.folder)
        return self._writing

    def refuse(self) -> None:
        """Refuse libvirt whatever it asks, now and later. No other process may keep `question` open."""
        hide(self.folder)
        for fd in (self.question, self.data):
            if fd >= 0:
                os.close(fd)
        self.question = self.data = -1


_STUCK = "see whether libvirtd and the guest's QEMU are at work: virsh domjobinfo NAME"


def _left(deadline: float) -> float:
    """Milliseconds until then."""
    return max(deadline - time.monotonic(), 0) * 1000


def is_asked(question: int) -> bool:
    """Return whether libvirt has the second FIFO open for writing."""
    return not any(event & select.POLLHUP for _, event in polled(question).poll(0))


def answer(question: int, within: int | None) -> bool | None:
    """Let libvirt commit. Return whether its 92 bytes have come: False means that it has gone, and will not write them;
    None that it has not written in so many milliseconds, and still may (never, if `within` is None). Raises
    StatepipeError if they cannot be read."""
    read, poll = bytearray(), polled(question)
    while len(signature := read.lstrip(b"\0")) < HEADER_SIZE:
        if not poll.poll(within):
            return None
        try:
            part = os.read(question, HEADER_SIZE)
        except BlockingIOError:
            continue
        except OSError as error:
            raise failure("read libvirt's request to commit", error) from error
        if not part:  # no writer any more
            return False
        read = signature + part
    return signature.startswith(SAVED)


def keep_full(folder: str) -> int:
    """Open a writer of the second FIFO, wherever it is by now. Somebody must have it open to read. Raises OSError."""
    for place in (folder, folder + REFUSED):
        for name in (FINAL, IMAGE):
            with suppress(FileNotFoundError):
                return os.open(os.path.join(place, name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def hide(folder: str) -> None:
    """Give the folder another name: what libvirt opens from now on is not there. A second call does nothing.

    If that fails, an open of libvirt's waits for a reader of a FIFO, and `knocking` lets it return.
    """
    with suppress(OSError):
        os.rename(folder, folder + REFUSED)


@contextmanager
def knocking(folder: str) -> Iterator[None]:
    """During the context, let opens of libvirt's return that wait for a reader of a FIFO in the folder."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(KNOCK):
            knock(folder)

    with beside("knock", repeat, over.set):
        yield


def knock(folder: str) -> None:
    """Let a reader come and go at each FIFO in the folder, under either name. Somebody must keep the second one's pipe
    full, unless nobody can have that one open."""
    for place in (folder + REFUSED, folder):
        for name in (IMAGE, FINAL):
            with suppress(OSError):  # one of them has gone
                os.close(os.open(os.path.join(place, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def remove(folder: str) -> None:
    """Remove the folder under either name, with its FIFOs."""
    for place in (folder, folder + REFUSED):
        for name in (IMAGE, FINAL):
            with suppress(OSError):
                os.unlink(os.path.join(place, name))
        with suppress(OSError):
            os.rmdir(place)
