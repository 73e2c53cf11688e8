"""Status for programs: a line of JSON each second to a descriptor, and one at the end with the verdict.

Each line is what `ps --json` shows of this process, and `time`, in seconds since 1970; the last has `verdict` (`done`
or `failed`), and after a failure `error`. A line with `step` is different: it reports a step of a migration, as its
journal does. A line that had to be shortened has `shortened`.

Lines are complete and do not mix with those of other writers: none is longer than what a pipe takes at once (PIPE_BUF).
The work never waits for the reader: if there is no room, a line is left out. The verdict is never left out. In a pipe,
room for it is kept free from the start; elsewhere, or if another writer has filled the pipe, it waits for the reader
until a signal ends the wait.
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

from statepipe.errors import InterruptedBySignal, UsageError
from statepipe.threads import ENDING, held, start
from statepipe.typed import Any
from statepipe.wakeups import waiting

PAUSE = 1.0
"""Seconds between two lines, even if no data flows."""

LINE_LIMIT: int = select.PIPE_BUF
"""Bytes that a pipe takes all at once or not at all, and never mixes with another writer's."""

ERROR_LIMIT = 2048
"""Bytes of an error's text if the line is too long with all of it. Standard error has the rest."""

VERDICT_TIME = 30.0
"""Seconds that the verdict waits for a reader that does not read."""

VERDICT_TIME_AFTER_SIGNAL = 1.0
"""The same after a signal has ended the work: further signals are ignored then, so none could end the wait."""

SIGNAL_CHECK = 50
"""Milliseconds between two checks for a signal while the verdict waits."""

KEPT = frozenset({"time", "pid", "verb", "verdict", "error", "shortened"})
"""The fields of every line, however little room there is."""

PTMX = os.makedev(5, 2)
"""The device of a terminal's other end: opening it again would create a new terminal."""

Status = dict[str, Any]


class StatusLines:
    """Writes what `status` returns, if anything, to descriptor `fd`. Raises UsageError unless it is open for writing.

    `before` is the status of work that fails before it has begun. Any thread may call the methods, but only one at a
    time `begin`, `pause` and `close`.
    """

    def __init__(self, fd: int, status: Callable[[], Status | None], before: Status | None = None) -> None:
        self._out = _Out(fd)
        self._status = status
        self._last: Status = before or {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Write the first line of the work, and then one each second."""
        self._over.clear()
        self._thread = threading.Thread(target=self._write_on, name="report", daemon=True)
        start(self._thread)

    def pause(self) -> None:
        """Stop writing at the end of the work, and remember its status for the last line."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()  # no signal interrupts it: the caller holds them
            self._thread = None
            self._note()

    def tell(self, facts: Status) -> None:
        """Write a line for a step of the work."""
        with held():
            self._out.offer(line_of({"step": facts}))

    def close(self, error: BaseException | None) -> None:
        """Write the verdict, the last line. Call it with the ending signals held: a pending one ends the wait."""
        self.pause()
        verdict = {"verdict": "done"} if error is None else {"verdict": "failed", "error": str(error)}
        patience = VERDICT_TIME_AFTER_SIGNAL if isinstance(error, InterruptedBySignal) else VERDICT_TIME
        self._out.conclude(line_of(self._last | verdict), patience)

    def _write_on(self) -> None:
        while True:
            self._note()
            self._out.offer(line_of(self._last))
            if self._over.wait(PAUSE):
                return

    def _note(self) -> None:
        self._last = self._status() or self._last


def line_of(status: Status) -> bytes:
    """Return a line of at most LINE_LIMIT bytes: a long error is cut, then the longest other fields are left out."""
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
    """Return a text cut to so many bytes of JSON; None for any other value that is longer."""
    if len(json.dumps(value)) <= limit:
        return value
    if not isinstance(value, str):
        return None
    while len(json.dumps(value)) > limit - len(json.dumps("…")):
        value = value[: len(value) * 3 // 4]
    return value + "…"


class _Out:
    """The descriptor of the lines. Only `conclude` waits for its reader, whatever the descriptor is."""

    def __init__(self, fd: int) -> None:
        """Raises UsageError unless status can be written to it."""
        self._fd = _own(fd)
        kind = os.fstat(self._fd).st_mode
        self._is_pipe = stat.S_ISFIFO(kind)
        self._socket = socket.socket(fileno=self._fd) if stat.S_ISSOCK(kind) else None
        self._rest = b""  # of a partly written line: it must be written first
        self._lock = threading.Lock()
        self._over = self._gone = False

    def offer(self, line: bytes) -> None:
        """Write a line if there is room for it and for the verdict."""
        with self._lock:
            if not self._over and self._push(b"") and self._has_room(line):
                self._push(line)

    def conclude(self, line: bytes, patience: float) -> None:
        """Write the last line once there is room, within so many seconds and until an ending signal is pending."""
        with self._lock:
            self._over = True
        until = time.monotonic() + patience
        sent = self._push(line)
        while not sent and time.monotonic() < until and not signal.sigpending() & set(ENDING):
            if self._is_ready(SIGNAL_CHECK):
                owed = self._rest
                sent = self._push(b"" if owed else line)
                if self._rest == owed and not sent:  # there is room, but not for this
                    time.sleep(SIGNAL_CHECK / 1000)
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)

    def _has_room(self, line: bytes) -> bool:
        """Return whether a pipe has room for a line and then the verdict. For other files, only an attempt shows it.

        A pipe consists of pages. Our line shares the last page or takes a new one, so two neighbours have more than one
        page of bytes, and less than half of the pipe's capacity is lost between them. An empty pipe takes a line.
        """
        if not self._is_pipe:
            return True
        free = fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ) // 2 - len(line) - 2 * LINE_LIMIT
        return waiting(self._fd) <= max(free, 0)

    def _push(self, line: bytes) -> bool:
        """Write the rest of the previous line, then `line`. Return whether all was written, or the reader has left.

        A line of which nothing was written is not kept: the caller offers it again, or leaves it out.
        """
        if self._gone:
            return True
        taken, data = 0, self._rest + line
        try:
            if data and self._is_ready(0):
                flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL  # however its other holders have set it
                taken = os.write(self._fd, data) if self._socket is None else self._socket.send(data, flags)
        except BlockingIOError:
            taken = 0
        except OSError:  # its reader has left, or the disk is full
            self._gone = True
            return True
        self._rest = data[taken:] if taken or self._rest else b""
        return taken == len(data)

    def _is_ready(self, patience: int) -> bool:
        """Wait so many milliseconds; return whether a write would succeed or fail at once."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(patience))


def _own(fd: int) -> int:
    """Return a descriptor of our own for the same file. Raises UsageError unless it can be written.

    Whether writes to a pipe or a terminal block is a property of the open file, which others use too. So those are
    opened again, if that is allowed.
    """
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise UsageError(f"descriptor {fd} is not open", hint="for example: --status-fd 3 3> FILE") from error
    if fd < 2 or mode == os.O_RDONLY:
        raise UsageError(f"cannot write the status to descriptor {fd}", hint="for example: --status-fd 3 3> FILE")
    if stat.S_ISFIFO(os.fstat(fd).st_mode) or (os.isatty(fd) and os.fstat(fd).st_rdev != PTMX):
        with suppress(OSError):  # it is another user's, or its reader has left
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
