"""How two hosts connect over TLS: a client's greeting, and a gate that admits only authenticated clients."""

from __future__ import annotations

import resource
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from statepipe.ends.listeners import LULL, ListeningSocket, Origin, origin
from statepipe.ends.net import Patience, lost
from statepipe.errors import PeerError
from statepipe.session.distrust import refused
from statepipe.session.largerecords import transport_of
from statepipe.session.tls import HANDSHAKE_TIME, Handshake, shake_hands
from statepipe.session.transport import Transport
from statepipe.trust.identity import Trust
from statepipe.wakeups import Bell

AT_THE_GATE = 128
"""Handshakes at a time. When one more begins, the oldest of the host that has the most is ended. So a host that only
occupies places loses them as others come, and a true peer, which needs a few round trips, is not crowded out by a fast
host. 128 unfinished handshakes take 6.6 MB."""

SHARE = 4
"""At most 1/SHARE of our descriptors is used for handshakes: the sink and the links need some too."""


TrustNow = Callable[[], Trust]
"""Returns the present trust, because a peer may be removed at any time. Raises PeerError if nobody is trusted."""


def greet(
    connection: socket.socket,
    trust_now: TrustNow,
    host: str,
    patience: Patience,
    within: float = HANDSHAKE_TIME,
    stop: Bell | None = None,
) -> Transport:
    """Complete a client's handshake with `host` within so many seconds. Only the server's answer shows that it trusts
    us too.

    Raises PeerError, Stopped when `stop` rings.
    """
    name, trust = f"tls://{host}", trust_now()
    handshake = Handshake(connection, trust.context, host if trust.check_host else None, server=False)
    shake_hands(handshake, name, within, stop)
    return transport_of(handshake, name, _identified(handshake, trust, trust_now, name), patience)


def _identified(handshake: Handshake, trust: Trust, trust_now: TrustNow, name: str) -> str:
    """Return who the peer of a complete handshake is, which began with `trust`. Raises PeerError if that has changed
    since: the peer may have been removed."""
    if trust.seen != trust_now().seen:
        raise PeerError(f"the trusted peers changed during the handshake with {name}", hint="try again")
    return trust.identify(handshake.certificate(), handshake.fields)


@dataclass(frozen=True, slots=True)
class _Visitor:
    """A client in its handshake: where it comes from, and the trust at its beginning."""

    origin: Origin
    trust: Trust


class Gate:
    """Handshakes with many clients at a time; `admit_within` returns the next one that is authenticated.

    `turned_away` gets the address of each other client and the reason. A client that merely breaks off is reported only
    until the first one is admitted: links do break. As a context, it is closed at the exit.
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
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        is_limited = most != resource.RLIM_INFINITY
        self._places = min(AT_THE_GATE, max(most // SHARE, 1)) if is_limited else AT_THE_GATE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._make_room(0)
        self._selector.close()

    def admit_within(self, seconds: float | None) -> Transport | None:
        """Wait so many seconds for the next client, and return its connection; None if there is none."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            wait = left if not self._shaking else 1.0 if left is None else min(left, 1.0)  # slow ones are ended in time
            for key, _ in self._selector.select(wait):
                if key.data is None:
                    self._accept()
                elif key.data in self._shaking and (transport := self._go_on(key.data)):
                    return transport
            too_long = time.monotonic() - HANDSHAKE_TIME
            for handshake in [each for each in self._shaking if each.began <= too_long]:
                self._end(handshake)
            if left == 0:
                return None

    def _accept(self) -> None:
        try:
            connection, where = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has left again
            return
        except OSError:  # out of descriptors or memory
            self._spare()
            return
        visitor = origin(where)
        try:
            trust = self._trust_now()
            handshake = Handshake(connection, trust.context, None, server=True)
            self._selector.register(connection, selectors.EVENT_READ, handshake)
        except OSError:  # also from OpenSSL: out of memory
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
        """End half of the handshakes. If there are none, others use the descriptors: then wait a little."""
        if not self._shaking:
            time.sleep(LULL)  # nothing reports a free descriptor, and the listener stays ready
        self._make_room(len(self._shaking) // 2)

    def _go_on(self, handshake: Handshake) -> Transport | None:
        visitor = self._shaking[handshake]
        where = visitor.origin.address
        try:
            if not handshake.go_on():
                return None
            identity = _identified(handshake, visitor.trust, self._trust_now, "it")
            self._forget(handshake)
            self._has_admitted = True
            return transport_of(handshake, identity, identity, self._patience)
        except ssl.SSLError as error:
            reason, tell = refused(where, error), not isinstance(error, ssl.SSLEOFError) or not self._has_admitted
        except OSError as error:
            reason, tell = lost(where, error, 0, self._patience), not self._has_admitted
        except PeerError as error:
            reason, tell = error, True
        if handshake in self._shaking:
            self._forget(handshake)
        handshake.connection.close()
        if tell:
            self._turned_away(where, reason)
        return None

    def _forget(self, handshake: Handshake) -> None:
        self._selector.unregister(handshake.connection)
        del self._shaking[handshake]

    def _end(self, handshake: Handshake) -> None:
        self._forget(handshake)
        handshake.connection.close()

    def _make_room(self, at_most: int) -> None:
        """While there are too many handshakes, end the oldest one of the host that has the most."""
        while len(self._shaking) > at_most:
            ((most, _),) = Counter(each.origin.host for each in self._shaking.values()).most_common(1)
            self._end(next(each for each, visitor in self._shaking.items() if visitor.origin.host == most))
