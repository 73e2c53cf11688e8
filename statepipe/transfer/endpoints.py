"""How send and recv connect, plainly or authenticated: an address becomes a source or a sink."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union

from statepipe.ends.address import SSH, TLS, UNIX
from statepipe.ends.dial import connect, listening, port_of
from statepipe.ends.firstbyte import accepted
from statepipe.ends.net import Patience, SocketSink, SocketSource, reset
from statepipe.ends.peercred import peer_of, user_name
from statepipe.ends.ration import Refusals
from statepipe.session.options import ConnectionPlan, Visit
from statepipe.telling import Tell, nobody
from statepipe.typed import TYPE_CHECKING

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
    """Give the plan's existing connection, or connect to its address; close it at the exit. Raises PeerError."""
    if plan.ready is not None:
        with plan.ready:
            yield plan.ready
        return
    with connect(plan.address, plan.patience, plan.bind, insecure=plan.insecure) as connection:
        yield connection


def trust_of(plan: ConnectionPlan, *, server: bool, say: Tell = nobody) -> Kept:
    """Return whom to trust, and our own key; `say` gets what is missing. Raises StatepipeError."""
    from statepipe.session.largerecords import offered_protocols
    from statepipe.trust.identity import by_folder, by_pins

    protocols = offered_protocols(plan.records)
    if plan.creds is not None:
        return by_folder(plan.creds, server=server, peer=plan.peer, tell=say, protocols=protocols)
    return by_pins(
        plan.peer if server else plan.peer or plan.address.name, server=server, tell=say, protocols=protocols
    )


@contextmanager
def visited(plan: ConnectionPlan, say: Tell, idle: int | None = None) -> Iterator[Visit]:
    """Give the first authorised sender at the plan's address. A failure in the context resets the connection."""
    trust = trust_of(plan, server=True, say=say) if plan.address.scheme == TLS else None
    with listening(plan.address, insecure=plan.insecure) as listener:
        if plan.address.scheme != UNIX and not plan.address.port:
            say(f"listening at port {port_of(listener)}")
        if trust is None:
            refusals = Refusals(say)
            with accepted(listener, plan.patience, refusals, allow_empty=plan.allow_empty) as connection:
                refusals.end()
                with SocketSource(connection, "the sender", plan.patience, idle) as plain:
                    try:
                        yield Visit(plain, connection.sendall, lambda: None)
                    except BaseException:
                        reset(connection)
                        raise
            return
        from statepipe.session.overtls import receiving

        with receiving(plan, listener, trust, Refusals(say), idle) as visit:
            yield visit
