"""Status for programs: a line of JSON each second to a descriptor, and one at the end with the verdict.

Each line is what `ps --json` shows of this process, and `time`, in seconds since 1970; the last has `verdict` (`done`
or `failed`), and after a failure `error`. A line with `step` is none of these: it tells a step of a migration, as its
journal does. A reader that is slow misses lines, one that is gone is told nothing more:
neither the data nor their verdict ever wait for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from statepipe.errors import UsageError
from statepipe.threads import start

PAUSE = 1.0
"""Seconds from line to line, also while nothing flows."""

LINE_LIMIT = 4096
"""Bytes: what goes into a pipe that has room at once and whole (PIPE_BUF)."""

LAST_PATIENCE = 1000
"""Milliseconds that the last line waits for room."""

Status = dict[str, Any]


class Report:
    """Lines to descriptor `fd` of what `status` tells, if anything. Raises UsageError unless it is open for writing."""

    def __init__(self, fd: int, status: Callable[[], Status | None]) -> None:
        self._fd = _writable(fd)
        self._status = status
        self._last: Status = {}
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
            self._thread.join()
            self._thread = None
            self._note()

    def tell(self, facts: Status) -> None:
        """A line of its own, for a step that was taken."""
        self._write({"step": facts}, LAST_PATIENCE)

    def close(self, error: BaseException | None) -> None:
        """The verdict."""
        self.pause()
        verdict = {"verdict": "done"} if error is None else {"verdict": "failed", "error": str(error)}
        self._write(self._last | verdict, LAST_PATIENCE)
        os.close(self._fd)

    def _go_on(self) -> None:
        while True:
            self._note()
            self._write(self._last, 0)
            if self._over.wait(PAUSE):
                return

    def _note(self) -> None:
        self._last = self._status() or self._last

    def _write(self, status: Status, patience: int) -> None:
        line = json.dumps({"time": round(time.time(), 3), **status}).encode() + b"\n"
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        room = any(event & select.POLLOUT for _, event in poll.poll(patience))
        if room and len(line) <= LINE_LIMIT:
            try:
                os.write(self._fd, line)
            except OSError:  # its reader is gone
                return


def _writable(fd: int) -> int:
    """A duplicate of it, which is ours and no child's."""
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise UsageError(f"descriptor {fd} is not open", hint="for example: --status-fd 3 3> FILE") from error
    if fd < 2 or mode == os.O_RDONLY:
        raise UsageError(f"descriptor {fd} is not one to write status to", hint="for example: --status-fd 3 3> FILE")
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
