"""pair: let two hosts know each other's keys, once, by a code that a person carries from one to the other.

One listens and shows the code, the other connects and is told it. They exchange certificates (formats/pairing.py), and
each pins the other's. A wrong code ends the attempt on both sides; the next has a new one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from statepipe.ends.address import Address
from statepipe.ends.dial import accepted, connected, listening, port_of
from statepipe.ends.net import Patience, lost
from statepipe.ends.trust import check_name, own_certificate, pin
from statepipe.errors import IntegrityError, PeerError
from statepipe.formats.certificates import fingerprint, read_certificate
from statepipe.formats.pairing import CONFIRM_SIZE, HELLO_LIMIT, Pairing, Peer

PATIENCE = Patience(silence=120.0)
"""Seconds for a person to type a code on the other host."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The peer that is pinned now, under what name, and its key's fingerprint and ours."""

    name: str
    fingerprint: str
    ours: str


def pair_listening(address: Address, code: str, name: str | None, ready: Callable[[int], object]) -> Paired:
    """Wait for the other host; `ready` is told the port. Raises PeerError, StatepipeError."""
    own = own_certificate()
    with listening(address, insecure=True) as listener:
        ready(port_of(listener))
        with accepted(listener, PATIENCE) as connection:
            pairing = Pairing(code, socket.gethostname(), own, first=True)
            peer = _exchange(connection, pairing, str(connection.getpeername()[0]))
    return _pin(peer, name or peer.name, own)


def pair_connecting(address: Address, ask: Callable[[], str], name: str | None) -> Paired:
    """Connect to the host that listens; `ask` gives its code. Raises PeerError, StatepipeError."""
    own = own_certificate()
    with connected(address, PATIENCE, None, insecure=True) as connection:
        pairing = Pairing(ask(), socket.gethostname(), own, first=False)
        peer = _exchange(connection, pairing, str(address))
    return _pin(peer, name or address.host, own)


def _exchange(connection: socket.socket, pairing: Pairing, name: str) -> Peer:
    try:
        connection.sendall(len(pairing.hello).to_bytes(4, "big") + pairing.hello)
        size = int.from_bytes(_read(connection, 4), "big")
        if size > HELLO_LIMIT:
            raise PeerError(f"{name} does not speak as 'statepipe pair' does")
        connection.sendall(pairing.take_hello(_read(connection, size)))
        return pairing.take_confirm(_read(connection, CONFIRM_SIZE))
    except OSError as error:
        raise lost(name, error, 0, PATIENCE) from error


def _read(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise PeerError("the other side broke the pairing off", hint="begin again on both hosts")
    return data


def _pin(peer: Peer, name: str, own: str) -> Paired:
    try:
        print_of_theirs = fingerprint(peer.certificate.encode())
        read_certificate(peer.certificate.encode(), "its certificate")
    except IntegrityError as error:
        raise PeerError("the other side's certificate cannot be read") from error
    pin(name, peer.certificate)
    return Paired(check_name(name), print_of_theirs, fingerprint(own.encode()))
