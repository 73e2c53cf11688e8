"""How the two sides of a migration connect: a session with channels for the stream and for their messages."""

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
"""The smallest and the largest window, in bytes. The guest waits for the bytes that are in flight when it is stopped:
on the loopback it was stopped for 50 to 73 ms with 16 MiB and for 26 to 34 with 4, in the same total time; 2 MiB took a
fifth longer. But 80 ms of delay need 10 MB to fill 1 Gbit/s."""

FAST = 1.25e9
"""Bytes a second that the window allows at a given delay: 10 Gbit/s."""


@contextmanager
def called(plan: ConnectionPlan, words: Sequence[str] = ()) -> Iterator[Peer]:
    """Connect to `statepipe receive` at the plan's address, or to the one that ssh starts there with `words`. Raises
    PeerError."""
    dial, ending = _dial(plan, words)
    first = [dial()]
    least, most = WINDOWS
    delay = first[0].delay  # None: not known
    session = dialled(
        lambda: first.pop() if first else dial(),
        Role.BOTH,
        str(plan.address),
        timing(plan),
        links=plan.links,
        window=most if delay is None else min(max(int(delay * FAST), least), most),
        channels=CHANNELS,
    )
    with Peer(session) as peer, ending, _told(peer):
        session.meet()
        yield peer


def _dial(plan: ConnectionPlan, words: Sequence[str]) -> tuple[Dial, AbstractContextManager[object]]:
    """Return what makes links, and the context that ends one that is being made."""
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
    """Within it, visitors who may are accepted; what it yields waits for the next, a `statepipe migrate` or `check`.

    Without a listener, the visitor is the one that started us inside ssh. Waiting raises PeerError if none arrives in
    time.
    """
    turned_away = Refusals(say)
    acceptor = Acceptor(Role.BOTH, timing(plan), turned_away, window=WINDOWS[1], channels=CHANNELS, again=True)
    patience = plan.patience.silence
    if listener is None:
        from statepipe.transfer.insidessh import first_patience, inside

        entrance, patience = inside(acceptor), first_patience(plan)
    elif plan.address.scheme == UNIX:
        from statepipe.session.overunix import unix_door

        entrance = unix_door(plan, listener, acceptor, turned_away)
    else:
        entrance = door(listener, trust_of(plan, server=True, say=say), acceptor, turned_away)

    @contextmanager
    def answered() -> Iterator[Peer]:
        with Peer(acceptor.wait(patience)) as peer, _told(peer):
            yield peer

    with entrance:
        yield answered


@contextmanager
def _told(peer: Peer) -> Iterator[None]:
    """Report a failure within to the other side."""
    try:
        yield
    except BaseException as error:
        peer.abandon(error)
        raise
