"""Where a session's links come from: one side dials, as often as needed; the other is given the connections."""

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
from statepipe.session.session import LOOK_THERE, Session, Timing
from statepipe.session.transport import Transport
from statepipe.threads import NoThread, start

FIRST_PAUSE, LAST_PAUSE = 0.05, 0.25
"""Seconds between dials, doubling: a recovered network is used within a second, and a dead one is not flooded."""

STUCK_LOOK = 0.1
"""Seconds between two checks whether a link is stuck."""

ANSWER_TIME = 2.0
"""Seconds in which the greeting of a later link is answered. If the answer is lost, we have nothing to repeat."""

GREETING_TIME = 10.0
"""Seconds in which an authenticated link must have sent its greeting."""

ATTEMPTS = 3
"""Links that may fail before the session first opens: one by bad luck, but a peer that refuses refuses them all."""

REMEMBERED = 64
"""Ended sessions that are remembered, to recognise their late links."""

Dial = Callable[[], Transport]
"""Makes one authenticated connection to the peer, or raises PeerError or OSError within a second or two."""


def dialled(
    dial: Dial, role: Role, name: str, timing: Timing, *, links: int = 1, window: int = WINDOW, channels: int = 1
) -> Session:
    """Return a session of ours, to be entered. It keeps `links` links open; the peer may write `channels` channels.

    An error of the first dial is the session's failure. After the session has opened, dials are repeated for
    `timing.retry` seconds.
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
    """A link of ours, carried by a thread until it is `over`."""

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
        """Keep one link open until the session stops. A stuck link stays until a new connection has replaced it."""
        session, pause, current = self._session, FIRST_PAUSE, None
        while not session.stopped.is_set():
            fresh = self._dialled()
            if fresh is not None and (current is None or current.over.is_set() or self._is_stuck(current)):
                if current is not None:
                    current.transport.cut()
                    current.over.wait()
                current = self._carry(fresh, lane)
            elif fresh is not None:  # the stuck link has recovered
                fresh.close()
            went_well = False
            if current is not None:
                while not current.over.wait(STUCK_LOOK) and not self._is_stuck(current):
                    continue
                if current.over.is_set() and not session.wire.opened:
                    self._count_attempt()
                went_well = fresh is not None and current.link.is_open
            pause = FIRST_PAUSE if went_well else min(2 * pause, LAST_PAUSE)
            session.stopped.wait(pause)
        if current is not None:
            current.over.wait()

    def join_in(self, lane: int) -> None:
        """Do as `keep_up` for a further link, after the session has opened over the first one."""
        while not self._session.wire.opened:
            if self._session.stopped.wait(FIRST_PAUSE):
                return
        self.keep_up(lane)

    def _dialled(self) -> Transport | None:
        """Return a connection to the peer, or None if there is none now. Raises an error that would come again."""
        name = self._session.name
        try:
            transport = self._dial()
        except (OSError, PeerError) as error:
            self._session.last_trouble = error
            if self._has_dialled and not isinstance(error, Violation):
                return None
            if isinstance(error, PeerError):
                raise
            reason = os.strerror(error.errno) if error.errno else "it did not answer in time"
            raise PeerError(f"cannot connect to {name}: {reason}", hint="check whether it runs there") from error
        self._has_dialled = True
        return transport

    def _carry(self, transport: Transport, lane: int) -> _Carried:
        """Carry a link in a new thread. All links of a session must lead to the same peer."""
        session = self._session
        with session.lock:
            self._identity = self._identity or transport.identity
            if transport.identity != self._identity:
                transport.close()
                raise Violation(f"another peer answers at {transport.name} now: {transport.identity}")
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

    def _is_stuck(self, current: _Carried) -> bool:
        """Return whether the link is stuck, or its greeting is not answered although the session is open."""
        waits = self._session.wire.opened and not current.link.is_open
        return current.transport.is_stuck or (waits and time.monotonic() - current.began >= ANSWER_TIME)

    def _count_attempt(self) -> None:
        """Raises the error of the last attempt, if there were too many."""
        self._attempts += 1
        if self._attempts >= ATTEMPTS and not self._session.stopped.is_set():
            error = self._session.last_trouble
            if isinstance(error, PeerError):
                raise error
            raise PeerError(f"{self._session.name} closed the connection before the session began", hint=LOOK_THERE)


class Acceptor:
    """Makes sessions and their links of authenticated connections.

    `turned_away` gets the name of each refused connection and the reason. A session runs until the acceptor's owner
    leaves it. With `again`, further sessions may begin then, and `many` may run at a time; `share` returns the window
    of a new session from the windows of those that run.
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
        self._silent: Counter[str] = Counter()  # links that have sent no greeting yet, by peer
        self._sessions: dict[bytes, tuple[Session, Doorkeeper]] = {}  # oldest first
        self._begun: queue.SimpleQueue[Session | PeerError] = queue.SimpleQueue()

    def adopt(self, transport: Transport) -> None:
        """Take a connection, in a thread of its own. A peer may have MAX_LINKS that have sent no greeting yet."""
        with self._lock:
            is_taken = self._silent[transport.identity] < MAX_LINKS
            self._silent[transport.identity] += is_taken
        if not is_taken:
            transport.close()
            self._turned_away(transport.name, PeerError("too many of its links have sent no greeting"))
            return
        try:
            start(threading.Thread(target=self._serve, args=(transport,), name="link", daemon=True))
        except NoThread as error:  # the limit may be shared with QEMUs
            self._count_out(transport)
            transport.close()
            self._turned_away(transport.name, PeerError(str(error), hint=error.hint))

    def _count_out(self, transport: Transport) -> None:
        with self._lock:
            self._silent -= Counter([transport.identity])  # this removes a count of zero

    def wait(self, seconds: float | None) -> Session:
        """Wait for the next session, and return it, to be entered. Raises PeerError if none begins in time, or can."""
        try:
            begun = self._begun.get(timeout=seconds)
        except queue.Empty as error:
            raise PeerError(f"no peer connected within {seconds:g} s") from error
        if isinstance(begun, PeerError):
            self.give_up(begun)
            raise begun
        return begun

    def give_up(self, why: PeerError) -> None:
        """Make each `wait` for the next session raise this error: no connection can come in any more."""
        self._begun.put(why)

    def _serve(self, transport: Transport) -> None:
        try:
            greeting = self._greeting(transport)
            try:
                session, answer = self._admit(transport, greeting)
            except Violation as error:
                transport.send([refuse(greeting, str(error))])
                raise
            session.spawn(lambda: session.carry(greeting.link, transport, answer), "link")
        except (OSError, PeerError, NoThread) as error:
            # A connection that merely broke is reported only before the first session: links do break.
            if not isinstance(error, Late) and (isinstance(error, Violation | NoThread) or not self._sessions):
                known = error.strerror if isinstance(error, OSError) else None
                told = error if isinstance(error, PeerError) else PeerError(known or str(error))
                self._turned_away(transport.name, told)
            transport.close()
        finally:
            self._count_out(transport)

    def _greeting(self, transport: Transport) -> Greeting:
        """Receive the greeting of a link. Raises PeerError, OSError."""
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
        raise PeerError("it closed the connection before its greeting")

    def _admit(self, transport: Transport, greeting: Greeting) -> tuple[Session, bytes]:
        """Return the session of a link, and the answer to its greeting. Raises Violation."""
        with self._lock:
            if greeting.session in self._sessions:
                session, door = self._sessions[greeting.session]
                if session.stopped.is_set():
                    raise Late("this session has ended")
            else:
                ended = [name for name, (each, _) in self._sessions.items() if each.stopped.is_set()]
                for name in ended[:-REMEMBERED]:
                    del self._sessions[name]
                running = [each for each, _ in self._sessions.values() if not each.stopped.is_set()]
                may_begin = not self._sessions or (self._again and len(running) < self._many)
                if greeting.kind is not Greets.NEW or not may_begin:
                    if self._sessions:
                        raise Violation("another session is being received here")
                    raise Violation("no such session here: it has ended, or this side was restarted")
                secrets = Secrets(greeting.session, greeting.proof)
                ours = self._share([each.wire.party.window for each in running])
                window = max(min(ours, greeting.window), MIN_WINDOW)  # the dialler knows the distance
                wire = Wire(Party(secrets, self._role, window), self._channels)
                session = Session(wire, self._timing, transport.identity or transport.name)
                door = Doorkeeper(secrets, transport.identity)
            door.admit(greeting, transport.identity)
            with session.lock:
                answer = session.wire.accept(greeting)
            if greeting.session not in self._sessions:
                self._sessions[greeting.session] = session, door
                self._begun.put(session)
            return session, answer
