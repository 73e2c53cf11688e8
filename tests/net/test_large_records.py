"""Large records over real connections: how two sides agree on them, and what a man in the middle can do."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from statepipe.ends.net import Patience
from statepipe.errors import PeerError
from statepipe.session import largerecords
from statepipe.session.gate import Gate, greet
from statepipe.session.largerecords import RecordTransport, offered_protocols
from statepipe.session.protocol.frames import GREETING_SIZE, Frame, FrameReader, Kind
from statepipe.session.protocol.records import AES, CHACHA, LENGTH_SIZE, MAX_CONTENT, SECRET_SIZE
from statepipe.session.tls import TlsTransport
from statepipe.session.transport import Transport
from statepipe.trust.identity import by_folder
from tests.conformance.running import PATIENCE
from tests.minipeer import Large, Link, Sender
from tests.net.homes import World, receiving, sending
from tests.net.test_session_tls import folder

__all__ = ["folder"]

ASKED, ANSWERED = b"a" * GREETING_SIZE, b"w" * GREETING_SIZE


@dataclass
class Ends:
    """Both sides of one link."""

    near: Transport
    far: Transport


@contextmanager
def linked(creds: str, near: list[str], far: list[str]) -> Iterator[Ends]:
    """Two sides after the handshake, which offer these ways."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as pool,
        Gate(listener, by_folder(creds, server=True, protocols=far), Patience(), lambda *_: None) as gate,
    ):
        admitted = pool.submit(gate.admit_within, PATIENCE)
        connection = socket.create_connection(listener.getsockname(), PATIENCE)
        ours = greet(connection, by_folder(creds, server=False, protocols=near), "localhost", Patience())
        theirs = admitted.result()
        assert theirs is not None
        with closing(ours), closing(theirs):
            yield Ends(ours, theirs)


def take(transport: Transport, size: int) -> bytes:
    """So many bytes. Raises PeerError."""
    block = memoryview(bytearray(size))
    done = 0
    while done < size:
        count = transport.recv_into(block[done:])
        assert count
        done += count
    return bytes(block)


def greeted(ends: Ends) -> Ends:
    """After the greetings."""
    ends.near.send([ASKED])
    assert take(ends.far, GREETING_SIZE) == ASKED
    ends.far.send([ANSWERED])
    assert take(ends.near, GREETING_SIZE) == ANSWERED
    return ends


WAYS = [
    ([AES, CHACHA], [AES, CHACHA], AES),
    ([AES, CHACHA], [CHACHA], CHACHA),
    ([CHACHA], [AES, CHACHA], CHACHA),
    ([AES, CHACHA], [], None),
    ([], [AES, CHACHA], None),
    (["statepipe/2-later", AES], [AES], AES),
    (["statepipe/2-later"], [AES], None),
]


@pytest.mark.parametrize(("near", "far", "chosen"), WAYS)
def test_two_sides_use_what_both_know(folder: str, near: list[str], far: list[str], chosen: str | None) -> None:
    with linked(folder, near, far) as ends:
        kind = TlsTransport if chosen is None else RecordTransport
        assert type(ends.near) is type(ends.far) is kind
        greeted(ends)
        data = random.Random(1).randbytes(3 * MAX_CONTENT + 5)
        for one, other in ((ends.near, ends.far), (ends.far, ends.near)):
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(one.send, [data[:10], data[10:]])
                assert take(other, len(data)) == data
                sent.result()


@pytest.mark.parametrize(("offered", "kind"), [([AES], RecordTransport), ([], TlsTransport)])
def test_what_is_not_taken_at_once_is_sent_first(folder: str, offered: list[str], kind: type[Transport]) -> None:
    """In order, whoever sends it, and whether or not the socket is full by then."""
    with linked(folder, offered, offered) as ends:
        assert type(ends.near) is kind
        greeted(ends)
        pieces = [random.Random(number).randbytes(3 * MAX_CONTENT + number) for number in range(20)]
        assert not ends.near.is_behind
        sent = 0
        while not ends.near.is_behind:
            ends.near.send_now([pieces[sent]])
            sent += 1
        ends.near.send_now([pieces[sent]])
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(ends.near.send, pieces[sent + 1 :])
            assert take(ends.far, sum(map(len, pieces))) == b"".join(pieces)
            rest.result()
        assert not ends.near.is_behind
        ends.near.send_now([b"a", b"b"])
        assert take(ends.far, 2) == b"ab"


def test_a_processor_without_aes_offers_only_chacha(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = {
        "processor: 0\nflags\t\t: fpu aes sse2\n": [AES, CHACHA],
        "Features\t: fp asimd aes pmull\n": [AES, CHACHA],
        "flags: fpu sse2 vaes_not\n": [CHACHA],
        "model name: aes\n": [CHACHA],
        "": [CHACHA],
    }
    for text, ways in cases.items():
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(largerecords, "_CPU", str(tmp_path / "cpuinfo"))
        largerecords._has_aes.cache_clear()
        assert offered_protocols("large") == ways, text
        assert offered_protocols("tls") == []
    monkeypatch.setattr(largerecords, "_CPU", str(tmp_path / "missing"))
    largerecords._has_aes.cache_clear()
    assert offered_protocols("large") == [CHACHA]
    largerecords._has_aes.cache_clear()


# --- somebody on the path


def exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL)
    assert len(data) == size
    return data


def record(connection: socket.socket) -> bytes:
    length = exactly(connection, LENGTH_SIZE)
    return length + exactly(connection, int.from_bytes(length))


@pytest.fixture
def ends(folder: str) -> Iterator[Ends]:
    """Two sides after their greetings."""
    with linked(folder, [AES], [AES]) as both:
        yield greeted(both)


def captured(ends: Ends, contents: list[bytes]) -> list[bytes]:
    """What the near side sends, taken away before the far side sees it."""
    for content in contents:
        ends.near.send([content])
    return [record(ends.far.connection) for _ in contents]


def flip(records: list[bytes]) -> bytes:
    return records[0] + records[1][:9] + bytes([records[1][9] ^ 1]) + records[1][10:]


CHANGES: dict[str, Callable[[list[bytes]], bytes]] = {
    "a flipped bit": flip,
    "a flipped bit of the length": lambda records: records[0] + bytes([0, 0, 0, records[1][3] ^ 4]) + records[1][4:],
    "a length beyond the bounds": lambda records: records[0] + b"\xff" + records[1][1:],
    "a length of nothing": lambda records: records[0] + bytes(4),
    "one left out": lambda records: records[0] + records[2],
    "one repeated": lambda records: records[0] + records[0],
    "two in another order": lambda records: records[0] + records[2] + records[1],
    "a record of TLS": lambda records: records[0] + b"\x17\x03\x03\x00\x13" + bytes(19),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_on_the_way_yields_no_byte(ends: Ends, change: str) -> None:
    records = captured(ends, [b"one", b"two", b"three"])
    ends.near.connection.sendall(CHANGES[change](records))
    assert take(ends.far, 3) == b"one"
    with pytest.raises(PeerError, match=r"a record was changed, or is not|a record of [0-9]+ bytes: 18 to"):
        take(ends.far, 1)


def test_what_a_side_sent_is_not_taken_back(ends: Ends) -> None:
    (sent,) = captured(ends, [b"one"])
    ends.far.connection.sendall(sent)
    with pytest.raises(PeerError, match="a record was changed"):
        take(ends.near, 1)


def test_a_record_of_another_link_is_not_taken(ends: Ends, folder: str) -> None:
    with linked(folder, [AES], [AES]) as other:
        (foreign,) = captured(greeted(other), [b"one"])
    ends.near.connection.sendall(foreign)
    with pytest.raises(PeerError, match="a record was changed"):
        take(ends.far, 1)


@pytest.mark.parametrize("left", [0, 1, LENGTH_SIZE, 20])
def test_a_cut_link_is_told_from_one_that_goes_on(ends: Ends, left: int) -> None:
    first, second = captured(ends, [b"one", b"two"])
    ends.near.connection.sendall(first + second[:left])
    ends.near.connection.shutdown(socket.SHUT_WR)
    assert take(ends.far, 3) == b"one"
    with pytest.raises(PeerError, match="closed the connection without ending TLS"):
        take(ends.far, 1)


def test_a_link_that_is_reset_is_lost(ends: Ends) -> None:
    captured(ends, [b"one"])
    ends.near.send([b"two"])  # unread there when it closes: a reset
    ends.far.close()
    with pytest.raises(PeerError, match=r"broke the connection off|failed after"):
        take(ends.near, 1)


def test_what_is_stripped_of_its_offer_fails_in_the_handshake(folder: str) -> None:
    """Somebody on the path takes the names out of the first message, so that both would use TLS's own records."""
    told: list[str] = []

    def admitted() -> Transport | None:
        while not told:
            if (link := gate.admit_within(0.1)) is not None:
                return link
        return None

    with (
        socket.create_server(("127.0.0.1", 0)) as trap,
        socket.create_server(("127.0.0.1", 0)) as listener,
        Gate(
            listener,
            by_folder(folder, server=True, protocols=[AES]),
            Patience(),
            lambda where, error: told.append(str(error)),
        ) as gate,
        ThreadPoolExecutor(2) as pool,
    ):
        port = trap.getsockname()[1]
        connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
        near = pool.submit(greet, connection, by_folder(folder, server=False, protocols=[AES]), "localhost", Patience())
        far = pool.submit(admitted)
        here, _ = trap.accept()
        beyond = socket.create_connection(("127.0.0.1", listener.getsockname()[1]), PATIENCE)
        hello = here.recv(1 << 16)
        assert hello.count(AES.encode()) == 1
        beyond.sendall(hello.replace(AES.encode(), AES.encode().swapcase()))
        with here, beyond:
            here.sendall(beyond.recv(1 << 16))
            with pytest.raises(PeerError, match="no trust between us"):
                near.result()
        connection.close()
        assert far.result() is None


def test_more_than_the_greeting_in_records_of_tls_is_refused(folder: str) -> None:
    context = by_folder(folder, server=False, protocols=[AES])().context
    context.check_hostname = False
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Gate(listener, by_folder(folder, server=True, protocols=[AES]), Patience(), lambda *_: None) as gate,
        ThreadPoolExecutor(1) as pool,
    ):
        admitted = pool.submit(gate.admit_within, PATIENCE)
        connection = socket.create_connection(listener.getsockname(), PATIENCE)
        with context.wrap_socket(connection) as secure:
            theirs = admitted.result()
            assert theirs is not None
            secure.sendall(ASKED + bytes(SECRET_SIZE) + b"more")
            with closing(theirs), pytest.raises(PeerError, match="more in TLS's own records than was agreed"):
                take(theirs, GREETING_SIZE)


def test_a_part_of_a_record_is_a_sign_of_life(ends: Ends) -> None:
    """Over a slow link a record takes longer than a link may be silent."""
    frame = Frame(Kind.DATA, 0, 0, bytes(5000))
    (sent,) = captured(ends, [b"".join(map(bytes, frame.encode()))])
    items = ends.far.items(FrameReader(greeted=True))
    for place in range(0, len(sent), 1000):
        ends.near.connection.sendall(sent[place : place + 1000])
        assert next(items) is None
    assert next(items) == frame


def test_a_choice_of_another_protocol_is_refused(folder: str) -> None:
    theirs = by_folder(folder, server=True, protocols=["x/1"])().context
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(listener.getsockname(), PATIENCE) as connection,
    ):
        accepted, _ = listener.accept()
        shaken = pool.submit(theirs.wrap_socket, accepted, server_side=True)
        with pytest.raises(PeerError, match="chose a protocol that was not offered"):
            greet(connection, by_folder(folder, server=False, protocols=["x/1"]), "localhost", Patience())
        shaken.result().close()


def test_ciphers_that_the_library_lacks_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: bytes) -> None:
        raise UnsupportedAlgorithm("not with this FIPS provider")

    largerecords._has_aes.cache_clear()
    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.ChaCha20Poly1305", refuse)
    assert CHACHA not in offered_protocols("large")
    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.AESGCM", refuse)
    assert offered_protocols("large") == []
    monkeypatch.undo()
    monkeypatch.setattr(ssl, "CHANNEL_BINDING_TYPES", [])
    assert offered_protocols("large") == []


# --- the programs


@pytest.mark.parametrize("setting", ["large", "tls"])
def test_recv_takes_a_stream_from_another_implementation(world: World, tmp_path: Path, setting: str) -> None:
    """It knows nothing but docs/protocol.md; where the configuration says tls, ALPN chooses nothing for it."""
    data = random.Random(5).randbytes(3 << 20)
    (tmp_path / "config").write_text(f'records = "{setting}"')
    with receiving(world, tmp_path / "out", "env", f"STATEPIPE_CONFIG={tmp_path}/config") as receiver:
        connection = socket.create_connection(("127.0.0.1", receiver.port), PATIENCE)
        context = world.friend.context()
        context.set_alpn_protocols([AES])
        with connection, context.wrap_socket(connection) as secure:
            assert secure.selected_alpn_protocol() == (AES if setting == "large" else None)
            with Large(secure) if setting == "large" else nullcontext(Link(secure.recv, secure.sendall)) as link:
                assert Sender(data).run(link) == (0, "")
        status, said = receiver.ended()
        assert status == 0, said
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("words", [[], ["--records", "large"], ["--records", "tls"]])
def test_send_offers_what_it_is_told(world: World, words: list[str]) -> None:
    context = world.here.context(server=True)
    context.set_alpn_protocols([CHACHA, AES])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        with sending(world, listener.getsockname()[1], *words) as sender:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as secure:
                assert secure.selected_alpn_protocol() == (None if "tls" in words else CHACHA)
            sender.kill()
