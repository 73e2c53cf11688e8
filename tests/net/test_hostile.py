"""Strangers at a receiver: each is refused, gives nothing to the sink, and disturbs no transfer under way."""

from __future__ import annotations

import errno
import os
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.ends.net import Patience, lost
from statepipe.session.gate import AT_THE_GATE, LULL, Gate, origin
from statepipe.session.tls import HANDSHAKE_BYTES, HANDSHAKE_TIME, Handshake
from statepipe.trust.identity import Trust, by_pins
from tests.net.homes import DATA, MIB, Receiver, World, connect, finish, hello, receiving, rest, sending, transfer

Attack = Callable[[World, int], None]

ALERT = 7
"""Bytes of a TLS alert in the clear (RFC 8446, 5.1 and 6): all that who speaks no TLS may hear."""


def says(data: bytes) -> Attack:
    """Somebody who says this and listens until he is sent away."""

    def attack(world: World, port: int) -> None:
        with connect(port) as connection:
            with suppress(ConnectionResetError, BrokenPipeError):  # it has heard enough
                connection.sendall(data)
            assert len(rest(connection)) <= ALERT

    return attack


def scans(world: World, port: int) -> None:
    """A port scan: here and away."""
    connect(port).close()


def shakes_hands(change: Callable[[World], ssl.SSLContext]) -> Attack:
    """A client of TLS, who is refused in the handshake or by the first thing that it hears after it."""

    def attack(world: World, port: int) -> None:
        with (
            connect(port) as plain,
            pytest.raises((ssl.SSLError, ConnectionResetError)),
            change(world).wrap_socket(plain) as secure,
        ):
            secure.sendall(bytes(1000))
            assert secure.recv(1), "closed without an alert"

    return attack


def anonymous(world: World) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def old(world: World) -> ssl.SSLContext:
    context = world.mallory.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


HTTP = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
NO_RECORD = b"\x16\x03\x01\xff\xff"
RECORD = b"\x16\x03\x01\x40\x00"
LONG_HELLO = RECORD + b"\1\1\xff\xff" + bytes(2**14 - 4) + 7 * (RECORD + bytes(2**14))
"""A ClientHello of 128 KiB, in its records (RFC 8446, 4 and 5.1)."""

ATTACKS: dict[str, Attack] = {
    "garbage": says(random.Random(1).randbytes(HANDSHAKE_BYTES + 1)),
    "a record that is too long": says(NO_RECORD + bytes(HANDSHAKE_BYTES)),
    "a hello that is too long": says(LONG_HELLO),
    "HTTP": says(HTTP),
    "a port scan": scans,
    "TLS 1.2": shakes_hands(old),
    "no certificate": shakes_hands(anonymous),
    "a key that is not pinned": shakes_hands(lambda world: world.stranger.context()),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_stranger_is_refused_and_disturbs_nobody(world: World, tmp_path: Path, name: str) -> None:
    with transfer(world, tmp_path / "out") as receiver:
        for _ in range(3):
            ATTACKS[name](world, receiver.port)


def test_none_of_them_takes_the_place_of_who_is_waited_for(world: World, tmp_path: Path) -> None:
    with receiving(world, tmp_path / "out") as receiver:
        for attack in ATTACKS.values():
            attack(world, receiver.port)
        it_arrives(world, receiver, told=f"it sent {HANDSHAKE_BYTES} bytes and was not authenticated")


def it_arrives(world: World, receiver: Receiver, told: str = "") -> None:
    """From the friend; what the receiver has said of others before."""
    with sending(world, receiver.port) as sender:
        finish(sender, DATA[:MIB])
    status, said = receiver.ended()
    assert status == 0 and told in said, said
    assert receiver.out.read_bytes() == DATA[:MIB]


# --- many of them


def half_a_hello(world: World) -> bytes:
    data = hello(world.stranger.context())[0]
    return data[: len(data) // 2]


@contextmanager
def crowd(port: int, count: int, data: bytes, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """So many who have come, have said this, and now say nothing more."""
    them: list[socket.socket] = []
    try:
        for _ in range(count):
            them.append(connect(port, source))
            them[-1].sendall(data)
        yield them
    finally:
        for each in them:
            each.close()


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.faults)])
def test_a_flood_of_strangers_disturbs_nobody(world: World, tmp_path: Path, count: int) -> None:
    """In bursts, one after the other of a kind."""
    words = [HTTP, NO_RECORD, half_a_hello(world), b"", bytes(4096)]
    with transfer(world, tmp_path / "out") as receiver:
        for turn in range(count // 100):
            with crowd(receiver.port, 100, words[turn % len(words)]) as them:
                if words[turn % len(words)] in (HTTP, NO_RECORD):
                    assert all(len(rest(each)) <= ALERT for each in them)


def test_those_who_shake_hands_for_ever_do_not_keep_out_who_is_waited_for(world: World, tmp_path: Path) -> None:
    words = half_a_hello(world)
    with receiving(world, tmp_path / "out") as receiver, crowd(receiver.port, AT_THE_GATE + 20, words) as them:
        assert [rest(each) for each in them[:20]] == [b""] * 20
        it_arrives(world, receiver)


def test_who_comes_from_elsewhere_is_not_crowded_out(world: World, tmp_path: Path) -> None:
    """Where there are too many, those must go that are of one address: a far peer needs more time than they take."""
    first, tls, incoming, outgoing = hello(world.friend.context())
    with receiving(world, tmp_path / "out") as receiver, connect(receiver.port) as far:
        far.sendall(first[:100])
        with crowd(receiver.port, AT_THE_GATE + 20, half_a_hello(world), "127.0.0.2") as them:
            assert rest(them[0]) == b""
            far.sendall(first[100:])
            incoming.write(far.recv(1 << 16))
            tls.do_handshake()
            far.sendall(outgoing.read())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.1", 1), ("192.0.2.1", 2), True),
        (("192.0.2.1", 1), ("192.0.2.2", 1), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::2", 1, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 1, 0, 0), False),
        (("fe80::1%lo", 1, 0, 1), ("fe80::2%lo", 1, 0, 1), True),
        ((2, 1), (2, 2), True),  # of vsock, that a listener handed over may be
        ((2, 1), (3, 1), False),
    ],
)
def test_who_may_be_the_same_host(one: object, other: object, same: bool) -> None:
    assert (origin(one).host == origin(other).host) is same


def test_an_address_of_ipv4_is_shown_as_one() -> None:
    assert origin(("::ffff:192.0.2.1", 1, 0, 0)).address == origin(("192.0.2.1", 1)).address == "192.0.2.1"


def test_what_comes_behind_a_handshake_does_not_count_as_part_of_it(world: World, tmp_path: Path) -> None:
    """A client does not wait for the server's judgement before it speaks."""
    with receiving(world, tmp_path / "out") as receiver:
        first, tls, incoming, outgoing = hello(world.mallory.context())
        with connect(receiver.port) as connection:
            connection.sendall(first)
            wants_more = True
            while wants_more:
                incoming.write(connection.recv(1 << 16))
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    wants_more = False
            tls.write(bytes(HANDSHAKE_BYTES))
            connection.sendall(outgoing.read())
            rest(connection)
        it_arrives(world, receiver, told="the other side is not a statepipe session")


def test_a_socket_that_has_nothing_after_all_ends_no_handshake(world: World) -> None:
    near, far = socket.socketpair()
    with near, far:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert not Handshake(near, context, None, server=True).go_on()
        with pytest.raises(BlockingIOError) as raised:
            near.recv(1)
    assert str(lost("it", raised.value, 0, Patience())) == "it has not moved (after 0 bytes)"


def test_those_who_would_take_all_descriptors_get_a_part_of_them(world: World, tmp_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -n 48; exec "$@"', "sh"]
    with transfer(world, tmp_path / "out", *few) as receiver, crowd(receiver.port, 96, b"\x16") as them:
        them[0].settimeout(HANDSHAKE_TIME / 2)  # by then it was not time that sent it away
        assert rest(them[0]) == b""


def test_where_no_handshake_can_begin_only_those_who_come_are_concerned() -> None:
    """With a context that OpenSSL begins none with, which is what lack of memory looks like."""
    trust = Trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), check_host=False)
    told: list[str] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Gate(listener, lambda: trust, Patience(), lambda where, error: told.append(where)) as at,
    ):
        for _ in range(2):
            with connect(listener.getsockname()[1]) as stranger:
                assert at.admit_within(0) is None
                assert rest(stranger) == b""
    assert not told


class Poor(socket.socket):
    """A listener of a process that may have no more descriptors, for now."""

    lacks, asked = True, 0

    def accept(self) -> Any:
        self.asked += 1
        if self.lacks:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_a_lack_of_descriptors_is_waited_out_at_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.here.base))
    told: list[str] = []
    with (
        Poor() as listener,
        Gate(listener, by_pins(None, server=True), Patience(), lambda where, error: told.append(where)) as at,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with connect(listener.getsockname()[1]) as stranger:
            stranger.sendall(HTTP)
            assert at.admit_within(4 * LULL) is None
            assert 1 < listener.asked <= 6 and not told
            listener.lacks = False
            while not told:
                assert at.admit_within(LULL) is None
    assert told == ["127.0.0.1"]


@pytest.mark.faults
def test_a_handshake_ends_in_time(world: World, tmp_path: Path) -> None:
    """The crowd is no larger than may be at the gate: only the time that they take sends them away."""
    with transfer(world, tmp_path / "out") as receiver, crowd(receiver.port, 20, half_a_hello(world)) as them:
        them[0].settimeout(3 * HANDSHAKE_TIME)
        assert [rest(each) for each in them] == [b""] * len(them)
