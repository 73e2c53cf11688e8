"""The connections of a tunnel: which are open, how the others ended, and how many bytes passed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from statepipe.ends.ration import Ration
from statepipe.errors import PeerError, StatepipeError
from statepipe.migration.contact import WINDOWS
from statepipe.session.overtls import END_CHECK
from statepipe.session.protocol.channels import MIN_WINDOW
from statepipe.session.session import Session
from statepipe.telling import Tell
from statepipe.threads import join, start
from statepipe.tunnel.connection import Connection
from statepipe.typed import Any

CONNECTIONS = 64
"""Connections at a time. A multifd migration has 17 at most (QEMU's multifd-channels and the main stream)."""

MOST_WINDOW = WINDOWS[1]
"""Bytes in flight in each direction of one connection at most."""

BUDGET = 256 << 20
"""Bytes in flight in each direction of all connections together at most. Each connection can hold a full window
unread, and 64 windows of 16 MiB would take 1 GiB. A host with guests can spare half a gigabyte for both directions.
This gives the first connection 12 MiB, which fill 1 Gbit/s over 80 ms, and the 17th 4 MiB."""

PART = 16
"""A new connection gets 1/PART of the remaining bytes."""


def share(windows: Collection[int]) -> int:
    """Return the window of a new connection beside these windows. The first get most, and even the last gets one."""
    others = CONNECTIONS - len(windows) - 1
    left = BUDGET - sum(windows) - others * MIN_WINDOW
    return max(min(MOST_WINDOW, left // PART), MIN_WINDOW)


class Connections:
    """The connections, as a job that reports its status. `once`: the tunnel ends with the last connection."""

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
        """Register a new session and return its connection, to be launched; `ending` as in Connection."""
        connection = Connection(next(self._numbers), session, ending)
        with self._lock:
            self._open[connection] = None
            self._total += 1
        return connection

    def launch(self, connection: Connection, work: Callable[[], StatepipeError | None]) -> None:
        """Do the connection's work in a thread; at its end, remove it and report what broke it."""
        thread = threading.Thread(target=self._run, args=(connection, work), name="tunnel", daemon=True)
        with self._lock:
            self._open[connection] = thread
        start(thread)

    def _run(self, connection: Connection, work: Callable[[], StatepipeError | None]) -> None:
        broken = True
        try:
            if (failure := work()) is not None:
                became = "failed" if connection.session.wire.opened else "could not be made"
                self._tell(connection, f"{connection.name} {became}: {failure}")
            broken = failure is not None
            if connection.remark is not None:
                self._tell(connection, f"{connection.name}: {connection.remark}")
        finally:
            self._count_out(connection, broken)

    def news(self, kind: object, text: str) -> None:
        """Report news of the links once: all connections lose and regain their links at the same time."""
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
        """Return the windows of the open connections, in bytes."""
        with self._lock:
            return [each.session.wire.party.window for each in self._open]

    def look(self) -> None:
        """Report what is due by now. Call it from time to time."""
        self._lines.look()

    def has_room(self) -> bool:
        """Return whether there is room for another connection; waits a while for it."""
        self.look()
        with self._lock:
            return self._ended.wait_for(lambda: len(self._open) < CONNECTIONS, END_CHECK)

    def lacks(self, what: str) -> None:
        """Report a missing resource once, and wait a while for a connection to end and free it."""
        if what not in self._told:
            self._told.add(what)
            self._say(f"a connection has to wait: {what}")
        with self._lock:
            self._ended.wait(END_CHECK)

    def outlast(self) -> None:
        """Wait until no connection is open."""
        with self._lock:
            self._ended.wait_for(lambda: not self._open)

    @property
    def are_open(self) -> bool:
        """Return whether any connection is open."""
        with self._lock:
            return bool(self._open)

    @property
    def is_over(self) -> bool:
        """Return whether the last connection has ended and the tunnel ends with it."""
        with self._lock:
            return self._once and self._total > 0 and not self._open

    def status(self) -> dict[str, Any]:
        """Return the status for JSON: seconds, bytes read and written here, connections and the links that carry them.

        `links` counts all open links, `cut` the connections without a link.
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
        raise StatepipeError("a tunnel has no throttle", hint="set QEMU's max-bandwidth instead")

    def judge(self) -> None:
        """Raises PeerError if a connection failed."""
        if self._broken:
            raise PeerError(
                f"{self._broken} of {self._total} connections failed", hint="see the messages above for the reasons"
            )

    def end(self) -> None:
        """End all open connections at once, and wait for them."""
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
