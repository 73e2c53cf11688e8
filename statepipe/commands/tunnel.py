"""tunnel: each connection that comes in at one address goes on to another, through a session of its own.

One tunnel stands on each host. The near one listens at a unix socket and dials the far one; the far one listens for
sessions and dials a unix socket. So QEMU has `unix:` at both ends, for as many connections as it wants (multifd,
postcopy's preempt channel, NBD), each both ways; and a link that breaks costs its time. Connections are made over there
in the order in which they came here: QEMU takes the first for the migration stream itself.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statepipe.commands.encounter import WINDOWS
from statepipe.commands.linked import TlsDial, door, timing
from statepipe.commands.meet import once, trust_of
from statepipe.commands.plan import Plan, Say
from statepipe.ends.address import TLS
from statepipe.ends.dial import connect, listening, port_of
from statepipe.ends.net import Patience, SocketSource
from statepipe.engine.desk import at_work
from statepipe.engine.peer import Inlet, Outlet
from statepipe.engine.session import Session
from statepipe.engine.sessionlinks import ATTEMPTS, FIRST_PAUSE, Acceptor, Dial, dialled
from statepipe.engine.timing import FAREWELL
from statepipe.engine.transport import Transport
from statepipe.errors import PeerError, StatepipeError
from statepipe.formats.frames import Role
from statepipe.threads import start

CONNECTIONS = 64
"""At a time: a migration by multifd has 17 at the most (QEMU's multifd-channels and the stream's own)."""


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
        self._over = threading.Event()
        self._open: dict[threading.Thread, Session] = {}
        self._total = self._broken = self._resent = self._there = self._back = 0

    def carry(self, connection: socket.socket, session: Session, ends: tuple[Inlet, Outlet]) -> None:
        """Move bytes both ways in a thread, until both sides have ended. The session is not entered yet, or just is."""
        thread = threading.Thread(target=self._carry, args=(connection, session, ends), name="tunnel", daemon=True)
        with self._lock:
            self._open[thread] = session
            self._total += 1
        start(thread)

    def _carry(self, connection: socket.socket, session: Session, ends: tuple[Inlet, Outlet]) -> None:
        try:
            with session, connection:
                _both_ways(connection, session, ends)
        except (OSError, StatepipeError) as error:
            self._say(f"a connection broke off: {error}")
            self._broken += 1
            if not isinstance(error, StatepipeError):
                raise
        finally:
            with self._lock:
                del self._open[threading.current_thread()]
                self._there += ends[1].bytes
                self._back += ends[0].bytes
                self._resent += ends[1].resent
                if self._once and not self._open:
                    self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether the last connection has ended, where that is the end."""
        return self._over.is_set()

    def status(self) -> dict[str, Any]:
        """Ready for JSON: seconds, bytes of connections that have ended, connections open and in all, bytes resent."""
        return {
            "seconds": round(time.monotonic() - self._started, 3),
            "bytes_in": self._there,
            "bytes_out": self._back,
            "stages": [],
            "connections": len(self._open),
            "connections_in_all": self._total,
            "resent": self._resent,
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
        """Break off what is open, and wait for it."""
        with self._lock:
            threads = dict(self._open)
        for thread, session in threads.items():
            session.fail(PeerError("the tunnel was ended"))
            thread.join()


def _both_ways(connection: socket.socket, session: Session, ends: tuple[Inlet, Outlet]) -> None:
    """Until both directions have ended. Raises what broke either."""
    inlet, outlet = ends
    failures: list[BaseException] = []

    def there() -> None:
        with SocketSource(connection, "the connection", _PATIENT) as source:
            try:
                for buffer in source:
                    outlet.write(buffer)
                outlet.commit()  # returns once all of it is with the far program
            except StatepipeError as error:
                failures.append(error)
                session.fail(error)
                raise

    thread = threading.Thread(target=there, name="tunnel", daemon=True)
    start(thread)
    try:
        for buffer in inlet:
            connection.sendall(buffer)
        connection.shutdown(socket.SHUT_WR)
        inlet.accept()
    except BaseException as error:
        with suppress(OSError):  # it was first
            connection.shutdown(socket.SHUT_RDWR)  # which wakes the other direction; closed it is once that has ended
        session.fail(error if isinstance(error, StatepipeError) else PeerError(f"the far connection broke: {error}"))
        raise
    finally:
        thread.join()
    session.say_close()
    session.hear_close(FAREWELL)
    session.flush(FAREWELL)


_PATIENT = Patience()

DOOR = 0.25
"""Seconds between two looks at whether the tunnel is over."""


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


def _near(request: Request, listener: socket.socket, tunnel: Tunnel, say: Say) -> None:
    """Here connections come in. Each has reached the far tunnel before the next is taken."""
    dial = _insistent(TlsDial(request.go, trust_of(request.go, server=False)))
    listener.settimeout(DOOR)
    while not tunnel.is_over:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.setblocking(True)
        session = dialled(
            dial, Role.BOTH, str(request.go.address), timing(request.go), links=request.go.links, window=WINDOW
        )
        ends = Inlet(session), Outlet(session)
        tunnel.carry(connection, session, ends)
        _meet(session, say)


def _insistent(dial: Dial) -> Dial:
    """A link that breaks in the midst of its handshake is no reason to fail QEMU; a refusal is the same each time."""

    def again() -> Transport:
        for _ in range(1, ATTEMPTS):
            with suppress(PeerError):
                return dial()
            time.sleep(FIRST_PAUSE)
        return dial()

    return again


def _meet(session: Session, say: Say) -> None:
    """A tunnel that cannot be reached now may be later: QEMU is told by its connection's end."""
    try:
        session.meet()
    except PeerError as error:
        say(f"a connection was not let through: {error}")


def _far(request: Request, listener: socket.socket, tunnel: Tunnel, say: Say) -> None:
    """Here sessions come in."""
    turned_away = once(say)
    acceptor = Acceptor(Role.BOTH, timing(request.come), turned_away, again=True, many=CONNECTIONS, window=WINDOW)
    with door(listener, trust_of(request.come, server=True), acceptor, turned_away):
        while not tunnel.is_over:
            if (session := _next(acceptor)) is not None:
                ends = Inlet(session), Outlet(session)
                try:
                    connection = connect(request.go.address, request.go.patience, None, insecure=request.go.insecure)
                except PeerError as error:
                    _refuse(session, error)
                    say(str(error))
                    continue
                tunnel.carry(connection, session, ends)


def _next(acceptor: Acceptor) -> Session | None:
    with suppress(PeerError):  # nobody yet
        return acceptor.wait(DOOR)
    return None


def _refuse(session: Session, error: PeerError) -> None:
    with session:
        session.fail(error)
        session.flush(FAREWELL)
