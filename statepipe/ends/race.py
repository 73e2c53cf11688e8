"""Connect to several addresses in parallel (RFC 8305): the first that answers wins."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import time

from statepipe.ends.names import Target
from statepipe.ends.net import Stopped
from statepipe.typed import Any
from statepipe.wakeups import Bell

NEXT = 0.25
"""Seconds without an answer until another attempt begins in parallel (RFC 8305, 5: Connection Attempt Delay). A second
attempt to the same address helps too: the kernel retries only after 1 s, 3 s and 7 s, and the network may have
recovered long before."""


class Race:
    """Attempts to connect from the address `bind`, with segments of `most` bytes. Closing it ends all but the
    winner."""

    def __init__(self, bind: str | None, most: int | None = None) -> None:
        self._bind, self._most = bind, most
        self.failed: dict[Target, OSError] = {}
        self._running: dict[int, tuple[socket.socket, Target]] = {}
        self._poll = select.poll()

    def run(self, targets: list[Target], seconds: float, stop: Bell | None, *, again: bool) -> socket.socket | None:
        """Return the first connection that is made, or None if there is none in time. `failed` has each target's error.

        A target is tried NEXT seconds after the previous one, or as soon as an attempt fails. Each is tried once, and
        the last has `seconds` from its start; with `again`, all are tried in turn for `seconds` in total. Raises
        Stopped when `stop` rings.
        """
        if stop is not None:
            if stop.fd < 0:  # it rang, and was closed
                raise Stopped
            self._poll.register(stop.fd, select.POLLIN)
        waiting = itertools.cycle(targets) if again else iter(dict.fromkeys(targets))
        began = time.monotonic()
        while len(self.failed) < len(set(targets)):
            if (target := next((each for each in waiting if each not in self.failed), None)) is not None:
                began = began if again else time.monotonic()
                if not self._begin(*target):
                    continue
            left = max(began + seconds - time.monotonic(), 0)
            pause = left if target is None else min(left, NEXT) if again else NEXT
            if (winner := self._look(pause, stop)) is not None:
                return winner
            if (again or target is None) and time.monotonic() >= began + seconds:
                break
        return None

    def _begin(self, family: socket.AddressFamily, where: Any) -> bool:
        """Begin an attempt; return whether it may still succeed."""
        attempt: socket.socket | None = None
        try:  # a host without IPv6 refuses the socket itself (EAFNOSUPPORT)
            attempt = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            if self._bind is not None and family != socket.AF_UNIX:
                attempt.bind((self._bind, 0))
            if self._most is not None:
                attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self._most)
            if (code := attempt.connect_ex(where)) not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            if attempt is not None:
                attempt.close()
            self.failed[family, where] = error
            return False
        self._running[attempt.fileno()] = attempt, (family, where)
        self._poll.register(attempt, select.POLLOUT)
        return True

    def _look(self, seconds: float, stop: Bell | None) -> socket.socket | None:
        """Return the winner, or None if there is none within `seconds`. Raises Stopped."""
        ready = [fd for fd, _ in self._poll.poll(seconds * 1000)]
        if stop is not None and stop.fd in ready:
            raise Stopped
        for fd in ready:
            attempt, target = self._running.pop(fd)
            code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return attempt
            self._poll.unregister(fd)
            attempt.close()
            self.failed[target] = OSError(code, os.strerror(code))
        return None

    def close(self) -> None:
        """End the other attempts."""
        for attempt, _ in self._running.values():
            attempt.close()
