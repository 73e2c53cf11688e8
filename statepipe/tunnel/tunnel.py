"""tunnel: forward each connection from one address to another, through a session of its own.

One tunnel runs on each host. The near one listens at a unix socket and connects to the far one; the far one listens
for sessions and connects to a unix socket. Or the near one starts a far one through ssh, for each connection. So QEMU
uses `unix:` at both ends, for any number of connections in both directions (multifd, postcopy's preempt channel, NBD),
and a broken link only costs time. The far end makes the connections in the order in which they came in, because QEMU
takes the first for the migration stream.

A failed connection (tunnel/connection.py) does not affect the others, and is reported in one line.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from statepipe.ends.address import SSH, TLS
from statepipe.ends.dial import connect, listening, place_of
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.named import name_lost
from statepipe.ends.net import Stopped
from statepipe.ends.ration import Refusals
from statepipe.errors import PeerError
from statepipe.pipeline.job import at_work
from statepipe.session.links import ATTEMPTS, FIRST_PAUSE, Acceptor, Dial, dialled
from statepipe.session.options import ConnectionPlan
from statepipe.session.overtls import END_CHECK, TlsDial, door, timing
from statepipe.session.protocol.frames import Role
from statepipe.session.transport import Transport
from statepipe.telling import Tell
from statepipe.transfer.endpoints import trust_of
from statepipe.tunnel.connections import CONNECTIONS, MOST_WINDOW, Connections, share

STDIO = "-"
"""FROM, if ssh:// started this process: standard input and output are the first link."""


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """Where connections come in and where they are forwarded to; one of the two is tls:// or ssh://.

    `once`: end with the last connection. From ssh:// there is only one, made by the process that started us."""

    come: ConnectionPlan
    go: ConnectionPlan
    once: bool = False


def run_tunnel(request: TunnelRequest, say: Tell) -> None:
    """Forward connections until a signal, or with `once` until the last has ended. Raises StatepipeError."""
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
    """Accept local connections. Each reaches the far tunnel, or fails, before the next is accepted. Raises NameLost."""
    plan, make_dial = request.go, _dials(request.go)
    patience = replace(timing(plan), tell=connections.news)

    def begin(program: socket.socket) -> None:
        dial, ending = make_dial()
        window = share(connections.windows())
        session = dialled(dial, Role.TUNNELS, str(plan.address), patience, links=plan.links, window=window)
        connection = connections.open(session, ending)
        connections.launch(connection, partial(connection.carry, program))
        connection.meet()

    accept_each(listener, connections, say, begin, lambda: connections.is_over)


def accept_each(
    listener: ListeningSocket,
    connections: Connections,
    say: Tell,
    begin: Callable[[socket.socket], object],
    is_over: Callable[[], bool],
) -> None:
    """Accept local connections until `is_over`. `begin` opens the way of one, and returns before the next is accepted.

    Raises NameLost if no more connections can come in, after the open ones have ended.
    """
    listener.settimeout(END_CHECK)
    while (program := _accepted(listener, connections)) is not None or not is_over():
        if program is not None:
            begin(program)
        elif lost := name_lost(listener):
            if connections.are_open:
                say(f"{lost}; the open connections continue, then the tunnel ends")
            connections.outlast()
            raise lost


def _dials(plan: ConnectionPlan) -> Callable[[], tuple[Dial, AbstractContextManager[object]]]:
    """Return a function that makes a connection's dial and the context that ends it. Raises StatepipeError."""
    if plan.address.scheme == SSH:
        from statepipe.session.overssh import SshDial, times

        words = ["tunnel", *times(plan), STDIO, f"unix://{plan.address.path}"]
        return lambda: (dial := SshDial(plan, words), dial)
    return tls_dials(plan)


def tls_dials(plan: ConnectionPlan) -> Callable[[], tuple[Dial, AbstractContextManager[object]]]:
    """Do as `_dials` for a tls:// address. Raises StatepipeError if nobody there is trusted."""
    trust = trust_of(plan, server=False)
    return lambda: (Insistent(dial := TlsDial(plan, trust)), dial)


def _accepted(listener: ListeningSocket, connections: Connections) -> socket.socket | None:
    """Return the next connection that comes in within END_CHECK seconds, or None."""
    if not connections.has_room():
        return None
    try:
        program, _ = listener.accept()
    except (TimeoutError, ConnectionAbortedError):
        return None
    except OSError as error:  # out of descriptors or memory
        connections.lacks(os.strerror(error.errno or 0))
        return None
    program.setblocking(True)
    return program


class Insistent:
    """Makes links for one session, and retries a first link that fails, so that QEMU's migration does not fail.

    It makes ATTEMPTS attempts, and more for so many `seconds`. A refusal is not retried. The session itself retries
    later links, as long as its patience lasts.
    """

    def __init__(self, dial: Dial, seconds: float = 0) -> None:
        self._dial, self._seconds, self._left = dial, seconds, ATTEMPTS

    def __call__(self) -> Transport:
        """Return a link. Raises the error of the last attempt; Stopped at once."""
        deadline = time.monotonic() + self._seconds
        while self._left > 1 or (self._left == 1 and time.monotonic() < deadline):
            self._left = max(self._left - 1, 1)
            try:
                transport = self._dial()
            except Stopped:
                raise
            except PeerError:  # the last attempt's error is raised
                time.sleep(FIRST_PAUSE)
            else:
                self._left = 0
                return transport
        self._left = 0
        return self._dial()


# --- where they go on


def _far(request: TunnelRequest, listener: ListeningSocket, connections: Connections, say: Tell) -> None:
    """Accept sessions from the near tunnel, and connect each to the local program, with patience."""
    turned_away, plan = Refusals(say), request.go
    patience = replace(timing(request.come), tell=connections.news)
    acceptor = Acceptor(Role.TUNNELS, patience, turned_away, again=True, many=CONNECTIONS, share=share)
    with door(listener, trust_of(request.come, server=True, say=say), acceptor, turned_away):
        while True:
            connections.look()
            try:
                connection = connections.open(acceptor.wait(END_CHECK))
            except PeerError:  # none has come
                if connections.is_over:
                    return
                continue
            try:
                program = connect(plan.address, plan.patience, None, insecure=plan.insecure)
            except PeerError as error:  # passed on to the near program
                connections.launch(connection, partial(connection.refuse, error))
            else:
                connections.launch(connection, partial(connection.carry, program))


def _run_inside(request: TunnelRequest, connections: Connections) -> None:
    """Carry the one connection of the process that started us through ssh. Raises StatepipeError.

    We connect to the program before we answer the near end, which accepts its next connection after that. This keeps
    the order of the connections.
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
