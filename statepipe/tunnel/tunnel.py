"""tunnel: each connection that comes in at one address goes on to another, through a session of its own.

One tunnel stands on each host. The near one listens at a unix socket and dials the far one; the far one listens for
sessions and dials a unix socket. Or the near one starts a far one inside ssh, for each connection. So QEMU has `unix:`
at both ends, for as many connections as it wants (multifd, postcopy's preempt channel, NBD), each both ways; and a link
that breaks costs its time. Connections are made over there in the order in which they came here: QEMU takes the first
for the migration stream itself.

What becomes of one connection (tunnel/connection.py) concerns no other, and is told in one line.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace

from statepipe.ends.address import SSH, TLS
from statepipe.ends.dial import connect, listening, place_of
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.named import name_lost
from statepipe.ends.net import Stopped
from statepipe.ends.ration import Refusals
from statepipe.errors import PeerError
from statepipe.pipeline.job import at_work
from statepipe.session.links import ATTEMPTS, FIRST_PAUSE, Acceptor, Dial, dialled
from statepipe.session.options import Plan
from statepipe.session.overtls import TlsDial, door, timing
from statepipe.session.protocol.frames import Role
from statepipe.session.session import Session
from statepipe.session.transport import Transport
from statepipe.telling import Tell
from statepipe.transfer.endpoints import trust_of
from statepipe.tunnel.connection import Connection
from statepipe.tunnel.connections import CONNECTIONS, DOOR, MOST_WINDOW, Connections, share

STDIO = "-"
"""FROM, where ssh:// has started us: standard input and output are the first link."""


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """Where connections come in, and where they go on to; one of the two is tls://, or ssh://. `once`: end with the
    last. Coming in by ssh:// means one, from whoever started us inside ssh."""

    come: Plan
    go: Plan
    once: bool = False


def run_tunnel(request: TunnelRequest, say: Tell) -> None:
    """Carry connections until a signal, or with `once` until the last has ended. Raises StatepipeError."""
    connections = Connections(say, once=request.once)
    if request.come.address.scheme == SSH:
        _run_inside(request, connections)
        return
    with listening(request.come.address, insecure=request.come.insecure) as listener:
        if request.come.address.scheme == TLS:
            say(f"listening at {place_of(listener, request.come.address)}")
        try:
            with at_work(connections):
                (_far if request.come.address.scheme == TLS else _near)(request, listener, connections, say)
        finally:
            connections.end()
    connections.judge()


# --- where connections come in


def _near(request: TunnelRequest, listener: ListeningSocket, connections: Connections, say: Tell) -> None:
    """Each has reached the far tunnel, or never will, before the next is taken.

    Raises NameLost once no other can come, and those that are there have ended.
    """
    make_dial = _dials(request.go)
    listener.settimeout(DOOR)
    while (program := _accepted(listener, connections)) is not None or not connections.is_over:
        if program is not None:
            _let_in(program, request.go, *make_dial(), connections)
        elif lost := name_lost(listener):
            if connections.are_open:
                say(f"{lost}; the connections that are open go on, and then it ends")
            connections.outlast()
            raise lost


def _dials(plan: Plan) -> Callable[[], tuple[Dial, AbstractContextManager[object]]]:
    """What makes, for a connection, its dial and what ends that. Raises StatepipeError."""
    if plan.address.scheme == SSH:
        from statepipe.session.overssh import SshDial, times

        words = ["tunnel", *times(plan), STDIO, f"unix://{plan.address.path}"]
        return lambda: (dial := SshDial(plan, words), dial)
    trust = trust_of(plan, server=False)
    return lambda: (_Insistent(dial := TlsDial(plan, trust)), dial)


def _let_in(
    program: socket.socket, plan: Plan, dial: Dial, ending: AbstractContextManager[object], connections: Connections
) -> None:
    name, links = str(plan.address), plan.links
    window = share(connections.windows())
    patience = replace(timing(plan), tell=connections.news)
    session = dialled(dial, Role.TUNNELS, name, patience, links=links, window=window)
    connection = connections.open(session, ending)
    connections.launch(connection, lambda: connection.carry(program))
    session.wait_until(lambda: session.wire.opened)  # why it was not, its connection tells


def _accepted(listener: ListeningSocket, connections: Connections) -> socket.socket | None:
    """The next that comes within DOOR."""
    if not connections.has_room():
        return None
    try:
        program, _ = listener.accept()
    except (TimeoutError, ConnectionAbortedError):
        return None
    except OSError as error:  # no descriptor to spare, or no memory
        connections.lacks(os.strerror(error.errno or 0))
        return None
    program.setblocking(True)
    return program


class _Insistent:
    """Makes links for one session. A first one that breaks in the midst of its handshake is no reason to fail QEMU; a
    refusal is the same each time. Later ones are dialled again anyway, for as long as the session is patient."""

    def __init__(self, dial: Dial) -> None:
        self._dial, self._more = dial, ATTEMPTS - 1

    def __call__(self) -> Transport:
        """Raises what the last attempt does; Stopped at once."""
        while self._more:
            self._more -= 1
            try:
                transport = self._dial()
            except Stopped:
                raise
            except PeerError:  # the last one's reason is told
                time.sleep(FIRST_PAUSE)
            else:
                self._more = 0
                return transport
        return self._dial()


# --- where they go on


def _far(request: TunnelRequest, listener: ListeningSocket, connections: Connections, say: Tell) -> None:
    """Here sessions come in."""
    turned_away, plan = Refusals(say), request.go
    patience = replace(timing(request.come), tell=connections.news)
    acceptor = Acceptor(Role.TUNNELS, patience, turned_away, again=True, many=CONNECTIONS, share=share)
    with door(listener, trust_of(request.come, server=True, say=say), acceptor, turned_away):
        while (session := _next(acceptor)) is not None or not connections.is_over:
            connections.look()
            if session is not None:
                _go_on(plan, connections, connections.open(session))


def _next(acceptor: Acceptor) -> Session | None:
    with suppress(PeerError):  # nobody yet
        return acceptor.wait(DOOR)
    return None


def _go_on(plan: Plan, connections: Connections, connection: Connection) -> None:
    """To the program there, patiently; its refusal is the near program's."""
    try:
        program = connect(plan.address, plan.patience, None, insecure=plan.insecure)
    except PeerError as error:
        failure = error
        connections.launch(connection, lambda: connection.refuse(failure))
        return
    connections.launch(connection, lambda: connection.carry(program))


def _run_inside(request: TunnelRequest, connections: Connections) -> None:
    """The one connection of who started us inside ssh. Raises StatepipeError.

    The program is there before the near end hears of us, which takes its next connection then: so their order holds.
    """
    from statepipe.transfer.insidessh import first_patience, inside, turned_away

    come, go = request.come, request.go
    acceptor = Acceptor(Role.TUNNELS, timing(come), turned_away, window=MOST_WINDOW)
    with connect(go.address, go.patience, None, insecure=go.insecure) as program, inside(acceptor):
        connection = connections.open(acceptor.wait(first_patience(come)))
        try:
            connections.launch(connection, lambda: connection.carry(program))
            with at_work(connections):
                connections.outlast()
        finally:
            connections.end()
    connections.judge()
