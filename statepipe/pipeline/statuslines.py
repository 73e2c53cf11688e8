"""Status for programs: a line of JSON each second to a descriptor, and one at the end with the verdict.

Each line is what `ps --json` shows of this process, and `time`, in seconds since 1970; the last has `verdict` (`done`
or `failed`), and after a failure `error`. A line with `step` is none of these: it tells a step of a migration, as its
journal does. A line that had to be shortened has `shortened`.

Lines are whole and do not mix with those of others who write there: none is longer than what a pipe takes at once
(PIPE_BUF). Nobody's work waits for the reader: where there is no room, a line is left out. The verdict is never left
out for that. In a pipe, room for it is kept free from the start; elsewhere, or where somebody else has filled the
pipe, it waits for the reader, until a signal ends the wait.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from statepipe.errors import InterruptedBySignal, UsageError
from statepipe.threads import ENDING, held, start
from statepipe.wakeups import waiting

PAUSE = 1.0
"""Seconds from line to line, also while nothing flows."""

LINE_LIMIT: int = select.PIPE_BUF
"""Bytes: a pipe takes so many at once or none of them, and never mixes them with another writer's."""

ERROR_LIMIT = 2048
"""Bytes of an error's text where the line is too long with all of it. The rest stands on standard error."""

PATIENCE = 30.0
"""Seconds that the verdict waits for a reader who takes nothing."""

PATIENCE_AFTER_SIGNAL = 1.0
"""The same once a signal has ended the work: further signals come to nothing then, so none could end the wait."""

LOOK = 50
"""Milliseconds from one look at whether a signal has come to the next, while the verdict waits."""

KEPT = frozenset({"time", "pid", "verb", "verdict", "error", "shortened"})
"""What no line is without, however little room there is."""

PTMX = os.makedev(5, 2)
"""The device of a terminal's other end: opening it again would make a new terminal."""

Status = dict[str, Any]


class StatusLines:
    """Lines to descriptor `fd` of what `status` tells, if anything. Raises UsageError unless it is open for writing.

    `before` is what there is to tell of work that fails before it has begun.

    All of it may be called from any thread, but `begin`, `pause` and `close` from one at a time.
    """

    def __init__(self, fd: int, status: Callable[[], Status | None], before: Status | None = None) -> None:
        self._out = _Out(fd)
        self._status = status
        self._last: Status = before or {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Work has begun: its first line, and then one each second."""
        self._over.clear()
        self._thread = threading.Thread(target=self._go_on, name="report", daemon=True)
        start(self._thread)

    def pause(self) -> None:
        """Work has ended, for better or worse; what it came to is remembered for the last line."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()  # no signal interrupts it: whoever calls holds them back
            self._thread = None
            self._note()

    def tell(self, facts: Status) -> None:
        """A line of its own, for a step that was taken."""
        with held():
            self._out.offer(line_of({"step": facts}))

    def close(self, error: BaseException | None) -> None:
        """Tell the verdict, the last line. Call it with the ending signals held: one that is pending ends the wait."""
        self.pause()
        verdict = {"verdict": "done"} if error is None else {"verdict": "failed", "error": str(error)}
        patience = PATIENCE_AFTER_SIGNAL if isinstance(error, InterruptedBySignal) else PATIENCE
        self._out.conclude(line_of(self._last | verdict), patience)

    def _go_on(self) -> None:
        while True:
            self._note()
            self._out.offer(line_of(self._last))
            if self._over.wait(PAUSE):
                return

    def _note(self) -> None:
        self._last = self._status() or self._last


def line_of(status: Status) -> bytes:
    """A line of at most LINE_LIMIT bytes: a long error is cut, then the longest of the other figures are left out."""
    told = {"time": round(time.time(), 3), **status}
    if len(line := _encoded(told)) <= LINE_LIMIT:
        return line
    told["shortened"] = True
    if isinstance(step := told.get("step"), dict):
        told["step"] = {key: _cut(value, LINE_LIMIT // 16) for key, value in step.items()}
    if "error" in told:
        told["error"] = _cut(told["error"], ERROR_LIMIT)
    while len(line := _encoded(told)) > LINE_LIMIT:
        del told[max(told.keys() - KEPT, key=lambda key: len(json.dumps(told[key])))]
    return line


def _encoded(status: Status) -> bytes:
    return json.dumps(status).encode() + b"\n"


def _cut(value: Any, limit: int) -> Any:
    """A text cut to so many bytes of JSON. Of anything else that is longer, None."""
    if len(json.dumps(value)) <= limit:
        return value
    if not isinstance(value, str):
        return None
    while len(json.dumps(value)) > limit - len(json.dumps("…")):
        value = value[: len(value) * 3 // 4]
    return value + "…"


class _Out:
    """Where lines go. No call of it waits for the reader but `conclude`, whatever the descriptor is."""

    def __init__(self, fd: int) -> None:
        """Raises UsageError unless it is one to write status to."""
        self._fd = _own(fd)
        kind = os.fstat(self._fd).st_mode
        self._is_pipe = stat.S_ISFIFO(kind)
        self._socket = socket.socket(fileno=self._fd) if stat.S_ISSOCK(kind) else None
        self._rest = b""  # of a line that was taken in part: it comes before all else
        self._lock = threading.Lock()
        self._over = self._gone = False

    def offer(self, line: bytes) -> None:
        """Write it if there is room, besides that for the verdict."""
        with self._lock:
            if not self._over and self._push(b"") and self._has_room(line):
                self._push(line)

    def conclude(self, line: bytes, patience: float) -> None:
        """Write it as the last, once there is room, within so many seconds and before an ending signal is pending."""
        with self._lock:
            self._over = True
        until = time.monotonic() + patience
        sent = self._push(line)
        while not sent and time.monotonic() < until and not signal.sigpending() & set(ENDING):
            if self._is_ready(LOOK):
                owed = self._rest
                sent = self._push(b"" if owed else line)
                if self._rest == owed and not sent:  # there is room, but not for this
                    time.sleep(LOOK / 1000)
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)

    def _has_room(self, line: bytes) -> bool:
        """Whether a pipe has room for it and, after it, for the verdict; of others only the attempt tells.

        A pipe holds pages. A line of ours shares the last one or takes one more, so two neighbours have more than one
        page of bytes, and less than half of what the pipe could hold is lost between them. An empty pipe takes one.
        """
        if not self._is_pipe:
            return True
        free = fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ) // 2 - len(line) - 2 * LINE_LIMIT
        return waiting(self._fd) <= max(free, 0)

    def _push(self, line: bytes) -> bool:
        """Write what is left of the line before, then `line`. True if nothing is left, or nobody is there to read.

        Of a line that has not begun to leave nothing is owed: it is offered anew, or left out.
        """
        if self._gone:
            return True
        taken, data = 0, self._rest + line
        try:
            if data and self._is_ready(0):
                taken = self._write(data)
        except BlockingIOError:
            taken = 0
        except OSError:  # its reader is gone, or the disk is full
            self._gone = True
            return True
        self._rest = data[taken:] if taken or self._rest else b""
        return taken == len(data)

    def _write(self, data: bytes) -> int:
        if self._socket is None:
            return os.write(self._fd, data)
        return self._socket.send(
            data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        )  # however its other holders have set it

    def _is_ready(self, patience: int) -> bool:
        """Whether a write would do something at once, be it to fail; waits so many milliseconds for that."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(patience))


def _own(fd: int) -> int:
    """A descriptor of the same file, which is ours and no child's. Raises UsageError unless it is one to write to.

    Whether writes to a pipe or a terminal wait belongs to the open file, which others hold too. So those are opened
    once more, where that is allowed.
    """
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise UsageError(f"descriptor {fd} is not open", hint="for example: --status-fd 3 3> FILE") from error
    if fd < 2 or mode == os.O_RDONLY:
        raise UsageError(f"descriptor {fd} is not one to write status to", hint="for example: --status-fd 3 3> FILE")
    if stat.S_ISFIFO(os.fstat(fd).st_mode) or (os.isatty(fd) and os.fstat(fd).st_rdev != PTMX):
        with suppress(OSError):  # another user's, or its reader is gone
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
