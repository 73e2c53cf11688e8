"""Attempts to connect side by side: the first that is answered wins."""

from __future__ import annotations

import itertools
import os
import select
import socket
import time
from contextlib import suppress
from typing import Any

from statepipe.ends.names import Target

AGAIN = 0.25
"""Seconds until a dial without an answer is tried once more beside itself: the kernel's own next tries come after 1 s,
3 s and 7 s, and the network may be back long before."""


class Race:
    """Attempts to connect from `bind`, with segments of `most` bytes, side by side. Closing it gives up the losers."""

    def __init__(self, bind: str | None, most: int | None) -> None:
        self._bind, self._most = bind, most
        self.failed: dict[Target, OSError] = {}
        self._running: dict[int, tuple[socket.socket, Target]] = {}
        self._poll = select.poll()

    def run(self, targets: list[Target], seconds: float) -> socket.socket | None:
        """The first that is answered; one is begun each AGAIN, to the targets in turn. None if none is in time.

        `failed` tells why of each that no further attempt would reach.
        """
        deadline = time.monotonic() + seconds
        for target in itertools.cycle(targets):
            if target not in self.failed and self._begin(*target):
                wait = min(AGAIN, max(deadline - time.monotonic(), 0))
                if (winner := self._look(wait)) is not None:
                    return winner
            if len(self.failed) == len(set(targets)) or time.monotonic() >= deadline:
                break
        return None

    def _begin(self, family: socket.AddressFamily, where: Any) -> bool:
        """Whether it may yet be answered."""
        attempt = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._running[attempt.fileno()] = attempt, (family, where)
        try:
            if self._bind is not None and family != socket.AF_UNIX:
                attempt.bind((self._bind, 0))
            if self._most is not None:
                attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self._most)
            with suppress(BlockingIOError):  # EINPROGRESS
                attempt.connect(where)
        except OSError as error:
            self.failed[family, where] = error
            return False
        self._poll.register(attempt, select.POLLOUT)
        return True

    def _look(self, seconds: float) -> socket.socket | None:
        """The winner, if there is one within so long."""
        for fd, _ in self._poll.poll(seconds * 1000):
            attempt, target = self._running[fd]
            code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return self._running.pop(fd)[0]
            self._poll.unregister(fd)
            self.failed[target] = OSError(code, os.strerror(code))
        return None

    def close(self) -> None:
        """Give up the rest."""
        for attempt, _ in self._running.values():
            attempt.close()
