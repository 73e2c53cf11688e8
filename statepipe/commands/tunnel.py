"""tunnel: each connection that comes in at one address goes on to another, through a session of its own.

One tunnel stands on each host. The near one listens at a unix socket and dials the far one; the far one listens for
sessions and dials a unix socket. So QEMU has `unix:` at both ends, for as many connections as it wants (multifd,
postcopy's preempt channel, NBD), each both ways; and a link that breaks costs its time. Connections are made over there
in the order in which they came here: QEMU takes the first for the migration stream itself.

What becomes of one connection (commands/connection.py) concerns no other, and is told in one line.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statepipe.commands.connection import Connection
from statepipe.commands.encounter import WINDOWS
from statepipe.commands.linked import TlsDial, door, timing
from statepipe.commands.meet import once, trust_of
from statepipe.commands.plan import Plan, Say
from statepipe.ends.address import TLS
from statepipe.ends.dial import connect, listening, port_of
from statepipe.engine.desk import at_work
from statepipe.engine.session import Session
from statepipe.engine.sessionlinks import ATTEMPTS, FIRST_PAUSE, Acceptor, Dial, dialled
from statepipe.engine.transport import Transport
from statepipe.errors import PeerError, StatepipeError
from statepipe.formats.frames import Role
from statepipe.threads import start

CONNECTIONS = 64
"""At a time: a migration by multifd has 17 at the most (QEMU's multifd-channels and the stream's own)."""

DOOR = 0.25
"""Seconds between two looks at whether the tunnel is over."""

WINDOW = WINDOWS[1]
"""Bytes on their way each way in each connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """Where connections come in, and where they go on to; one of the two is tls://. `once`: end with the last."""

    come: Plan
    go: Plan
    once: bool = False


class Tunnel:
    """The connections that are open, and what has passed; a job that may be asked."""

    def __init__(self, say: Say, *, once: bool) -> None:
        self._say, self._once = say, once
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)  # a connection
        self._told: set[str] = set()
        self._numbers = itertools.count(1)
        self._open: dict[Connection, threading.Thread | None] = {}
        self._total = self._broken = self._resent = self._there = self._back = 0

    def open(self, session: Session) -> Connection:
        """Enter a session that has just begun, for a connection that is to be launched."""
        connection = Connection(next(self._numbers), session)
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
                self._say(f"connection {connection.number} {became}: {failure}")
            broken = failure is not None
        finally:
            self._count_out(connection, broken)
        if connection.remark is not None:
            self._say(f"connection {connection.number}: {connection.remark}")

    def _count_out(self, connection: Connection, broken: bool) -> None:
        with self._lock:
            del self._open[connection]
            self._broken += broken
            self._there += connection.outlet.bytes
            self._back += connection.inlet.bytes
            self._resent += connection.outlet.resent
            self._ended.notify_all()

    def has_room(self) -> bool:
        """Whether there may be one more connection; waits for that a while."""
        with self._lock:
            return self._ended.wait_for(lambda: len(self._open) < CONNECTIONS, DOOR)

    def lacks(self, what: str) -> None:
        """Tell it once, and wait a while for a connection to end: then there may be what it takes."""
        if what not in self._told:
            self._told.add(what)
            self._say(f"a connection has to wait: {what}")
        with self._lock:
            self._ended.wait(DOOR)

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
            if thread is None:
                connection.leave()
            else:
                thread.join()


def run_tunnel(request: Request, say: Say) -> None:
    """Carry connections until a signal, or with `once` until the last has ended. Raises StatepipeError."""
    tunnel = Tunnel(say, once=request.once)
    with listening(request.come.address, insecure=request.come.insecure) as listener:
        if request.come.address.scheme == TLS and not request.come.address.port:
            say(f"listening at port {port_of(listener)}")
        try:
            with at_work(tunnel):
                (_far if request.come.address.scheme == TLS else _near)(request, listener, tunnel, say)
        finally:
            tunnel.end()
    tunnel.judge()


# --- where connections come in


def _near(request: Request, listener: socket.socket, tunnel: Tunnel, say: Say) -> None:
    """Each has reached the far tunnel, or never will, before the next is taken."""
    trust = trust_of(request.go, server=False)
    listener.settimeout(DOOR)
    while (program := _accepted(listener, tunnel)) is not None or not tunnel.is_over:
        if program is not None:
            _let_in(program, request.go, TlsDial(request.go, trust), tunnel)


def _let_in(program: socket.socket, plan: Plan, dial: Dial, tunnel: Tunnel) -> None:
    name, links = str(plan.address), plan.links
    session = dialled(_Insistent(dial), Role.TUNNELS, name, timing(plan), links=links, window=WINDOW)
    connection = tunnel.open(session)
    tunnel.launch(connection, lambda: connection.carry(program))
    session.wait_until(lambda: session.wire.opened)  # why it was not, its connection tells


def _accepted(listener: socket.socket, tunnel: Tunnel) -> socket.socket | None:
    """The next that comes within DOOR."""
    if not tunnel.has_room():
        return None
    try:
        program, _ = listener.accept()
    except (TimeoutError, ConnectionAbortedError):
        return None
    except OSError as error:  # no descriptor to spare, or no memory
        tunnel.lacks(os.strerror(error.errno or 0))
        return None
    program.setblocking(True)
    return program


class _Insistent:
    """Makes links for one session. A first one that breaks in the midst of its handshake is no reason to fail QEMU; a
    refusal is the same each time. Later ones are dialled again anyway, for as long as the session is patient."""

    def __init__(self, dial: Dial) -> None:
        self._dial, self._more = dial, ATTEMPTS - 1

    def __call__(self) -> Transport:
        """Raises what the last attempt does."""
        while self._more:
            self._more -= 1
            with suppress(PeerError):
                transport = self._dial()
                self._more = 0
                return transport
            time.sleep(FIRST_PAUSE)
        return self._dial()


# --- where they go on


def _far(request: Request, listener: socket.socket, tunnel: Tunnel, say: Say) -> None:
    """Here sessions come in."""
    turned_away, plan = once(say), request.go
    acceptor = Acceptor(Role.TUNNELS, timing(request.come), turned_away, again=True, many=CONNECTIONS, window=WINDOW)
    with door(listener, trust_of(request.come, server=True), acceptor, turned_away):
        while (session := _next(acceptor)) is not None or not tunnel.is_over:
            if session is not None:
                _go_on(plan, tunnel, tunnel.open(session))


def _next(acceptor: Acceptor) -> Session | None:
    with suppress(PeerError):  # nobody yet
        return acceptor.wait(DOOR)
    return None


def _go_on(plan: Plan, tunnel: Tunnel, connection: Connection) -> None:
    """To the program there, patiently; its refusal is the near program's."""
    try:
        program = connect(plan.address, plan.patience, None, insecure=plan.insecure)
    except PeerError as error:
        failure = error
        tunnel.launch(connection, lambda: connection.refuse(failure))
        return
    tunnel.launch(connection, lambda: connection.carry(program))
