"""How send and recv meet, over a plain connection or an authenticated one, and what each gives them to work with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from statepipe.ends.address import TLS, UNIX, Address
from statepipe.ends.dial import accepted, connected, listening, port_of
from statepipe.ends.net import Patience, SocketSink, SocketSource, reset
from statepipe.engine.pipeline import NamedStage
from statepipe.errors import PeerError
from statepipe.stage import Buffer

if TYPE_CHECKING:  # ssl alone takes 18 ms, which a plain connection need not pay
    from statepipe.ends.tlsends import TlsSink, TlsSource
    from statepipe.ends.trust import Trust

TOLD = 16
"""Reasons for turning somebody away that are told; each once."""

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where, through which stages, how patiently, and from which address of ours (`bind`, for send).

    For TLS: the folder with certificates (None: the pinned keys), and the one peer that is meant.
    """

    address: Address
    words: Sequence[NamedStage]
    patience: Patience
    insecure: bool = False
    bind: str | None = None
    creds: str | None = None
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """A sender who came in: its stream, how to send it something, and how to tell it that all is well."""

    source: SocketSource | TlsSource
    send: Callable[[Buffer], object]
    finish: Callable[[], object]


MakeSink = Callable[[Callable[[], None]], Union[SocketSink, "TlsSink"]]


@contextmanager
def outgoing(plan: Plan) -> Iterator[tuple[SocketSource | TlsSource, MakeSink]]:
    """A connection to the plan's address: what comes back on it, and how to make its sink."""
    trust = _trust(plan, server=False) if plan.address.scheme == TLS else None
    name, patience = str(plan.address), plan.patience
    with connected(plan.address, patience, plan.bind, insecure=plan.insecure) as connection:
        if trust is None:
            with SocketSource(connection, name, Patience()) as plain:
                yield plain, lambda wait: SocketSink(connection, name, patience, wait)
        else:
            from statepipe.ends.tlsends import TlsSink, TlsSource, greet

            transport = greet(connection, trust, plan.address.host, patience)
            with TlsSource(transport, Patience()) as secure:
                yield secure, lambda wait: TlsSink(transport, patience, wait)


def _trust(plan: Plan, *, server: bool) -> Trust:
    from statepipe.ends.trust import by_folder, by_pins

    if plan.creds is not None:
        return by_folder(plan.creds, server=server)
    return by_pins(plan.peer if server else plan.peer or plan.address.host, server=server)


@contextmanager
def visited(plan: Plan, say: Say, idle: int | None = None) -> Iterator[Visit]:
    """The first at the plan's address who may come in. Any failure ends the connection with a reset."""
    trust = _trust(plan, server=True) if plan.address.scheme == TLS else None
    with listening(plan.address, insecure=plan.insecure) as listener:
        if plan.address.scheme != UNIX and not plan.address.port:
            say(f"listening at port {port_of(listener)}")
        if trust is None:
            with accepted(listener, plan.patience) as connection:
                listener.close()
                with SocketSource(connection, "the sender", plan.patience, idle) as plain, _or_reset(connection):
                    yield Visit(plain, connection.sendall, lambda: None)
            return
        from statepipe.ends.tlsends import TlsSource, gate

        with gate(listener, trust, plan.patience, _once(say)) as at:
            transport = at.admit()
        with transport.connection, TlsSource(transport, plan.patience, idle) as secure, _or_reset(transport.connection):
            listener.close()
            yield Visit(secure, lambda message: transport.send([message]), transport.finish)


@contextmanager
def _or_reset(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reset(connection)
        raise


def _once(say: Say) -> Callable[[str, PeerError], None]:
    """Tell each reason once: whoever scans ports would fill a log."""
    told: set[str] = set()

    def turned_away(where: str, error: PeerError) -> None:
        if str(error) not in told and len(told) < TOLD:
            told.add(str(error))
            say(f"turned away {where}: {error}")

    return turned_away
