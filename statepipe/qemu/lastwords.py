"""The messages of a QEMU on its standard error: those of our own are passed on and the last lines kept.

They give QEMU's reason for ending, and a user elsewhere, such as at the host that sends a guest, sees nothing else of
it. One line is seldom enough: "Size mismatch: pc.ram" comes first, "load of migration failed" last.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from statepipe.ends.fd import write_all
from statepipe.errors import StatepipeError
from statepipe.processes import Process
from statepipe.threads import NoThread, join, start
from statepipe.wakeups import Bell, polled

LINES = 3
"""Lines that are kept: QEMU 7.2 to 11.1 reports a failed load in three at most."""

LONGEST = 1000
"""Characters of a line that are kept."""

LOST = "QEMU's messages will be lost once statepipe has ended"

PATIENCE = 1.0
"""Seconds to wait for the last messages once QEMU has ended; its children may keep its standard error open longer."""


def last_lines(lines: Iterable[bytes]) -> str:
    """Return the last lines that are not empty, joined into one."""
    texts = (line.decode(errors="replace").strip()[:LONGEST] for line in lines)
    return " / ".join(deque(filter(None, texts), LINES))


class LastWords:
    """The standard error of a QEMU of ours. `begin` closes `fd`, QEMU's end of it, once QEMU has started."""

    def __init__(self) -> None:
        self._bell = Bell()  # ends the reading thread, because something else reads from now on
        self._reading, self.fd = os.pipe()
        self._last: deque[bytes] = deque(maxlen=LINES)
        self._thread = self._reader()

    def _reader(self) -> threading.Thread:
        return threading.Thread(target=self._pass_on, name="last words", daemon=True)

    def begin(self) -> None:
        """Start to read: QEMU has its end. Raises NoThread."""
        os.close(self.fd)
        try:
            start(self._thread)
        except BaseException:
            os.close(self._reading)
            raise

    def drop(self) -> None:
        """Close both ends: QEMU could not be started."""
        os.close(self.fd)
        os.close(self._reading)

    def last(self) -> str:
        """Return the last lines so far; all lines were read if QEMU has ended."""
        join(self._thread, PATIENCE)
        return last_lines(self._last)

    def hand_over(self, tell: Callable[[str], object]) -> None:
        """Start a program (cat) that passes on the messages of a QEMU that may outlive us, and ends with it.

        If that fails, our thread continues, and `tell` is told what will be lost. Raises nothing: QEMU has its guest,
        and its messages are no reason to end it.
        """
        self._bell.ring()
        if not join(self._thread, PATIENCE):  # it is blocked in a write, and continues afterwards
            tell(f"{LOST}: nothing reads standard error")
            return
        self._bell.hush()
        if self._reading < 0:  # QEMU has ended
            return
        try:
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                # The shell ends at once and leaves cat to init, so that nothing has to wait for it. In the background
                # cat would read /dev/null, unless it gets another descriptor.
                words = ["sh", "-c", "exec 3<&0; exec cat <&3 3<&- &"]
                process = Process(words, {0: self._reading, 1: 2, 2: nothing})
            finally:
                os.close(nothing)
            process.reap()
        except (StatepipeError, OSError) as error:
            tell(f"{LOST}: {error}")
            self._thread = self._reader()
            with suppress(NoThread):  # then its messages until our end are lost too
                start(self._thread)
        else:
            os.close(self._reading)

    def _pass_on(self) -> None:
        poll, rest = polled(self._reading, self._bell.fd), b""
        while self._bell.fd not in dict(poll.poll()):
            if not (data := os.read(self._reading, 65536)):
                os.close(self._reading)
                self._reading = -1
                break
            with suppress(OSError):  # our standard error may be closed; the pipe must be read all the same
                write_all(2, data)
            *lines, rest = (rest + data).split(b"\n")
            self._last.extend(filter(None, lines))
            rest = rest[: 4 * LONGEST]
        self._last.extend(filter(None, [rest]))


class Overheard:
    """The messages of a foreign QEMU, process `pid` of user `uid`, from now on, if its standard error is a file.

    Only our own user's file is read: the lines are sent to the other host, and another user's process may have opened a
    file that it may write but not read.
    """

    def __init__(self, pid: int, uid: int | None) -> None:
        self._fd, self._from, self.place = -1, 0, ""
        with suppress(OSError):
            path = f"/proc/{pid}/fd/2"
            self.place = os.readlink(path)
            if stat.S_ISREG(os.stat(path).st_mode) and uid == os.geteuid():
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self._from = os.fstat(self._fd).st_size

    def last(self) -> str:
        """Return the last lines so far; empty if unknown."""
        if self._fd < 0:
            return ""
        with suppress(OSError):
            size = os.fstat(self._fd).st_size
            begin = max(min(self._from, size), size - LINES * 4 * LONGEST)
            return last_lines(os.pread(self._fd, size - begin, begin).split(b"\n"))
        return ""

    @property
    def where(self) -> str:
        """Where the user finds all its messages."""
        if self.place == os.devnull:
            return "its standard error is /dev/null, so its messages are lost: start it with 2> FILE"
        file = f", {self.place}," if self.place.startswith("/") else ""
        return f"its own messages are on its standard error{file} on its host"

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
