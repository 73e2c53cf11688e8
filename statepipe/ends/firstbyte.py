"""Of those who connect, the first that has something to say.

A port scan and a health check connect and leave, or sit there without a word. Neither is a sender: what would have been
replaced by its empty stream stays, and whoever comes next is let in beside it. So a connection counts from its first
byte on; where an empty stream is wanted all the same, its end counts too.
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
"""Connections without a word that are kept. Of more, the oldest leaves: descriptors are bounded, and senders begin."""

TurnedAway = Callable[[str, PeerError], object]
"""Told who was turned away, and why."""


@contextmanager
def accepted(
    listener: ListeningSocket, patience: Patience, turned_away: TurnedAway, *, allow_empty: bool
) -> Iterator[socket.socket]:
    """The connection whose first byte came first, closed on leaving; then nobody listens any more.

    With `allow_empty`, one that ends without a byte counts as well. Raises PeerError when none comes in time.
    """
    lobby = _Lobby(listener, patience, turned_away, allow_empty=allow_empty)
    try:
        connection = lobby.first()
    finally:
        lobby.close()
    with connection:
        yield connection


class _Lobby:
    """Connections that have not sent anything yet, the oldest first, with the time (monotonic) at which each came."""

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
        """Wait for it. Raises PeerError after as much silence as is borne, since the last who is there came, and once
        nobody else can come."""
        while True:
            ready = self._poll.poll(min(self._left(), NAME_LOOK * 1000))
            if not ready and not self._left():
                raise self._nobody()
            if not ready and not self._waiting and (lost := name_lost(self._listener)):
                raise lost
            for fd, _ in ready:
                if fd == self._listener.fileno():
                    self._let_in()
                elif fd in self._waiting and self._begins(fd):
                    return self._give_up(fd)

    def _left(self) -> float:
        """Milliseconds."""
        if self._patience.silence is None:
            return math.inf
        since = max((came for _, _, came in self._waiting.values()), default=self._began)
        return max(since + self._patience.silence - time.monotonic(), 0) * 1000

    def _nobody(self) -> PeerError:
        if self._waiting:
            return lost("the sender", TimeoutError(), 0, self._patience)
        return PeerError(f"nobody came within {self._patience.silence:g} s")

    def _let_in(self) -> None:
        try:
            connection, where = self._listener.accept()
        except OSError as error:  # it has left already, or there is no descriptor to spare
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if not self._waiting:
                    raise PeerError("there is no descriptor to spare", hint="look at ulimit -n") from error
                self._turn_away(next(iter(self._waiting)), "there was no room for it, and it had sent nothing")
            return
        tune(connection, self._patience)
        name = str(where[0]) if isinstance(where, tuple) else "somebody"
        self._waiting[connection.fileno()] = connection, name, time.monotonic()
        self._poll.register(connection.fileno(), select.POLLIN)
        if len(self._waiting) > MOST:
            self._turn_away(next(iter(self._waiting)), "too many connected and sent nothing")

    def _begins(self, fd: int) -> bool:
        """Whether its first byte is there. One that has left is turned away."""
        try:
            begins = bool(self._waiting[fd][0].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)) or self._allow_empty
        except BlockingIOError:
            return False
        except OSError:  # a reset is no end of a stream, not even of an empty one
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
        """Nobody else comes in, and who still waits hears of it."""
        self._listener.close()
        for connection, _, _ in self._waiting.values():
            with connection:
                reset(connection)
