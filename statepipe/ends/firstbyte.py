"""Accept the first connection that sends something.

A port scan or a health check connects and closes, or stays silent. It is not a sender: its empty stream must not
replace a file, and it must not keep the real sender out. So a connection counts from its first byte on. If an empty
stream is allowed, its end counts too.
"""

from __future__ import annotations

import errno
import math
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.named import NAME_LOOK, name_lost
from statepipe.ends.net import Patience, lost, reset, tune
from statepipe.errors import PeerError
from statepipe.wakeups import polled

MOST = 64
"""Silent connections that are kept. For one more, the oldest is closed: descriptors are limited."""

TurnedAway = Callable[[str, PeerError], object]
"""Receives the address of a connection that was turned away, and the reason."""


@contextmanager
def accepted(
    listener: ListeningSocket, patience: Patience, turned_away: TurnedAway, *, allow_empty: bool
) -> Iterator[socket.socket]:
    """Yield the first connection that sends a byte, and stop listening; the connection is closed at the exit.

    With `allow_empty`, a connection that ends without a byte counts too. Raises PeerError if none comes in time.
    """
    lobby = _SilentConnections(listener, patience, turned_away, allow_empty=allow_empty)
    try:
        connection = lobby.first()
    finally:
        lobby.close()
    with connection:
        yield connection


class _SilentConnections:
    """Connections that have not sent anything, the oldest first, with the time (monotonic) at which each came."""

    def __init__(
        self, listener: ListeningSocket, patience: Patience, turned_away: TurnedAway, *, allow_empty: bool
    ) -> None:
        self._listener, self._patience, self._turned_away = listener, patience, turned_away
        self._allow_empty = allow_empty
        self._waiting: dict[int, tuple[socket.socket, str, float]] = {}
        self._poll = polled(listener.fileno())
        self._began = time.monotonic()
        listener.setblocking(False)

    def first(self) -> socket.socket:
        """Wait for the first byte. Raises PeerError when the patience ends, counted from the newest connection, or when
        no more connections can come in."""
        while True:
            ready = self._poll.poll(min(self._left(), NAME_LOOK * 1000))
            if not ready and not self._left():
                if self._waiting:
                    raise lost("the sender", TimeoutError(), 0, self._patience)
                raise PeerError(f"no peer connected within {self._patience.silence:g} s")
            if not ready and not self._waiting and (unreachable := name_lost(self._listener)):
                raise unreachable
            for fd, _ in ready:
                if fd == self._listener.fileno():
                    self._let_in()
                elif fd in self._waiting and self._begins(fd):
                    return self._give_up(fd)

    def _left(self) -> float:
        """Return the milliseconds left."""
        if self._patience.silence is None:
            return math.inf
        since = max((came for _, _, came in self._waiting.values()), default=self._began)
        return max(since + self._patience.silence - time.monotonic(), 0) * 1000

    def _let_in(self) -> None:
        try:
            connection, where = self._listener.accept()
        except OSError as error:  # it was closed again, or we are out of descriptors
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if not self._waiting:
                    raise PeerError("out of file descriptors", hint="raise the limit: ulimit -n") from error
                self._turn_away(next(iter(self._waiting)), "it sent nothing, and its descriptor was needed")
            return
        tune(connection, self._patience)
        name = str(where[0]) if isinstance(where, tuple) else "a connection"
        self._waiting[connection.fileno()] = connection, name, time.monotonic()
        self._poll.register(connection.fileno(), select.POLLIN)
        if len(self._waiting) > MOST:
            self._turn_away(next(iter(self._waiting)), "too many connections that sent nothing")

    def _begins(self, fd: int) -> bool:
        """Return whether its first byte has arrived. Turns away a connection that was closed."""
        try:
            begins = bool(self._waiting[fd][0].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)) or self._allow_empty
        except BlockingIOError:
            return False
        except OSError:  # a reset does not end a stream, not even an empty one
            begins = False
        if not begins:
            self._turn_away(fd, "it sent nothing; an empty stream counts with --allow-empty")
        return begins

    def _turn_away(self, fd: int, why: str) -> None:
        name = self._waiting[fd][1]
        with self._give_up(fd) as connection:
            reset(connection)
        self._turned_away(name, PeerError(why))

    def _give_up(self, fd: int) -> socket.socket:
        self._poll.unregister(fd)
        return self._waiting.pop(fd)[0]

    def close(self) -> None:
        """Stop listening, and close the waiting connections."""
        self._listener.close()
        for connection, _, _ in self._waiting.values():
            with connection:
                reset(connection)
