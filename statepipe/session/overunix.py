"""receive, migrate and check at a unix socket: a session (docs/protocol.md) between two processes of one host, for
example to move a guest into a newer QEMU. Instead of certificates, the kernel reports which user is at the other end.

A listening statepipe sends a line first. So `migrate` can tell it from a QEMU, which waits for the stream in silence.
The connection that was made to find out is kept, because QEMU accepts only one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
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
from statepipe.session.options import ConnectionPlan
from statepipe.session.transport import SocketTransport
from statepipe.threads import beside
from statepipe.wakeups import Bell, Stoppable, polled

FIRST_LINE = b"statepipe session\n"

HEARD = 3.0
"""Seconds in which the line arrives, even on a busy host; a relay to a QEMU stays silent."""

HERE = "this host"
"""The origin of every connection to a unix socket."""


def find_out(plan: ConnectionPlan) -> tuple[socket.socket, bool]:
    """Return a connection to the plan's address, and whether a statepipe answers: then its first line has been read.

    Raises PeerError.
    """
    connection = connect(plan.address, plan.patience, None, insecure=False)
    try:
        return connection, not is_qemu(peer_of(connection)[0]) and _has_spoken(connection, None)
    except BaseException:
        connection.close()
        raise


def _has_spoken(connection: socket.socket, stop: Bell | None) -> bool:
    """Return whether the line arrives, and read no more than it. Raises Stopped when `stop` rings."""
    taken = b""
    while len(taken) < len(FIRST_LINE) and awaited(HEARD, stop, connection, POLLIN):
        if not (more := connection.recv(len(FIRST_LINE) - len(taken))):
            break
        taken += more
    return taken == FIRST_LINE


class UnixDial(Stoppable):
    """Makes links to the plan's address, the first over `plan.ready`. Leaving the context ends a dial."""

    def __init__(self, plan: ConnectionPlan) -> None:
        super().__init__()
        self._plan, self._ready = plan, plan.ready

    def __call__(self) -> SocketTransport:
        """Raises PeerError, also if another user answers than is allowed."""
        plan, ready = self._plan, self._ready
        name, self._ready = str(plan.address), None
        connection = ready or connect(plan.address, plan.patience, None, insecure=False, stop=self._stop)
        try:
            user = demand_known(name, connection, self._plan.peer)
            if ready is None and not _has_spoken(connection, self._stop):
                raise PeerError(f"no statepipe answers at {name}", hint="start 'statepipe receive' there")
        except BaseException:
            connection.close()
            raise
        return SocketTransport(connection, name, user)


def demand_known(name: str, connection: socket.socket, peer: str | None, known: int | None = None) -> str:
    """Do as `demand_user` for the listener at the address `name`. Raises PeerError."""
    try:
        return demand_user(connection, peer, known)
    except PeerError as error:
        raise PeerError(f"{name}: {error}", hint=error.hint) from error


@contextmanager
def unix_door(
    plan: ConnectionPlan, listener: ListeningSocket, acceptor: Acceptor, turned_away: Refusals
) -> Iterator[None]:
    """Accept authorised links during the context. If the socket's name is lost, the acceptor is told."""
    end = Bell()
    listener.setblocking(False)

    def watch() -> None:
        poll = polled(listener.fileno(), end.fd)
        while not any(fd == end.fd for fd, _ in poll.poll(NAME_LOOK * 1000)):
            turned_away.look()
            if lost := name_lost(listener):
                acceptor.give_up(lost)
                return
            try:
                connection, _ = listener.accept()
            except OSError:  # none, or it has left again, or no descriptor is free
                continue
            try:
                user = demand_user(connection, plan.peer)
                tune(connection, Patience())
                connection.sendall(FIRST_LINE)
                acceptor.adopt(SocketTransport(connection, f"{user} on {HERE}", user))
            except PeerError as error:
                connection.close()
                turned_away(HERE, error)
            except OSError:  # it has left
                connection.close()

    try:
        with beside("door", watch, end.ring):
            yield
    finally:
        turned_away.end()
