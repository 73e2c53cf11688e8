"""The connections of a tunnel: which are open, what became of the others, and what has passed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

from statepipe.ends.ration import Ration
from statepipe.errors import PeerError, StatepipeError
from statepipe.migration.contact import WINDOWS
from statepipe.session.protocol.channels import MIN_WINDOW
from statepipe.session.session import Session
from statepipe.telling import Tell
from statepipe.threads import join, start
from statepipe.tunnel.connection import Connection

CONNECTIONS = 64
"""At a time: a migration by multifd has 17 at the most (QEMU's multifd-channels and the stream's own)."""

MOST_WINDOW = WINDOWS[1]
"""Bytes on their way, each way, in one connection at the most."""

BUDGET = 256 << 20
"""Bytes on their way, each way, that all connections together keep at the most: each may have as many, unread, as its
window has, and 64 windows of 16 MiB would take 1 GiB. Half a gigabyte for both ways is what a host with guests of some
can spare; and it leaves the first connection 12 MiB, which fill 1 Gbit/s over 80 ms, and the 17th 4."""

PART = 16
"""A new connection gets one part in so many of what is left."""

DOOR = 0.25
"""Seconds between two looks at whether the tunnel is over."""


def share(windows: Collection[int]) -> int:
    """The window of one more connection beside these windows. The first fare best, and the last still has one."""
    others = CONNECTIONS - len(windows) - 1
    left = BUDGET - sum(windows) - others * MIN_WINDOW
    return max(min(MOST_WINDOW, left // PART), MIN_WINDOW)


class Connections:
    """A job that may be asked. `once`: it is over with the last."""

    def __init__(self, say: Tell, *, once: bool) -> None:
        self._say, self._once = say, once
        self._lines = Ration(say, CONNECTIONS, "and {} more lines about connections were left out")
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)  # a connection
        self._told: set[str] = set()
        self._numbers = itertools.count(1)
        self._open: dict[Connection, threading.Thread | None] = {}
        self._total = self._broken = self._resent = self._there = self._back = 0

    def open(self, session: Session, ending: AbstractContextManager[object] | None = None) -> Connection:
        """Enter a session that has just begun, for a connection that is to be launched; `ending` as Connection's."""
        connection = Connection(next(self._numbers), session, ending)
        with self._lock:
            self._open[connection] = None
            self._total += 1
        return connection

    def launch(self, connection: Connection, work: Callable[[], StatepipeError | None]) -> None:
        """Do the connection's work in a thread, count it out at its end, and tell what broke it."""
        thread = threading.Thread(target=self._run, args=(connection, work), name="tunnel", daemon=True)
        with self._lock:
            self._open[connection] = thread
        start(thread)

    def _run(self, connection: Connection, work: Callable[[], StatepipeError | None]) -> None:
        broken = True
        try:
            if (failure := work()) is not None:
                became = "broke off" if connection.session.wire.opened else "was not let through"
                self._tell(connection, f"connection {connection.number} {became}: {failure}")
            broken = failure is not None
            if connection.remark is not None:
                self._tell(connection, f"connection {connection.number}: {connection.remark}")
        finally:
            self._count_out(connection, broken)

    def news(self, kind: object, text: str) -> None:
        """Of the links, which all connections lose and have again at once: one line is enough."""
        self._lines.tell(kind, text)

    def _tell(self, connection: Connection, text: str) -> None:
        self._lines.tell((connection.number, text), text)

    def _count_out(self, connection: Connection, broken: bool) -> None:
        with self._lock:
            del self._open[connection]
            self._broken += broken
            self._there += connection.outlet.bytes
            self._back += connection.inlet.bytes
            self._resent += connection.outlet.resent
            self._ended.notify_all()

    def windows(self) -> list[int]:
        """Of those that are open, in bytes."""
        with self._lock:
            return [each.session.wire.party.window for each in self._open]

    def look(self) -> None:
        """Tell what is to be told by now; to be called now and then."""
        self._lines.look()

    def has_room(self) -> bool:
        """Whether there may be one more connection; waits for that a while."""
        self.look()
        with self._lock:
            return self._ended.wait_for(lambda: len(self._open) < CONNECTIONS, DOOR)

    def lacks(self, what: str) -> None:
        """Tell it once, and wait a while for a connection to end: then there may be what it takes."""
        if what not in self._told:
            self._told.add(what)
            self._say(f"a connection has to wait: {what}")
        with self._lock:
            self._ended.wait(DOOR)

    def outlast(self) -> None:
        """Wait until no connection is open."""
        with self._lock:
            self._ended.wait_for(lambda: not self._open)

    @property
    def are_open(self) -> bool:
        """Whether there are any now."""
        with self._lock:
            return bool(self._open)

    @property
    def is_over(self) -> bool:
        """Whether the last connection has ended, where that is the end."""
        with self._lock:
            return self._once and self._total > 0 and not self._open

    def status(self) -> dict[str, Any]:
        """Ready for JSON: seconds, bytes taken and given here, connections and the links that carry them.

        `links` are all that are up, `cut` the connections that have none.
        """
        with self._lock:
            connections = list(self._open)
            links = [each.session.links for each in connections]
            return {
                "seconds": round(time.monotonic() - self._started, 3),
                "bytes_in": self._there + sum(each.outlet.bytes for each in connections),
                "bytes_out": self._back + sum(each.inlet.bytes for each in connections),
                "stages": [],
                "connections": len(connections),
                "connections_total": self._total,
                "connections_broken": self._broken,
                "links": sum(links),
                "cut": links.count(0),
                "resent": self._resent + sum(each.outlet.resent for each in connections),
            }

    def set_rate(self, rate: int | None) -> None:
        """Raises StatepipeError."""
        raise StatepipeError("a tunnel has no throttle", hint="QEMU's max-bandwidth is what to set")

    def judge(self) -> None:
        """Raises PeerError if a connection broke off."""
        if self._broken:
            raise PeerError(
                f"{self._broken} of {self._total} connections broke off", hint="what is said above tells why"
            )

    def end(self) -> None:
        """Break off what is open, all at once, and wait for it."""
        with self._lock:
            threads = dict(self._open)
        for connection in threads:
            connection.break_off(PeerError("the tunnel was ended"))
        for connection, thread in threads.items():
            if thread is None or thread.ident is None:  # it never began
                connection.leave()
            else:
                join(thread)
        self._lines.end()
