"""How send and recv meet, over a plain connection or an authenticated one, and what each gives them to work with."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

from statepipe.ends.address import SSH, TLS, UNIX
from statepipe.ends.dial import connected, listening, port_of
from statepipe.ends.firstbyte import accepted
from statepipe.ends.net import Patience, SocketSink, SocketSource, reset
from statepipe.ends.peercred import peer_of, user_name
from statepipe.ends.ration import Refusals
from statepipe.session.options import ConnectionPlan, Visit
from statepipe.telling import Tell, nobody

if TYPE_CHECKING:  # ssl alone takes 18 ms, which a plain connection need not pay
    from statepipe.session.streams import Inlet, Outlet
    from statepipe.trust.identity import Kept

FarSink = Union[SocketSink, "Outlet"]
"""A sink at the other host. Its `until_closed` waits for what comes back from there."""


@contextmanager
def outgoing(plan: ConnectionPlan, warn: Tell = nobody) -> Iterator[tuple[SocketSource | Inlet, FarSink]]:
    """Connect to the plan's address; give what comes back, and the sink. Raises PeerError.

    `warn` is called if a user other than root and ourselves listens at a unix socket.
    """
    if plan.address.scheme == TLS:
        from statepipe.session.overtls import TlsDial, sending

        dial = TlsDial(plan, trust_of(plan, server=False))
        with sending(plan, dial, dial) as ends:
            yield ends
        return
    if plan.address.scheme == SSH:
        from statepipe.session.overssh import sending_inside

        with sending_inside(plan) as ends:
            yield ends
        return
    name = str(plan.address)
    with connected_to(plan) as connection, SocketSource(connection, name, Patience()) as plain:
        if plan.address.scheme == UNIX and (uid := peer_of(connection)[1]) not in (0, os.geteuid()):
            warn(f"another user, {user_name(uid)}, listens at {name} and reads all that is sent there")
        sink = SocketSink(connection, name, plan.patience)
        plain.passed = lambda: sink.bytes
        yield plain, sink


@contextmanager
def connected_to(plan: ConnectionPlan) -> Iterator[socket.socket]:
    """The connection that is there, or one to the plan's address; closed on leaving. Raises PeerError."""
    if plan.ready is not None:
        with plan.ready:
            yield plan.ready
        return
    with connected(plan.address, plan.patience, plan.bind, insecure=plan.insecure) as connection:
        yield connection


def trust_of(plan: ConnectionPlan, *, server: bool, say: Tell = nobody) -> Kept:
    """Whom to believe, and who we are; `say` is told what is missing. Raises StatepipeError."""
    from statepipe.trust.identity import by_folder, by_pins

    if plan.creds is not None:
        return by_folder(plan.creds, server=server, peer=plan.peer, tell=say)
    return by_pins(plan.peer if server else plan.peer or plan.address.name, server=server, tell=say)


@contextmanager
def visited(plan: ConnectionPlan, say: Tell, idle: int | None = None) -> Iterator[Visit]:
    """The first at the plan's address who may come in. Any failure ends the connection with a reset."""
    trust = trust_of(plan, server=True, say=say) if plan.address.scheme == TLS else None
    with listening(plan.address, insecure=plan.insecure) as listener:
        if plan.address.scheme != UNIX and not plan.address.port:
            say(f"listening at port {port_of(listener)}")
        if trust is None:
            refusals = Refusals(say)
            with accepted(listener, plan.patience, refusals, allow_empty=plan.allow_empty) as connection:
                refusals.end()
                with SocketSource(connection, "the sender", plan.patience, idle) as plain, _or_reset(connection):
                    yield Visit(plain, connection.sendall, lambda: None)
            return
        from statepipe.session.overtls import receiving

        with receiving(plan, listener, trust, Refusals(say), idle) as visit:
            yield visit


@contextmanager
def _or_reset(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reset(connection)
        raise
