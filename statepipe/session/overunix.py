"""receive, migrate and check at a unix socket: a session (docs/protocol.md) between two processes of one host, as when
a guest goes into a newer QEMU. In the place of certificates stands the kernel's word on who is at the other end.

Who listens says a line first. So `migrate` knows a statepipe from a QEMU, which waits at its own socket in silence for
the stream: a connection that was made to find out is not closed again, for QEMU takes one alone.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import POLLIN

from statepipe.ends.dial import connect
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.named import NAME_LOOK, name_lost
from statepipe.ends.net import Patience, awaited, tune
from statepipe.ends.peercred import demand_user, peer_of
from statepipe.ends.ration import Refusals
from statepipe.errors import PeerError
from statepipe.qemu.process import is_qemu
from statepipe.session.links import Acceptor
from statepipe.session.options import Plan
from statepipe.session.transport import SocketTransport
from statepipe.threads import beside
from statepipe.wakeups import Bell, Stoppable, polled

FIRST_LINE = b"statepipe session\n"

HEARD = 3.0
"""Seconds in which the line is there, on a busy host too; a relay to a QEMU is silent."""

HERE = "this host"
"""Where everybody is from who comes to a unix socket."""


def find_out(plan: Plan) -> tuple[socket.socket, bool]:
    """A connection to the plan's address, and whether a statepipe is there: its first line has been taken then.

    Raises PeerError.
    """
    connection = connect(plan.address, plan.patience, None, insecure=False)
    try:
        return connection, not _is_qemu(connection) and _has_spoken(connection, None)
    except BaseException:
        connection.close()
        raise


def _is_qemu(connection: socket.socket) -> bool:
    """Whether it is surely one: then there is nothing to wait for."""
    return is_qemu(peer_of(connection)[0])


def _has_spoken(connection: socket.socket, stop: Bell | None) -> bool:
    """Whether the line comes. Only it is taken. Raises Stopped once `stop` rings."""
    taken = b""
    while len(taken) < len(FIRST_LINE) and awaited(HEARD, stop, connection, POLLIN):
        if not (more := connection.recv(len(FIRST_LINE) - len(taken))):
            break
        taken += more
    return taken == FIRST_LINE


class UnixDial(Stoppable):
    """Makes links to the plan's address, the first over the connection that is there. Leaving it ends a dial."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan, self._ready = plan, plan.ready

    def __call__(self) -> SocketTransport:
        """Raises PeerError, also where somebody else is there than may be."""
        plan, ready = self._plan, self._ready
        name, self._ready = str(plan.address), None
        connection = ready or connect(plan.address, plan.patience, None, insecure=False, stop=self._stop)
        try:
            user = demand_known(name, connection, self._plan.peer)
            if ready is None and not _has_spoken(connection, self._stop):
                raise PeerError(f"no statepipe answers at {name}", hint="what listens there is not 'statepipe receive'")
        except BaseException:
            connection.close()
            raise
        return SocketTransport(connection, name, user)


def demand_known(name: str, connection: socket.socket, peer: str | None, known: int | None = None) -> str:
    """As `demand_user`, for who listens at the address `name`. Raises PeerError."""
    try:
        return demand_user(connection, peer, known)
    except PeerError as error:
        raise PeerError(f"{name}: {error}", hint=error.hint) from error


@contextmanager
def unix_door(plan: Plan, listener: ListeningSocket, acceptor: Acceptor, turned_away: Refusals) -> Iterator[None]:
    """Let in whoever may come, for as long as the session lasts; who waits for the next hears it if nobody can."""
    end = Bell()
    listener.setblocking(False)

    def watch() -> None:
        poll = polled(listener.fileno(), end.fd)
        while not any(fd == end.fd for fd, _ in poll.poll(NAME_LOOK * 1000)):
            turned_away.look()
            if lost := name_lost(listener):
                acceptor.give_up(lost)
                return
            _let_in(listener, lambda connection: acceptor.adopt(_transport(connection, plan.peer)), turned_away)

    try:
        with beside("door", watch, end.ring):
            yield
    finally:
        turned_away.end()


def _let_in(listener: ListeningSocket, adopt: Callable[[socket.socket], None], turned_away: Refusals) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:  # nobody has come, or has left again; or there is no descriptor to spare
        return
    try:
        adopt(connection)
    except PeerError as error:
        connection.close()
        turned_away(HERE, error)
    except OSError:  # it has left
        connection.close()


def _transport(connection: socket.socket, peer: str | None) -> SocketTransport:
    """Raises PeerError, OSError."""
    user = demand_user(connection, peer)
    tune(connection, Patience())
    connection.sendall(FIRST_LINE)
    return SocketTransport(connection, f"{user} on {HERE}", user)
