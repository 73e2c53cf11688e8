"""send and recv over tls://, and the parts that ssh:// shares: a session (docs/protocol.md) with replaceable links.

The stream is channel 0 of the dialler; what flows back, QEMU's return path, is channel 0 of the acceptor. The receiver
ends it before it sends its verdict, so that a sender that has the verdict has everything else too.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

from statepipe.ends.dial import connect_again, connect_first
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.names import LookupCache, Place, find_places
from statepipe.ends.net import Patience, awaited, is_fruitless
from statepipe.ends.ration import Ration, Refusals
from statepipe.session.gate import Gate, TrustNow, greet
from statepipe.session.links import Acceptor, Dial, dialled
from statepipe.session.options import ConnectionPlan, Visit
from statepipe.session.protocol.frames import MAX_LINKS, Role
from statepipe.session.session import FAREWELL, Timing
from statepipe.session.streams import Inlet, Outlet
from statepipe.session.tls import HANDSHAKE_TIME
from statepipe.threads import beside
from statepipe.typed import TYPE_CHECKING
from statepipe.wakeups import Stoppable

if TYPE_CHECKING:
    import socket

    from statepipe.session.transport import Transport

RETRY = 30.0
"""Seconds that a session continues without a link: a switch's port takes as long to come up (802.1D)."""

SILENCE = 8.0
"""Seconds without even a sign of life after which a link counts as dead."""

REDIAL = 2.0
"""Seconds that a dial, and then its handshake, may take after an earlier one was answered: more of them hang on a dead
path than are so slow."""

NEWS = 4
"""Messages about the connection a minute: that nothing arrives, and that something does again."""

END_CHECK = 0.25
"""Seconds between two checks whether links are still accepted: a receiver may end so late."""


def timing(plan: ConnectionPlan) -> Timing:
    """Return the limits of a session with this plan."""
    silence = SILENCE if plan.patience.silence is None else plan.patience.silence
    tick = min(1.0, silence / 4)
    retry = RETRY if plan.retry is None else plan.retry
    tell = Ration(plan.say, NEWS, "and {} more messages about the connection were left out").tell
    timing = Timing(tick, max(round(silence / tick), 1), retry, tell)
    return replace(timing, longer="") if plan.patience.retry is None else timing


# --- the sender


class TlsDial(Stoppable):
    """Makes links to the plan's addresses in turn: the first with the plan's patience, the others within REDIAL.

    An address that does not answer is skipped. Every address must lead to the host of the plan's first one. Links use
    short packets if the long ones of a recent link were lost. Leaving the context ends a dial.
    """

    def __init__(self, plan: ConnectionPlan, trust_now: TrustNow) -> None:
        super().__init__()
        self._plan, self._trust_now, self._first = plan, trust_now, True
        self._turns = itertools.count()
        self._known = LookupCache(partial(find_places, [plan.address, *plan.also]))
        self._made: deque[socket.socket] = deque(maxlen=MAX_LINKS)

    def __call__(self) -> Transport:
        """Raises PeerError."""
        plan, within = self._plan, HANDSHAKE_TIME
        awaited(0, self._stop)
        if self._first:
            patience = Patience(plan.patience.silence, plan.patience.retry)
            connection = connect_first(self._in_turn, patience, plan.bind, insecure=plan.insecure, stop=self._stop)
            self._first = False
        else:
            short, within = any(map(is_fruitless, list(self._made))), REDIAL
            connection = connect_again(self._in_turn(), REDIAL, plan.bind, stop=self._stop, short=short)
        try:  # the session watches from here on
            link = greet(connection, self._trust_now, plan.address.name, Patience(), within, self._stop)
        except BaseException:
            connection.close()
            raise
        self._made.append(connection)
        return link

    def _in_turn(self) -> list[Place]:
        """Return all places, beginning with those of the address whose turn it is."""
        ways = [self._plan.address, *self._plan.also]
        turn = next(self._turns) % len(ways)
        places = self._known.ask()
        return [place for way in ways[turn:] + ways[:turn] for place in places if place[0] == way]


@contextmanager
def sending(plan: ConnectionPlan, dial: Dial, ending: AbstractContextManager[object]) -> Iterator[tuple[Inlet, Outlet]]:
    """Open a session with the plan's address; give what comes back, and the sink. Raises PeerError.

    `ending` is exited before the session waits for its threads, to end a dial.
    """
    session = dialled(dial, Role.SENDS, str(plan.address), timing(plan), links=plan.links)
    sink = Outlet(session)
    returning = Inlet(session, answering=sink)
    with session, ending:
        session.meet()
        yield returning, sink


# --- the receiver


@contextmanager
def receiving(
    plan: ConnectionPlan,
    listener: ListeningSocket,
    trust_now: TrustNow,
    turned_away: Refusals,
    idle: int | None,
) -> Iterator[Visit]:
    """Give the session of the first authorised sender at the listener. A failure in the context is reported to it."""
    acceptor = Acceptor(Role.RECEIVES, timing(plan), turned_away)
    with door(listener, trust_now, acceptor, turned_away), visit(acceptor, plan.patience.silence, idle) as visitor:
        yield visitor


@contextmanager
def visit(acceptor: Acceptor, seconds: float | None, idle: int | None) -> Iterator[Visit]:
    """Give the session that a sender begins within so many seconds. A failure in the context is reported to it.

    `idle` in milliseconds.
    """
    with acceptor.wait(seconds) as session:
        source, back = Inlet(session, idle=None if idle is None else idle / 1000), Outlet(session)

        def part(seconds: float) -> None:
            session.hear_close(seconds)
            session.part(0)

        def finish() -> None:
            back.end()
            source.accept()
            part(max(FAREWELL, session.timing.retry))

        try:
            yield Visit(source, back.write, finish)
        except BaseException as error:
            back.end()
            source.refuse(error)
            part(min(FAREWELL, session.timing.retry))
            raise


@contextmanager
def door(listener: ListeningSocket, trust_now: TrustNow, acceptor: Acceptor, turned_away: Refusals) -> Iterator[None]:
    """Accept authorised links during the context."""
    closed = threading.Event()
    with Gate(listener, trust_now, Patience(), turned_away) as at:

        def watch() -> None:
            while not closed.is_set():
                turned_away.look()
                if (transport := at.admit_within(END_CHECK)) is not None:
                    acceptor.adopt(transport)

        try:
            with beside("door", watch, closed.set):
                yield
        finally:
            turned_away.end()
