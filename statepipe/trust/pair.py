"""pair: exchange keys between two hosts once, with a code that a person reads on one and types on the other.

One host listens and shows the code; on the other, which connects, a person enters it. They exchange certificates
(trust/spake.py), and either each pins the other's, or neither does. A wrong code ends the attempt on both sides; the
next attempt has a new code.

A connection that does not send a valid hello has not tried a code, so it does not end the attempt: it is closed and
reported, and the listener continues. Many connections can be open at a time, because the right one may be silent
while a person types.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from statepipe.ends.address import Address
from statepipe.ends.dial import connect, listening, port_of
from statepipe.ends.listeners import LULL, ListeningSocket, Origin, origin
from statepipe.ends.net import Patience, lost
from statepipe.ends.ration import Refusals
from statepipe.errors import IntegrityError, PeerError
from statepipe.pipeline.signals import forget_late, held
from statepipe.telling import Tell
from statepipe.trust.certificates import fingerprint
from statepipe.trust.identity import own_certificate
from statepipe.trust.pins import check_name, pinning
from statepipe.trust.spake import CONFIRM_SIZE, DONE, HELLO_LIMIT, KEPT, READY, Pairing, RemoteHost

TYPING = Patience(silence=120.0)
"""Seconds that a person has to type the code on the other host."""

LISTENING = 300.0
"""Seconds to wait for the other host in all: a person has to go there, start pair, and type."""

ANSWER = Patience(silence=20.0)
"""Seconds for the rest of the exchange after the hello, in which nobody types."""

VISITORS = 32
"""Connections at a time that have not sent their hello. For one more, the oldest from the address with the most is
closed."""

AGAIN = "read the message on the other host, then start again on both hosts"

Choose = Callable[[str, str, str], str]
"""Chooses the name to pin a peer under, from the name it sent, its key's fingerprint, and its address."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The name under which the peer is now pinned, and the fingerprints of its key and ours."""

    name: str
    fingerprint: str
    ours: str


def pair_listening(address: Address, code: str, choose: Choose, ready: Callable[[int], object], say: Tell) -> Paired:
    """Wait for the other host. `ready` receives the port, `say` reports of other connections. Raises PeerError,
    StatepipeError."""
    own, refusals = own_certificate(), Refusals(say)
    with listening(address, insecure=True) as listener, ExitStack() as stack:
        ready(port_of(listener))
        connections = _PendingConnections(listener, refusals)
        stack.callback(refusals.end)
        stack.callback(connections.close)
        pending, pairing, confirm = _first_hello(
            connections, lambda: Pairing(code, socket.gethostname(), own, first=True)
        )
        connections.keep_only(pending)
        connection = pending.connection
        connection.settimeout(ANSWER.silence)
        with _exchanging(pending.address, ANSWER):  # the code has now been tried, and is no longer valid
            connection.sendall(_framed(pairing.hello) + confirm)
            more = bytes(pending.said[4 + int.from_bytes(pending.said[:4], "big") :])
            peer = pairing.take_confirm(more + _read(connection, CONFIRM_SIZE - len(more)))
        print_of_theirs = _fingerprint(peer)
        name = choose(peer.name, print_of_theirs, pending.address)
        with pinning(name, peer.certificate) as keep:
            with _exchanging(pending.address, ANSWER):
                connection.sendall(pairing.word(READY))
                pairing.take_word(_read(connection, CONFIRM_SIZE), KEPT)
            with held():
                keep()
                with suppress(OSError):  # a host that misses it starts again, and finds itself pinned here
                    connection.sendall(pairing.word(DONE))
                forget_late()
    return Paired(check_name(name), print_of_theirs, fingerprint(own.encode()))


@dataclass(eq=False)
class _Pending:
    """A connection without a complete hello, and the bytes that it has sent so far."""

    connection: socket.socket
    origin: Origin
    said: bytearray = field(default_factory=bytearray)

    @property
    def address(self) -> str:
        """The peer's address without a zone, which is the name of an interface of this host."""
        return self.origin.address.partition("%")[0]

    def hear(self) -> bytes | None:
        """Read what has arrived; return the hello once it is complete. Raises PeerError, OSError."""
        data = self.connection.recv(HELLO_LIMIT)
        if not data:
            raise PeerError("it closed the connection before it sent a hello")
        self.said += data
        if len(self.said) < 4:
            return None
        size = int.from_bytes(self.said[:4], "big")
        if not 0 < size <= HELLO_LIMIT:
            raise PeerError("it does not follow the protocol of 'statepipe pair'")
        return bytes(self.said[4 : 4 + size]) if len(self.said) >= 4 + size else None


class _PendingConnections:
    """All connections that have not sent their hello, oldest first."""

    def __init__(self, listener: ListeningSocket, turned_away: Refusals) -> None:
        listener.setblocking(False)
        self._listener, self._turned_away = listener, turned_away
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._here: list[_Pending] = []

    def wait(self, seconds: float) -> list[_Pending]:
        """Wait up to so many seconds; return the connections with new bytes."""
        speaking = [key.data for key, _ in self._selector.select(min(max(seconds, 0), 1.0))]
        if None in speaking:
            self._accept()
        self._turned_away.look()
        return [each for each in speaking if each in self._here]

    def _accept(self) -> None:
        try:
            connection, where = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it was closed again
            return
        except OSError:  # out of descriptors, which the open connections hold
            if not self._here:
                time.sleep(LULL)  # no event reports a free descriptor, and poll would return at once
            self._make_room(len(self._here) // 2)
            return
        connection.setblocking(False)
        pending = _Pending(connection, origin(where))
        self._selector.register(connection, selectors.EVENT_READ, pending)
        self._here.append(pending)
        self._make_room(VISITORS)

    def _make_room(self, at_most: int) -> None:
        while len(self._here) > at_most:
            hosts = [each.origin.host for each in self._here]
            most = max(hosts, key=hosts.count)
            self.send_away(self._here[hosts.index(most)], PeerError("too many connections that sent nothing"))

    def send_away(self, pending: _Pending, error: PeerError) -> None:
        """Close a connection that is not the other host, and report it."""
        self._turned_away(pending.address, error)
        self._let_go(pending)

    def _let_go(self, pending: _Pending) -> None:
        self._selector.unregister(pending.connection)
        self._here.remove(pending)
        pending.connection.close()

    def keep_only(self, pending: _Pending) -> None:
        """Close all other connections."""
        for each in [each for each in self._here if each is not pending]:
            self._let_go(each)

    def close(self) -> None:
        """Close all connections."""
        for pending in list(self._here):
            self._let_go(pending)
        self._selector.close()


def _first_hello(connections: _PendingConnections, begin: Callable[[], Pairing]) -> tuple[_Pending, Pairing, bytes]:
    """Return the first connection with a valid hello, and our confirmation. Raises PeerError if none came in time."""
    deadline = time.monotonic() + LISTENING
    while (left := deadline - time.monotonic()) > 0:
        for pending in connections.wait(left):
            failure = None
            try:
                if (hello := pending.hear()) is not None:
                    pairing = begin()
                    return pending, pairing, pairing.take_hello(hello)
            except BlockingIOError:
                continue
            except PeerError as error:
                failure = error
            except OSError as error:
                failure = lost(pending.address, error, len(pending.said), ANSWER)
            if failure is not None:
                connections.send_away(pending, failure)
    raise PeerError(f"no host connected within {LISTENING:g} s to be paired", hint="start again on both hosts")


def pair_connecting(address: Address, ask: Callable[[], str], name: str | None) -> Paired:
    """Connect to the listening host; `ask` returns its code. Raises PeerError, StatepipeError."""
    own, called = own_certificate(), check_name(name or address.name)  # before `ask`: a code is valid for one attempt
    with connect(address, TYPING, None, insecure=True) as connection:
        pairing = Pairing(ask(), socket.gethostname(), own, first=False)
        with _exchanging(str(address), TYPING):
            connection.sendall(_framed(pairing.hello))
            size = int.from_bytes(_read(connection, 4), "big")
            if size > HELLO_LIMIT:
                raise PeerError("it does not follow the protocol of 'statepipe pair'")
            connection.sendall(pairing.take_hello(_read(connection, size)))
            peer = pairing.take_confirm(_read(connection, CONFIRM_SIZE))
        with pinning(called, peer.certificate) as keep:
            take_back: Callable[[], None] | None = None
            try:  # pin the peer once it is able to pin us, and undo that unless it does
                with _exchanging(str(address), TYPING):
                    pairing.take_word(_read(connection, CONFIRM_SIZE), READY)  # a person there may choose a name for us
                    connection.settimeout(ANSWER.silence)
                    with held():
                        take_back = keep()
                    connection.sendall(pairing.word(KEPT))
                    pairing.take_word(_read(connection, CONFIRM_SIZE), DONE)
            except BaseException:
                if take_back is not None:
                    take_back()
                raise
    return Paired(called, _fingerprint(peer), fingerprint(own.encode()))


@contextmanager
def _exchanging(name: str, patience: Patience) -> Iterator[None]:
    """Add the other host's name to the errors of an exchange. Raises PeerError, and then nothing is pinned here."""
    try:
        yield
    except OSError as error:
        raise PeerError(f"{lost(name, error, 0, patience)}: nothing is pinned here", hint=AGAIN) from error
    except PeerError as error:
        raise PeerError(f"{name}: {error}", hint=error.hint) from error


def _framed(hello: bytes) -> bytes:
    return len(hello).to_bytes(4, "big") + hello


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise PeerError("the other host ended the pairing; nothing is pinned here", hint=AGAIN)
        data += more
    return data


def _fingerprint(peer: RemoteHost) -> str:
    try:
        return fingerprint(peer.certificate.encode())
    except IntegrityError as error:
        raise PeerError("the other host's certificate cannot be read") from error
