"""How two ends meet over TLS: a greeting, and the gate that lets in only who has proved who they are."""

from __future__ import annotations

import resource
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from statepipe.ends.listeners import LULL, ListeningSocket, Origin, origin
from statepipe.ends.net import Patience, lost
from statepipe.errors import PeerError
from statepipe.session.distrust import refused
from statepipe.session.tls import HANDSHAKE_TIME, Handshake, TlsTransport, shake_hands
from statepipe.trust.identity import Trust
from statepipe.wakeups import Bell

AT_THE_GATE = 128
"""Handshakes at a time. When one more comes, one must go: the oldest of the host that has the most. So those who only
hold a place hold it no longer than it takes others to come, and a true peer, who needs a few round trips, is not
crowded out by one host however fast. 128 half done take 6.6 MB."""

SHARE = 4
"""And no more than one part in so many of the descriptors that we may have: the sink and the links need some, too."""


TrustNow = Callable[[], Trust]
"""Gives the trust there is for one more handshake, as it may end at any time. Raises PeerError where there is none."""


def greet(
    connection: socket.socket,
    trust_now: TrustNow,
    host: str,
    patience: Patience,
    within: float = HANDSHAKE_TIME,
    stop: Bell | None = None,
) -> TlsTransport:
    """A client's handshake with `host`, within so many seconds. That the server believes us too, only its answer shows.

    Raises PeerError, Stopped once `stop` rings.
    """
    name, trust = f"tls://{host}", trust_now()
    handshake = Handshake(connection, trust.context, host if trust.check_host else None, server=False)
    shake_hands(handshake, name, within, stop)
    return handshake.transport(name, trust.identify(handshake.certificate()), patience)


@dataclass(frozen=True, slots=True)
class _Visitor:
    """Who shakes hands: where it is from, and the trust that there was when it came."""

    origin: Origin
    trust: Trust


def _places() -> int:
    """How many may be at the gate."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return AT_THE_GATE if most == resource.RLIM_INFINITY else min(AT_THE_GATE, max(most // SHARE, 1))


class Gate:
    """Handshakes with all who come, many at a time; `admit_within` gives the next who has proved who they are.

    `turned_away` is told of the others, by address and reason; of one that broke off only where nobody has come yet:
    links do break.
    """

    def __init__(
        self,
        listener: ListeningSocket,
        trust_now: TrustNow,
        patience: Patience,
        turned_away: Callable[[str, PeerError], object],
    ) -> None:
        listener.setblocking(False)
        self._listener, self._trust_now, self._patience, self._turned_away = listener, trust_now, patience, turned_away
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._shaking: dict[Handshake, _Visitor] = {}  # oldest first
        self._has_admitted = False
        self._places = _places()

    def admit_within(self, seconds: float | None) -> TlsTransport | None:
        """Wait so long for the next; None if nobody came."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            for key, _ in self._selector.select(_at_most_a_second(left) if self._shaking else left):
                if key.data is None:
                    self._accept()
                elif key.data in self._shaking and (transport := self._go_on(key.data)):
                    return transport
            self._expire()
            if left == 0:
                return None

    def _accept(self) -> None:
        try:
            connection, where = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it left again
            return
        except OSError:  # we have no descriptor to spare, or no memory
            self._spare()
            return
        visitor = origin(where)
        try:
            trust = self._trust_now()
            handshake = Handshake(connection, trust.context, None, server=True)
            self._selector.register(connection, selectors.EVENT_READ, handshake)
        except OSError:  # of OpenSSL, too: no memory for one more
            connection.close()
            self._spare()
            return
        except PeerError as error:
            connection.close()
            self._turned_away(visitor.address, error)
            return
        self._shaking[handshake] = _Visitor(visitor, trust)
        self._make_room(self._places)

    def _spare(self) -> None:
        """Send half of them away. Where nobody is here, others have it all: it is theirs to end, and nobody waits."""
        if not self._shaking:
            time.sleep(LULL)  # of a descriptor that is free nothing tells, and the listener stays ready
        self._make_room(len(self._shaking) // 2)

    def _go_on(self, handshake: Handshake) -> TlsTransport | None:
        visitor = self._shaking[handshake]
        where = visitor.origin.address
        try:
            if not handshake.go_on():
                return None
            if visitor.trust.seen != self._trust_now().seen:
                raise PeerError("whom we believe has changed while it shook hands", hint="it may come again")
            identity = visitor.trust.identify(handshake.certificate())
            self._forget(handshake)
            self._has_admitted = True
            return handshake.transport(identity, identity, self._patience)
        except ssl.SSLEOFError as error:
            self._turn_away(handshake, where, refused(where, error), tell=not self._has_admitted)
        except ssl.SSLError as error:
            self._turn_away(handshake, where, refused(where, error))
        except OSError as error:
            reason = lost(where, error, 0, self._patience)
            self._turn_away(handshake, where, reason, tell=not self._has_admitted)
        except PeerError as error:
            self._turn_away(handshake, where, error)
        return None

    def _turn_away(self, handshake: Handshake, where: str, error: PeerError, *, tell: bool = True) -> None:
        if handshake in self._shaking:
            self._forget(handshake)
        handshake.connection.close()
        if tell:
            self._turned_away(where, error)

    def _forget(self, handshake: Handshake) -> None:
        self._selector.unregister(handshake.connection)
        del self._shaking[handshake]

    def _expire(self) -> None:
        """Those who take too long must go."""
        too_long = time.monotonic() - HANDSHAKE_TIME
        for handshake in list(self._shaking):
            if handshake.began > too_long:
                return
            self._send_away(handshake)

    def _make_room(self, at_most: int) -> None:
        """Where there are too many, those must go that have come first from where the most are from."""
        while len(self._shaking) > at_most:
            ((most, _),) = Counter(each.origin.host for each in self._shaking.values()).most_common(1)
            self._send_away(next(each for each, visitor in self._shaking.items() if visitor.origin.host == most))

    def _send_away(self, handshake: Handshake) -> None:
        self._forget(handshake)
        handshake.connection.close()

    def close(self) -> None:
        """Send away all who are still at it."""
        self._make_room(0)
        self._selector.close()


def _at_most_a_second(left: float | None) -> float:
    """While hands are shaken, those who take too long are looked for."""
    return 1.0 if left is None else min(left, 1.0)


@contextmanager
def gate(
    listener: ListeningSocket, trust_now: TrustNow, patience: Patience, turned_away: Callable[[str, PeerError], object]
) -> Iterator[Gate]:
    """A Gate, closed on leaving."""
    it = Gate(listener, trust_now, patience, turned_away)
    try:
        yield it
    finally:
        it.close()
