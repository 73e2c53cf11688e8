"""send and recv over tls://, and what ssh:// shares of it: a session (docs/protocol.md), whose links may come back.

The stream goes from the dialler to the acceptor, channel 0 of the one; what comes back, QEMU's return path, is channel
0 of the other. The receiver ends it before it gives its verdict, so that a sender that has the verdict has the rest.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from statepipe.ends.dial import connect_again, connect_first
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.names import Known, Place, find_places
from statepipe.ends.net import Patience, awaited, is_fruitless
from statepipe.ends.ration import Ration, Refusals
from statepipe.session.gate import TrustNow, gate, greet
from statepipe.session.links import Acceptor, Dial, dialled
from statepipe.session.options import Plan, Visit
from statepipe.session.protocol.frames import MAX_LINKS, Role
from statepipe.session.session import FAREWELL, Timing
from statepipe.session.streams import Inlet, Outlet
from statepipe.session.tls import HANDSHAKE_TIME
from statepipe.threads import beside
from statepipe.wakeups import Stoppable

if TYPE_CHECKING:
    import socket

    from statepipe.session.tls import TlsTransport

RETRY = 30.0
"""Seconds a session goes on without any link: a switch's port takes as long to come up (802.1D)."""

SILENCE = 8.0
"""Seconds after which a link is dead from which nothing came, not even a sign of life."""

REDIAL = 2.0
"""Seconds that a dial, and then its handshake, may take where an earlier one was answered: more hang in a black hole
than are that slow."""

NEWS = 4
"""Lines about the connection a minute: that nothing comes, and that something does again."""

DOOR = 0.25
"""Seconds between two looks at whether links are still wanted: so late may the end of a receiver be."""


def timing(plan: Plan) -> Timing:
    """How patient a session of this plan is."""
    silence = SILENCE if plan.patience.silence is None else plan.patience.silence
    tick = min(1.0, silence / 4)
    retry = RETRY if plan.retry is None else plan.retry
    tell = Ration(plan.say, NEWS, "and {} more lines about the connection were left out").tell
    timing = Timing(tick, max(round(silence / tick), 1), retry, tell)
    return replace(timing, longer="") if plan.patience.retry is None else timing


# --- the sender


class TlsDial(Stoppable):
    """Makes links to the plan's addresses in turn: patiently the first, within REDIAL the others.

    An address that does not answer is passed over. Whatever the way, at its end must be the host of the plan's own.
    The packets of a link are short where those of one that was made lately were lost as they were long. Leaving it ends
    a dial.
    """

    def __init__(self, plan: Plan, trust_now: TrustNow) -> None:
        super().__init__()
        self._plan, self._trust_now, self._first = plan, trust_now, True
        self._turns = itertools.count()
        self._known = Known(partial(find_places, [plan.address, *plan.also]))
        self._made: deque[socket.socket] = deque(maxlen=MAX_LINKS)

    def __call__(self) -> TlsTransport:
        """Raises PeerError."""
        awaited(0, self._stop)
        connection, within = self._connect()
        try:  # the session watches from here on
            link = greet(connection, self._trust_now, self._plan.address.name, Patience(), within, self._stop)
        except BaseException:
            connection.close()
            raise
        self._made.append(connection)
        return link

    def _connect(self) -> tuple[socket.socket, float]:
        """And how many seconds the handshake may take."""
        plan = self._plan
        if not self._first:
            short = any(map(is_fruitless, list(self._made)))
            return connect_again(self._in_turn(), REDIAL, plan.bind, stop=self._stop, short=short), REDIAL
        patience = Patience(plan.patience.silence, plan.patience.retry)
        connection = connect_first(self._in_turn, patience, plan.bind, insecure=plan.insecure, stop=self._stop)
        self._first = False
        return connection, HANDSHAKE_TIME

    def _in_turn(self) -> list[Place]:
        """All the places, beginning with those of the address whose turn it is."""
        ways = [self._plan.address, *self._plan.also]
        turn = next(self._turns) % len(ways)
        places = self._known.ask()
        return [place for way in ways[turn:] + ways[:turn] for place in places if place[0] == way]


@contextmanager
def sending(plan: Plan, dial: Dial, ending: AbstractContextManager[object]) -> Iterator[tuple[Inlet, Outlet]]:
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
    plan: Plan,
    listener: ListeningSocket,
    trust_now: TrustNow,
    turned_away: Refusals,
    idle: int | None,
) -> Iterator[Visit]:
    """The session of the first at the listener who may begin one. A failure within is told to the sender."""
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
    """Let in whoever may come, for as long as the session lasts."""
    closed = threading.Event()
    with gate(listener, trust_now, Patience(), turned_away) as at:

        def watch() -> None:
            while not closed.is_set():
                turned_away.look()
                if (transport := at.admit_within(DOOR)) is not None:
                    acceptor.adopt(transport)

        try:
            with beside("door", watch, closed.set):
                yield
        finally:
            turned_away.end()
