"""pair: let two hosts know each other's keys, once, by a code that a person carries from one to the other.

One listens and shows the code, the other connects and is told it. They exchange certificates (trust/spake.py), and
each pins the other's, or neither does. A wrong code ends the attempt on both sides; the next has a new one.

Who connects and says no proper hello has tried no code, so it ends nothing: it is sent away, told of, and the listener
goes on. Many may be connected at a time, for the true one may be silent for as long as a person types.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from statepipe.ends.address import Address
from statepipe.ends.dial import connected, listening, port_of
from statepipe.ends.listeners import LULL, ListeningSocket, Origin, origin
from statepipe.ends.net import Patience, lost
from statepipe.ends.ration import Refusals
from statepipe.errors import IntegrityError, PeerError
from statepipe.pipeline.signals import forget_late, held
from statepipe.telling import Tell
from statepipe.trust.certificates import fingerprint
from statepipe.trust.identity import own_certificate
from statepipe.trust.pins import check_name, pinning
from statepipe.trust.spake import CONFIRM_SIZE, DONE, HELLO_LIMIT, KEPT, READY, Pairing, Peer

PATIENCE = Patience(silence=120.0)
"""Seconds for a person to type a code on the other host."""

LISTENING = 300.0
"""Seconds to wait for the other host in all: a person has to go there, begin, and type."""

ANSWER = Patience(silence=20.0)
"""Seconds for the rest of the exchange, once the hello is here: no person has a part in it."""

VISITORS = 32
"""Connections at a time that have said no hello yet. For one more, the oldest of the host with the most goes."""

AGAIN = "look at what it says over there, then begin again on both hosts"

Choose = Callable[[str, str, str], str]
"""The name to pin a peer under, by what it calls itself, its key's fingerprint, and the address that it came from."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The peer that is pinned now, under what name, and its key's fingerprint and ours."""

    name: str
    fingerprint: str
    ours: str


def pair_listening(address: Address, code: str, choose: Choose, ready: Callable[[int], object], say: Tell) -> Paired:
    """Wait for the other host; `ready` is told the port, `say` of others who come. Raises PeerError, StatepipeError."""
    own, refusals = own_certificate(), Refusals(say)
    with listening(address, insecure=True) as listener, ExitStack() as stack:
        ready(port_of(listener))
        lobby = _Lobby(listener, refusals)
        stack.callback(refusals.end)
        stack.callback(lobby.close)
        visitor, pairing, confirm = _first_hello(lobby, lambda: Pairing(code, socket.gethostname(), own, first=True))
        lobby.keep_only(visitor)
        peer = _answer(visitor, pairing, confirm)
        print_of_theirs = _fingerprint(peer)
        name = choose(peer.name, print_of_theirs, visitor.address)
        with pinning(name, peer.certificate) as keep:
            _keep_when_kept(visitor, pairing, keep)
    return Paired(check_name(name), print_of_theirs, fingerprint(own.encode()))


@dataclass(eq=False)
class _Visitor:
    """Somebody who is connected, and what it has said so far."""

    connection: socket.socket
    origin: Origin
    said: bytearray = field(default_factory=bytearray)

    @property
    def address(self) -> str:
        """Without a zone: that is an interface's name, and ours."""
        return self.origin.address.partition("%")[0]

    def hear(self) -> bytes | None:
        """Take what has come; its hello once that is whole. Raises PeerError, OSError."""
        data = self.connection.recv(HELLO_LIMIT)
        if not data:
            raise PeerError("it hung up before it had said anything of a pairing")
        self.said += data
        if len(self.said) < 4:
            return None
        size = int.from_bytes(self.said[:4], "big")
        if not 0 < size <= HELLO_LIMIT:
            raise PeerError("it does not speak as 'statepipe pair' does")
        return bytes(self.said[4 : 4 + size]) if len(self.said) >= 4 + size else None


class _Lobby:
    """All who are connected and have said no hello yet, oldest first."""

    def __init__(self, listener: ListeningSocket, turned_away: Refusals) -> None:
        listener.setblocking(False)
        self._listener, self._turned_away = listener, turned_away
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._here: list[_Visitor] = []

    def wait(self, seconds: float) -> list[_Visitor]:
        """Those who have said more, within so many seconds."""
        speaking = [key.data for key, _ in self._selector.select(min(max(seconds, 0), 1.0))]
        if None in speaking:
            self._accept()
        self._turned_away.look()
        return [each for each in speaking if each in self._here]

    def _accept(self) -> None:
        try:
            connection, where = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it left again
            return
        except OSError:  # there is no descriptor to spare: those who are here have some
            if not self._here:
                time.sleep(LULL)  # of one that is free nothing tells, and the listener stays ready
            self._make_room(len(self._here) // 2)
            return
        connection.setblocking(False)
        visitor = _Visitor(connection, origin(where))
        self._selector.register(connection, selectors.EVENT_READ, visitor)
        self._here.append(visitor)
        self._make_room(VISITORS)

    def _make_room(self, at_most: int) -> None:
        while len(self._here) > at_most:
            hosts = [each.origin.host for each in self._here]
            most = max(hosts, key=hosts.count)
            self.send_away(self._here[hosts.index(most)], PeerError("too many were connected and said nothing"))

    def send_away(self, visitor: _Visitor, error: PeerError) -> None:
        """It is none of ours."""
        self._turned_away(visitor.address, error)
        self._let_go(visitor)

    def _let_go(self, visitor: _Visitor) -> None:
        self._selector.unregister(visitor.connection)
        self._here.remove(visitor)
        visitor.connection.close()

    def keep_only(self, visitor: _Visitor) -> None:
        """Nobody else is waited for any more."""
        for each in [each for each in self._here if each is not visitor]:
            self._let_go(each)

    def close(self) -> None:
        """Let go of all."""
        for visitor in list(self._here):
            self._let_go(visitor)
        self._selector.close()


def _first_hello(lobby: _Lobby, begin: Callable[[], Pairing]) -> tuple[_Visitor, Pairing, bytes]:
    """The first whose hello is one, and our confirmation of it. Raises PeerError where none came in time."""
    deadline = time.monotonic() + LISTENING
    while (left := deadline - time.monotonic()) > 0:
        for visitor in lobby.wait(left):
            failure = None
            try:
                if (hello := visitor.hear()) is not None:
                    pairing = begin()
                    return visitor, pairing, pairing.take_hello(hello)
            except BlockingIOError:
                continue
            except PeerError as error:
                failure = error
            except OSError as error:
                failure = lost(visitor.address, error, len(visitor.said), ANSWER)
            if failure is not None:
                lobby.send_away(visitor, failure)
    raise PeerError(f"nobody came within {LISTENING:g} s to be paired", hint="begin again on both hosts")


def _answer(visitor: _Visitor, pairing: Pairing, confirm: bytes) -> Peer:
    """The rest of the exchange. Raises PeerError: the code has been tried, and is good no more."""
    connection = visitor.connection
    connection.settimeout(ANSWER.silence)
    try:
        connection.sendall(_framed(pairing.hello) + confirm)
        more = bytes(visitor.said[4 + int.from_bytes(visitor.said[:4], "big") :])
        return pairing.take_confirm(more + _read(connection, CONFIRM_SIZE - len(more)))
    except OSError as error:
        raise _broken(visitor.address, error, ANSWER) from error
    except PeerError as error:
        raise PeerError(f"{visitor.address}: {error}", hint=error.hint) from error


def _keep_when_kept(visitor: _Visitor, pairing: Pairing, keep: Callable[[], object]) -> None:
    """Pin the peer once it has pinned us. Raises PeerError, and then neither side has."""
    connection = visitor.connection
    try:
        connection.sendall(pairing.word(READY))
        pairing.take_word(_read(connection, CONFIRM_SIZE), KEPT)
    except OSError as error:
        raise _broken(visitor.address, error, ANSWER) from error
    except PeerError as error:
        raise PeerError(f"{visitor.address}: {error}", hint=error.hint) from error
    with held():
        keep()
        with suppress(OSError):  # who does not hear it begins again, and finds us as we are
            connection.sendall(pairing.word(DONE))
        forget_late()


def pair_connecting(address: Address, ask: Callable[[], str], name: str | None) -> Paired:
    """Connect to the host that listens; `ask` gives its code. Raises PeerError, StatepipeError."""
    own, called = own_certificate(), check_name(name or address.name)  # a code is good for one attempt
    with connected(address, PATIENCE, None, insecure=True) as connection:
        pairing = Pairing(ask(), socket.gethostname(), own, first=False)
        peer = _exchange(connection, pairing, str(address))
        with pinning(called, peer.certificate) as keep:
            _keep_with_the_other(connection, pairing, keep, str(address))
    return Paired(called, _fingerprint(peer), fingerprint(own.encode()))


def _keep_with_the_other(
    connection: socket.socket, pairing: Pairing, keep: Callable[[], Callable[[], None]], name: str
) -> None:
    """Pin the peer once it can pin us, and for good once it has. Raises PeerError, and then we have not."""
    take_back: Callable[[], None] = _nothing
    try:
        pairing.take_word(_read(connection, CONFIRM_SIZE), READY)  # a person there may be choosing our name
        connection.settimeout(ANSWER.silence)
        with held():
            take_back = keep()
        connection.sendall(pairing.word(KEPT))
        pairing.take_word(_read(connection, CONFIRM_SIZE), DONE)
    except BaseException as error:
        take_back()
        if isinstance(error, OSError):
            raise _broken(name, error, PATIENCE) from error
        raise


def _nothing() -> None:
    """There is nothing to take back."""


def _exchange(connection: socket.socket, pairing: Pairing, name: str) -> Peer:
    try:
        connection.sendall(_framed(pairing.hello))
        size = int.from_bytes(_read(connection, 4), "big")
        if size > HELLO_LIMIT:
            raise PeerError(f"{name} does not speak as 'statepipe pair' does")
        connection.sendall(pairing.take_hello(_read(connection, size)))
        return pairing.take_confirm(_read(connection, CONFIRM_SIZE))
    except OSError as error:
        raise _broken(name, error, PATIENCE) from error


def _broken(name: str, error: OSError, patience: Patience) -> PeerError:
    """What an OSError in the middle of it means."""
    return PeerError(f"{lost(name, error, 0, patience)}: nothing is pinned here", hint=AGAIN)


def _framed(hello: bytes) -> bytes:
    return len(hello).to_bytes(4, "big") + hello


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise PeerError("the other side broke the pairing off, and nothing is pinned here", hint=AGAIN)
        data += more
    return data


def _fingerprint(peer: Peer) -> str:
    try:
        return fingerprint(peer.certificate.encode())
    except IntegrityError as error:
        raise PeerError("the other side's certificate cannot be read") from error
