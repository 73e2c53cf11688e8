"""How the two halves of a migration meet: a session with channels for the stream and for what they tell each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from statepipe.commands.linked import TlsDial, door, timing
from statepipe.commands.meet import once, trust_of
from statepipe.commands.plan import Plan, Say
from statepipe.engine.peer import CHANNELS, Peer
from statepipe.engine.sessionlinks import Acceptor, dialled
from statepipe.formats.frames import Role

if TYPE_CHECKING:
    import socket

WINDOW = 16 << 20
"""Bytes on their way at most. What is on its way when the guest stops, it waits for: at 1 Gbit/s these are 0.13 s, and
80 ms of delay need 10 MB to fill the line."""


@contextmanager
def called(plan: Plan) -> Iterator[Peer]:
    """A `statepipe receive` at the plan's address. Raises PeerError."""
    dial = TlsDial(plan, trust_of(plan, server=False))
    session = dialled(
        dial, Role.BOTH, str(plan.address), timing(plan), links=plan.links, window=WINDOW, channels=CHANNELS
    )
    with Peer(session) as peer, _told(peer):
        session.meet()
        yield peer


@contextmanager
def answered(plan: Plan, listener: socket.socket, say: Say) -> Iterator[Peer]:
    """The first at the listener who may come, a `statepipe migrate` or `check`. Raises PeerError if none comes."""
    acceptor = Acceptor(Role.BOTH, timing(plan), once(say), window=WINDOW, channels=CHANNELS)
    trust = trust_of(plan, server=True)
    with (
        door(listener, trust, acceptor, once(say)),
        Peer(acceptor.wait(plan.patience.silence)) as peer,
        _told(peer),
    ):
        yield peer


@contextmanager
def _told(peer: Peer) -> Iterator[None]:
    """A failure within is told to the other side."""
    try:
        yield
    except BaseException as error:
        peer.abandon(error)
        raise
