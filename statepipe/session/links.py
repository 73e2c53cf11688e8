"""Where a session's links come from: one side dials, and dials again, the other is handed what comes."""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from statepipe.errors import PeerError
from statepipe.session.protocol.admission import SESSION_SIZE, TOKEN_SIZE, Doorkeeper, Late, Party, Secrets, refuse
from statepipe.session.protocol.channels import MIN_WINDOW, WINDOW
from statepipe.session.protocol.frames import MAX_LINKS, FrameReader, Greeting, Greets, Role, Violation
from statepipe.session.protocol.states import LinkState
from statepipe.session.protocol.wire import Wire
from statepipe.session.session import Session, Timing
from statepipe.session.transport import Transport
from statepipe.threads import NoThread, start

FIRST_PAUSE, LAST_PAUSE = 0.05, 0.25
"""Seconds between dials, doubling: a network that is back is used within a second, one that is not is left alone."""

STUCK_LOOK = 0.1
"""Seconds between two looks at whether a link is stuck."""

ANSWER_TIME = 2.0
"""Seconds in which the greeting of a later link is answered: where the answer was lost, we have nothing to repeat."""

GREETING_TIME = 10.0
"""Seconds in which a link must have greeted, once it is authenticated."""

ATTEMPTS = 3
"""Links that may die before the session was ever open: one by mischance, but a peer that refuses refuses them all."""

REMEMBERED = 64
"""Sessions that have ended and are still known, for links of theirs that come late."""

Dial = Callable[[], Transport]
"""Makes one authenticated connection to the peer, or raises PeerError or OSError within a second or two."""


def dialled(
    dial: Dial, role: Role, name: str, timing: Timing, *, links: int = 1, window: int = WINDOW, channels: int = 1
) -> Session:
    """A session of ours, to be entered: it keeps `links` links up. The peer may write `channels` of its own.

    What the first dial raises is the session's failure; once it was open, dials are repeated for `timing.retry`
    seconds.
    """
    party = Party(Secrets(os.urandom(SESSION_SIZE), os.urandom(TOKEN_SIZE)), role, window)
    session = Session(Wire(party, channels), timing, name)
    dialler = _Dialler(session, dial)
    session.spawn(partial(dialler.keep_up, 0), "link")
    for lane in range(1, min(links, MAX_LINKS)):
        session.spawn(partial(dialler.join_in, lane), "link")
    return session


@dataclass(frozen=True, slots=True)
class _Carried:
    """A link of ours that a thread carries until it is `over`."""

    transport: Transport
    link: LinkState
    over: threading.Event
    began: float = field(default_factory=time.monotonic)


class _Dialler:
    def __init__(self, session: Session, dial: Dial) -> None:
        self._session, self._dial = session, dial
        self._numbers = itertools.count(1)
        self._identity: str | None = None
        self._has_dialled = False
        self._attempts = 0

    def keep_up(self, lane: int) -> None:
        """Keep one link up until the session stops. One that is stuck stays until a fresh one is there."""
        pause, current = FIRST_PAUSE, None
        while not self._session.stopped.is_set():
            if (fresh := self._dialled()) is not None:
                current = self._replace(current, fresh, lane)
            went_well = self._hold(current) and fresh is not None
            pause = FIRST_PAUSE if went_well else min(2 * pause, LAST_PAUSE)
            self._session.stopped.wait(pause)
        if current is not None:
            current.over.wait()

    def join_in(self, lane: int) -> None:
        """As `keep_up`, for a link beside the first, over which a session begins."""
        while not self._session.wire.opened:
            if self._session.stopped.wait(FIRST_PAUSE):
                return
        self.keep_up(lane)

    def _dialled(self) -> Transport | None:
        """A connection to the peer; None where there is none now. Raises what no other attempt would mend."""
        try:
            transport = self._dial()
        except (OSError, PeerError) as error:
            self._session.last_trouble = error
            if not self._has_dialled or isinstance(error, Violation):
                raise error if isinstance(error, PeerError) else self._unreachable(error) from error
            return None
        self._has_dialled = True
        return transport

    def _replace(self, current: _Carried | None, fresh: Transport, lane: int) -> _Carried:
        """A link over the fresh connection, unless the one there is has come back by itself."""
        if current is not None:
            if not current.over.is_set() and not self._is_stuck(current):
                fresh.close()
                return current
            current.transport.cut()
            current.over.wait()
        return self._carry(fresh, lane)

    def _carry(self, transport: Transport, lane: int) -> _Carried:
        """Have a thread carry a link."""
        session = self._session
        with session.lock:
            self._check(transport)
            number = next(self._numbers) * MAX_LINKS + lane
            greeting = session.wire.dial(number)
            link = _Carried(transport, session.wire.links[number], threading.Event())

        def carry() -> None:
            try:
                session.carry(number, transport, greeting)
            finally:
                link.over.set()

        session.spawn(carry, "link")
        return link

    def _hold(self, current: _Carried | None) -> bool:
        """Wait until there is no link, or one that is stuck; whether it was open."""
        if current is None:
            return False
        while not current.over.wait(STUCK_LOOK) and not self._is_stuck(current):
            continue
        if current.over.is_set() and not self._session.wire.opened:
            self._count_attempt()
        return current.link.is_open

    def _is_stuck(self, current: _Carried) -> bool:
        """Also where the session is open, and the answer to this link's greeting does not come."""
        waits = self._session.wire.opened and not current.link.is_open
        return current.transport.is_stuck or (waits and time.monotonic() - current.began >= ANSWER_TIME)

    def _count_attempt(self) -> None:
        """Raises what became of the last attempt, if it was one too many."""
        self._attempts += 1
        if self._attempts >= ATTEMPTS and not self._session.stopped.is_set():
            error = self._session.last_trouble
            if isinstance(error, PeerError):
                raise error
            raise PeerError(
                f"{self._session.name} hung up before the session began", hint="look at what it says over there"
            )

    def _unreachable(self, error: OSError) -> PeerError:
        reason = os.strerror(error.errno) if error.errno else "it did not answer in time"
        return PeerError(f"cannot connect to {self._session.name}: {reason}", hint="look whether it is started there")

    def _check(self, transport: Transport) -> None:
        """Every link of a session leads to the same peer."""
        self._identity = self._identity or transport.identity
        if transport.identity != self._identity:
            transport.close()
            raise Violation(f"another peer answers at {transport.name} now: {transport.identity}")


class Acceptor:
    """Takes authenticated connections, and makes of them sessions and their links.

    `turned_away` is told of the others, by name and reason. A session runs until the acceptor's owner leaves it; with
    `again`, others may begin then, and `many` at a time; `share` says then, by the windows of those that run, which
    window one more may have.
    """

    def __init__(
        self,
        role: Role,
        timing: Timing,
        turned_away: Callable[[str, PeerError], object],
        *,
        window: int = WINDOW,
        channels: int = 1,
        again: bool = False,
        many: int = 1,
        share: Callable[[Collection[int]], int] | None = None,
    ) -> None:
        self._share = share or (lambda windows: window)
        self._role, self._timing, self._turned_away = role, timing, turned_away
        self._channels, self._again, self._many = channels, again, many
        self._lock = threading.Lock()
        self._silent: Counter[str] = Counter()  # links that have not greeted yet, by peer
        self._sessions: dict[bytes, tuple[Session, Doorkeeper]] = {}  # oldest first
        self._begun: queue.SimpleQueue[Session | PeerError] = queue.SimpleQueue()

    def adopt(self, transport: Transport) -> None:
        """Take a connection, in a thread of its own. Of one peer, MAX_LINKS at most that have not greeted are taken."""
        with self._lock:
            is_taken = self._silent[transport.identity] < MAX_LINKS
            self._silent[transport.identity] += is_taken
        if not is_taken:
            transport.close()
            self._turned_away(transport.name, PeerError("too many links at once have not greeted"))
            return
        try:
            start(threading.Thread(target=self._serve, args=(transport,), name="link", daemon=True))
        except NoThread as error:  # of a limit that QEMUs share with us
            self._count_out(transport)
            transport.close()
            self._turned_away(transport.name, PeerError(f"no room for it: {error}"))

    def _count_out(self, transport: Transport) -> None:
        with self._lock:
            self._silent -= Counter([transport.identity])  # which forgets those that have none

    def wait(self, seconds: float | None) -> Session:
        """The next session that somebody has begun. To be entered. Raises PeerError when nobody did in time, or can."""
        try:
            begun = self._begun.get(timeout=seconds)
        except queue.Empty as error:
            raise PeerError(f"no peer connected within {seconds:g} s") from error
        if isinstance(begun, PeerError):
            self.give_up(begun)
            raise begun
        return begun

    def give_up(self, why: PeerError) -> None:
        """Nobody else can come: whoever waits for the next session hears that."""
        self._begun.put(why)

    def _serve(self, transport: Transport) -> None:
        """One that breaks before it has said a word is told of only where nobody has come yet: links do break."""
        try:
            greeting = self._greeting(transport)
            session, answer = self._admit(transport, greeting)
            session.spawn(lambda: session.carry(greeting.link, transport, answer), "link")
        except (OSError, PeerError, NoThread) as error:
            if not isinstance(error, Late) and (isinstance(error, Violation | NoThread) or not self._sessions):
                self._turned_away(transport.name, error if isinstance(error, PeerError) else PeerError(str(error)))
            transport.close()
        finally:
            self._count_out(transport)

    def _greeting(self, transport: Transport) -> Greeting:
        """The first bytes of a link. Raises PeerError, OSError."""
        watch = threading.Timer(GREETING_TIME, transport.cut)
        watch.daemon = True
        start(watch)
        reader = FrameReader()
        try:
            while count := transport.recv_into(reader.room()):
                if isinstance(item := reader.filled(count), Greeting):
                    return item
        finally:
            watch.cancel()
        raise PeerError("it hung up before it had greeted")

    def _admit(self, transport: Transport, greeting: Greeting) -> tuple[Session, bytes]:
        try:
            with self._lock:
                session, door = self._session_for(transport, greeting)
                door.admit(greeting, transport.identity)
                with session.lock:
                    answer = session.wire.accept(greeting)
                if greeting.session not in self._sessions:
                    self._sessions[greeting.session] = session, door
                    self._begun.put(session)
                return session, answer
        except Violation as error:
            transport.send([refuse(greeting, str(error))])
            raise

    def _session_for(self, transport: Transport, greeting: Greeting) -> tuple[Session, Doorkeeper]:
        if greeting.session in self._sessions:
            session, door = self._sessions[greeting.session]
            if session.stopped.is_set():
                raise Late("this session has ended")
            return session, door
        running = self._forget_ended()
        if greeting.kind is Greets.NEW and (not self._sessions or (self._again and running < self._many)):
            return self._new(transport, greeting)
        if self._sessions:
            raise Violation("another session is being received here")
        raise Violation("no such session here: it has ended, or this side was started anew")

    def _forget_ended(self) -> int:
        """All but the last that have ended; the number of those that run."""
        ended = [name for name, (session, _) in self._sessions.items() if session.stopped.is_set()]
        for name in ended[:-REMEMBERED]:
            del self._sessions[name]
        return len(self._sessions) - min(len(ended), REMEMBERED)

    def _new(self, transport: Transport, greeting: Greeting) -> tuple[Session, Doorkeeper]:
        secrets = Secrets(greeting.session, greeting.proof)
        running = [each for each, _ in self._sessions.values() if not each.stopped.is_set()]
        ours = self._share([each.wire.party.window for each in running])
        window = max(min(ours, greeting.window), MIN_WINDOW)  # the dialler knows how far away it is
        wire = Wire(Party(secrets, self._role, window), self._channels)
        session = Session(wire, self._timing, transport.identity or transport.name)
        return session, Doorkeeper(secrets, transport.identity)
