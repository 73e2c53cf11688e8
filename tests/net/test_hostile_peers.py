"""Hostile peers that are pinned: what they may not do is refused and told, also where they know a session's secrets."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from statepipe.ends.net import Patience
from statepipe.session.gate import greet
from statepipe.session.links import GREETING_TIME, dialled
from statepipe.session.protocol.admission import Party, Secrets
from statepipe.session.protocol.channels import MAX_PIECES, WINDOW
from statepipe.session.protocol.frames import MAX_DATA, MAX_LINKS, Frame, FrameReader, Greets, Kind, Role
from statepipe.session.session import FAREWELL, Timing
from statepipe.session.streams import Outlet
from statepipe.session.transport import Transport
from statepipe.trust.identity import by_pins
from tests.net.homes import (
    DATA,
    MEMORY,
    MIB,
    Home,
    World,
    answered,
    connect,
    finish,
    receiving,
    rest,
    sending,
    transfer,
)
from tests.wires import fed

SPARE = 5.0
"""Seconds that a loaded machine may add to a wait."""

PARTY = Party(Secrets(b"m" * 16, b"t" * 32), Role.SENDS)
NOTHING = (0,) * 16
NEW = PARTY.ask(1, NOTHING, known=False)


@contextmanager
def talking(home: Home, port: int) -> Iterator[ssl.SSLSocket]:
    """A connection of that host's to the receiver, after the handshake."""
    with connect(port) as plain, home.context().wrap_socket(plain) as secure:
        yield secure


def header(kind: int, length: int, *, channel: int = 0, offset: int = 0) -> bytes:
    """A frame's first 16 bytes (docs/protocol.md), whatever they say."""
    return bytes([kind, channel, 0, 0]) + length.to_bytes(4, "big") + offset.to_bytes(8, "big")


def data(offset: int, payload: bytes) -> bytes:
    return b"".join(Frame(Kind.DATA, 0, offset, payload).encode())


# --- within a session of its own


VIOLATIONS: dict[str, tuple[bytes, str]] = {
    "as long as can be said": (header(Kind.DATA, 0xFFFFFFFF), "a DATA frame of 4294967295 bytes"),
    "of no kind": (header(99, 0), "a frame of unknown kind 99"),
    "one byte each": (b"".join(data(2 * each + 1, b"x") for each in range(MAX_PIECES + 1)), "pieces in flight"),
    # It may come before the receiver has opened its channel: then that is what is told of it.
    "ACK of what was not sent": (
        header(Kind.ACK, 0, offset=1),
        ("it acknowledges byte 1 of channel 0", "ACK for channel 0, which does not exist"),
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_frame_that_may_not_be_ends_the_session_and_is_told(world: World, tmp_path: Path, name: str) -> None:
    assert_told(world, tmp_path / "out", *VIOLATIONS[name])


def test_what_is_kept_before_a_gap_that_is_never_filled_is_bounded(world: World, tmp_path: Path) -> None:
    """The window full of what nobody can take yet; one byte more is one too many."""
    kept = b"".join(data(1 + start, DATA[:MAX_DATA]) for start in range(0, WINDOW - MAX_DATA, MAX_DATA))
    assert_told(world, tmp_path / "out", kept + data(WINDOW, b"x"), "beyond the window")


def assert_told(world: World, out: Path, frames: bytes, why: str | tuple[str, ...]) -> None:
    """Who sends these frames in a session of its own hears why that ends, as does who started the receiver."""
    reasons = (why,) if isinstance(why, str) else why
    with receiving(world, out) as receiver:
        with talking(world.mallory, receiver.port) as secure:
            assert answered(secure, NEW).kind is Greets.WELCOME
            secure.sendall(frames)
            told = abort_in(secure)
            reason = next((each for each in reasons if each in told), None)
            assert reason is not None, told
            assert receiver.grown() < MEMORY
        status, said = receiver.ended()
    assert status == 5 and reason in said
    assert not out.exists()


@pytest.mark.faults
def test_who_does_not_hang_up_after_that_is_not_waited_for(world: World, tmp_path: Path) -> None:
    with receiving(world, tmp_path / "out") as receiver, talking(world.mallory, receiver.port) as secure:
        assert answered(secure, NEW).kind is Greets.WELCOME
        secure.sendall(header(99, 0))
        sent = time.monotonic()
        assert receiver.ended()[0] == 5
        assert time.monotonic() - sent < FAREWELL + SPARE


def abort_in(secure: ssl.SSLSocket) -> str:
    """Why the receiver gives up."""
    reader = FrameReader(greeted=True)
    while said := secure.recv(1 << 16):
        for frame in fed(reader, said):
            if isinstance(frame, Frame) and frame.kind is Kind.ABORT:
                return bytes(frame.payload).decode()
    raise AssertionError("it hung up and did not say why")


# --- at a session of another's


def test_who_begins_another_in_its_midst_is_refused_and_disturbs_nobody(world: World, tmp_path: Path) -> None:
    """With a frame right behind the greeting that is too long, in which nothing looks any more."""
    with transfer(world, tmp_path / "out") as receiver, talking(world.mallory, receiver.port) as secure:
        answer = answered(secure, NEW + header(Kind.DATA, 0xFFFFFFFF))
        assert (answer.kind, answer.text) == (Greets.REFUSED, "another session is being received here")
        assert rest(secure) == b""


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n" * 20, PARTY.ask(1, NOTHING, known=True)])
def test_who_speaks_no_session_disturbs_nobody(world: World, tmp_path: Path, words: bytes) -> None:
    with transfer(world, tmp_path / "out") as receiver, talking(world.mallory, receiver.port) as secure:
        secure.sendall(words)
        rest(secure)


@contextmanager
def friendly(world: World, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Party]:
    """A session of the friend's, of which everything is known, in the midst of its stream; then its good end."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.friend.base))
    trust = by_pins("127.0.0.1", server=False)

    def dial() -> Transport:
        return greet(connect(port), trust, "127.0.0.1", Patience())

    with dialled(dial, Role.SENDS, "here", Timing()) as session, Outlet(session) as sink:
        session.meet()
        sink.write(DATA[:MIB])
        yield session.wire.party
        sink.write(DATA[MIB : 2 * MIB])
        sink.commit()


Replay = Callable[[Party], bytes]

REPLAYS: dict[str, Replay] = {
    "its beginning": lambda party: party.ask(1, NOTHING, known=False),
    "its beginning, another number": lambda party: party.ask(77, NOTHING, known=False),
    "a resumption": lambda party: party.ask(77, NOTHING, known=True),
}
"""What another peer may say that has the session's id and token."""


@pytest.mark.parametrize("name", REPLAYS)
def test_a_session_is_no_other_peers(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with receiving(world, tmp_path / "out") as receiver:
        with (
            friendly(world, receiver.port, monkeypatch) as party,
            talking(world.mallory, receiver.port) as secure,
        ):
            answer = answered(secure, REPLAYS[name](party) + data(0, b"mallory"))
            assert (answer.kind, answer.text) == (Greets.REFUSED, "this session belongs to another peer")
            assert rest(secure) == b""
        status, said = receiver.ended()
    assert status == 0 and "turned away mallory: this session belongs to another peer" in said
    assert (tmp_path / "out").read_bytes() == DATA[: 2 * MIB]


# --- places


def test_one_peer_does_not_take_anothers_places(world: World, tmp_path: Path) -> None:
    """As many as may be there without a word are, and stay: who is waited for comes in all the same."""
    with receiving(world, tmp_path / "out") as receiver, ExitStack() as silent:
        them = [silent.enter_context(talking(world.mallory, receiver.port)) for _ in range(MAX_LINKS + 1)]
        assert rest(them[-1]) == b""
        with sending(world, receiver.port) as sender:
            finish(sender, DATA[:MIB])
        status, said = receiver.ended()
    assert status == 0 and "mallory: too many of its links have sent no greeting" in said
    assert (tmp_path / "out").read_bytes() == DATA[:MIB]


@pytest.mark.faults
def test_who_is_silent_is_sent_away_in_time(world: World, tmp_path: Path) -> None:
    with transfer(world, tmp_path / "out") as receiver, talking(world.mallory, receiver.port) as secure:
        came = time.monotonic()
        assert rest(secure) == b""
        assert GREETING_TIME - SPARE < time.monotonic() - came < GREETING_TIME + SPARE
