"""How the two halves of a migration meet: a session with channels for the stream and for what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from statepipe.ends.address import SSH, UNIX
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.ration import Refusals
from statepipe.migration.peer import CHANNELS, Peer
from statepipe.session.links import Acceptor, Dial, dialled
from statepipe.session.options import ConnectionPlan
from statepipe.session.overtls import TlsDial, door, timing
from statepipe.session.protocol.frames import Role
from statepipe.telling import Tell
from statepipe.transfer.endpoints import trust_of

WINDOWS = 4 << 20, 16 << 20
"""Bytes on their way, at the least and at the most. What is on its way when the guest stops, it waits for: on the
loopback the guest stood still for 50 to 73 ms with 16 MiB and for 26 to 34 with 4, in the same total time; 2 MiB took a
fifth longer. But 80 ms of delay need 10 MB to fill 1 Gbit/s."""

FAST = 1.25e9
"""Bytes a second that a window for a given delay allows: 10 Gbit/s."""


@contextmanager
def called(plan: ConnectionPlan, words: Sequence[str] = ()) -> Iterator[Peer]:
    """A `statepipe receive` at the plan's address, or the one that ssh starts there with `words`. Raises PeerError."""
    dial, ending = _dial(plan, words)
    first = [dial()]
    session = dialled(
        lambda: first.pop() if first else dial(),
        Role.BOTH,
        str(plan.address),
        timing(plan),
        links=plan.links,
        window=_window(first[0].delay),
        channels=CHANNELS,
    )
    with Peer(session) as peer, ending, _told(peer):
        session.meet()
        yield peer


def _window(delay: float | None) -> int:
    """For a round trip of so many seconds, if that is known."""
    least, most = WINDOWS
    return most if delay is None else min(max(int(delay * FAST), least), most)


def _dial(plan: ConnectionPlan, words: Sequence[str]) -> tuple[Dial, AbstractContextManager[object]]:
    """What makes links, and what ends one that is being made."""
    if plan.address.scheme == SSH:
        from statepipe.session.overssh import SshDial

        ssh = SshDial(plan, words)
        return ssh, ssh
    if plan.address.scheme == UNIX:
        from statepipe.session.overunix import UnixDial

        unix = UnixDial(plan)
        return unix, unix
    tls = TlsDial(plan, trust_of(plan, server=False))
    return tls, tls


@contextmanager
def reception(
    plan: ConnectionPlan, listener: ListeningSocket | None, say: Tell
) -> Iterator[Callable[[], AbstractContextManager[Peer]]]:
    """Within it, whoever may is let in; what it gives waits for the next of them, a `statepipe migrate` or `check`.

    Without a listener it is the one that started us inside ssh. Waiting raises PeerError if none comes in time.
    """
    turned_away = Refusals(say)
    acceptor = Acceptor(Role.BOTH, timing(plan), turned_away, window=WINDOWS[1], channels=CHANNELS, again=True)
    entrance, patience = _entrance(plan, listener, acceptor, turned_away, say)
    with entrance:
        yield lambda: _answered(acceptor, patience)


@contextmanager
def _answered(acceptor: Acceptor, patience: float | None) -> Iterator[Peer]:
    with Peer(acceptor.wait(patience)) as peer, _told(peer):
        yield peer


def _entrance(
    plan: ConnectionPlan, listener: ListeningSocket | None, acceptor: Acceptor, turned_away: Refusals, say: Tell
) -> tuple[AbstractContextManager[None], float | None]:
    """What hands links to the acceptor, and the seconds to wait for the first."""
    if listener is None:
        from statepipe.transfer.insidessh import first_patience, inside

        return inside(acceptor), first_patience(plan)
    if plan.address.scheme == UNIX:
        from statepipe.session.overunix import unix_door

        return unix_door(plan, listener, acceptor, turned_away), plan.patience.silence
    return door(listener, trust_of(plan, server=True, say=say), acceptor, turned_away), plan.patience.silence


@contextmanager
def _told(peer: Peer) -> Iterator[None]:
    """A failure within is told to the other side."""
    try:
        yield
    except BaseException as error:
        peer.abandon(error)
        raise
