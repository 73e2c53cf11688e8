"""What a QEMU says on its standard error: of one of ours passed on as it comes, and the last lines kept.

They are QEMU's own reason for ending, and whoever waits elsewhere, as the host that sends a guest, sees nothing else of
it. The cause is seldom in the last line alone: "Size mismatch: pc.ram" comes first, "load of migration failed" last.
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
"""That are kept: a load that fails is told in three (QEMU 7.2 to 10.0)."""

LONGEST = 1000
"""Characters of a line that are kept."""

LOST = "what QEMU says once statepipe has ended will be lost"

PATIENCE = 1.0
"""Seconds for the last of it once QEMU has ended; a program that it started may hold its standard error longer."""


def last_lines(lines: Iterable[bytes]) -> str:
    """The last of them that say something, as one line; empty where none does."""
    texts = (line.decode(errors="replace").strip()[:LONGEST] for line in lines)
    return " / ".join(deque(filter(None, texts), LINES))


class LastWords:
    """Of a QEMU of ours. `fd` is its standard error, to be closed here once QEMU has it (`begin`)."""

    def __init__(self) -> None:
        self._bell = Bell()  # wakes whoever reads, as another does from now on
        self._reading, self.fd = os.pipe()
        self._last: deque[bytes] = deque(maxlen=LINES)
        self._thread = self._reader()

    def _reader(self) -> threading.Thread:
        return threading.Thread(target=self._pass_on, name="last words", daemon=True)

    def begin(self) -> None:
        """QEMU has its end."""
        os.close(self.fd)
        try:
            start(self._thread)
        except BaseException:
            os.close(self._reading)
            raise

    def drop(self) -> None:
        """There is no QEMU."""
        os.close(self.fd)
        os.close(self._reading)

    def last(self) -> str:
        """The last lines so far, all of them of a QEMU that has ended; empty where it has said nothing."""
        join(self._thread, PATIENCE)
        return last_lines(self._last)

    def hand_over(self, tell: Callable[[str], object]) -> None:
        """QEMU is left to itself, and may outlive us: a program (cat) passes on what it says, and ends as it does.

        Where there can be none, we go on, and `tell` hears what will be lost. Raises nothing: QEMU has its guest, and
        is not ended for what becomes of its messages.
        """
        self._bell.ring()
        if not join(self._thread, PATIENCE):  # it writes to who takes nothing, and goes on when that is over
            tell(f"{LOST}: nobody reads standard error")
            return
        self._bell.hush()
        if self._reading < 0:  # QEMU has ended
            return
        try:
            _start_relay(self._reading)
        except (StatepipeError, OSError) as error:
            tell(f"{LOST}: {error}")
            self._thread = self._reader()
            with suppress(NoThread):  # then what it says until we end is lost, too
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
            with suppress(OSError):  # whom it is passed on to, may be gone: it is read all the same
                write_all(2, data)
            *lines, rest = (rest + data).split(b"\n")
            self._last.extend(filter(None, lines))
            rest = rest[: 4 * LONGEST]
        self._last.extend(filter(None, [rest]))


def _start_relay(reading: int) -> None:
    """The shell ends at once and leaves it to init, so that nobody need wait for it. Raises StatepipeError.

    What a shell has in the background reads /dev/null, unless it is given another descriptor.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        process = Process(["sh", "-c", "exec 3<&0; exec cat <&3 3<&- &"], {0: reading, 1: 2, 2: nothing})
    finally:
        os.close(nothing)
    process.reap()


class Overheard:
    """What another's QEMU, process `pid` of user `uid`, says from now on, where its standard error is a file.

    Only our own user's is read: what we read goes to the other host, and a process of another user's may have opened a
    file there that it may write and not read.
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
        """The last lines so far; empty where none is known."""
        if self._fd < 0:
            return ""
        with suppress(OSError):
            size = os.fstat(self._fd).st_size
            begin = max(min(self._from, size), size - LINES * 4 * LONGEST)
            return last_lines(os.pread(self._fd, size - begin, begin).split(b"\n"))
        return ""

    @property
    def where(self) -> str:
        """Where a person reads all that it says."""
        if self.place == os.devnull:
            return "its standard error is /dev/null, so what it says is lost: start it with 2> FILE"
        file = f", {self.place}," if self.place.startswith("/") else ""
        return f"what it says itself is on its standard error{file} on its host"

    def close(self) -> None:
        """Listen no more; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
