"""The session's machine, without a socket: what was sent is what arrives, whatever becomes of the links."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.session.protocol.admission import Doorkeeper, Late, Party, Secrets, refuse
from statepipe.session.protocol.channels import (
    INCOMING,
    MAX_PIECES,
    MIN_WINDOW,
    OUTGOING,
    ChannelVerdict,
    Receiving,
    Sending,
)
from statepipe.session.protocol.frames import (
    GREETING_SIZE,
    LENGTHS,
    MAX_DATA,
    MAX_LINKS,
    Frame,
    FrameReader,
    Greeting,
    Greets,
    Kind,
    Role,
    Violation,
    decode_greeting,
    printable,
    text_frame,
)
from statepipe.session.protocol.states import STATES, Change, Misuse, State, Turn
from statepipe.session.protocol.wire import Wire
from statepipe.stage import Buffer
from tests.wires import fed, receive

SECRETS = Secrets(b"s" * 16, b"t" * 32)
GOOD = ChannelVerdict()


def flat(buffers: list[Buffer]) -> bytes:
    return b"".join(buffers)


class Pair:
    """A sender that dials and a receiver that accepts, with bytes under way between them on each link."""

    def __init__(self, window: int = MIN_WINDOW, channels: int = 1) -> None:
        self.sender = Wire(Party(SECRETS, Role.SENDS, window), 0)
        self.receiver = Wire(Party(SECRETS, Role.RECEIVES, window), channels)
        self.door = Doorkeeper(SECRETS, "peer")
        self.numbers = itertools.count(1)
        self.under_way: dict[tuple[int, Wire], deque[bytes]] = {}
        self.events: list[tuple[Wire, Change]] = []

    def dial(self) -> int:
        number = next(self.numbers)
        asked = decode_greeting(self.sender.dial(number))
        self.door.admit(asked, "peer")
        answer = self.receiver.accept(asked)
        self.under_way[number, self.sender] = deque([answer])  # towards the sender
        self.under_way[number, self.receiver] = deque()
        return number

    def other(self, side: Wire) -> Wire:
        return self.receiver if side is self.sender else self.sender

    def carry(self, number: int, limit: int = MAX_DATA) -> bool:
        """Take what both sides have for a link, hand over all that is under way; whether anything moved."""
        moved = False
        for side in (self.sender, self.receiver):
            data = flat(side.to_send(number, limit))
            if data:
                self.under_way[number, self.other(side)].append(data)
            moved |= bool(data)
        for side in (self.sender, self.receiver):
            moved |= self.deliver(number, side)
        return moved

    def deliver(self, number: int, side: Wire, count: int | None = None) -> bool:
        """Hand a side the first `count` bytes under way to it (all of them if None)."""
        data = b"".join(self.under_way[number, side])
        now, later = (data, b"") if count is None else (data[:count], data[count:])
        self.under_way[number, side] = deque([later] if later else [])
        if now:
            self.events += [(side, event.change) for event in receive(side, number, now)]
        return bool(now)

    def cut(self, number: int) -> None:
        for side in (self.sender, self.receiver):
            side.lost(number)
            self.under_way.pop((number, side), None)

    def links(self) -> list[int]:
        return list(self.sender.links)

    def settle(self) -> None:
        """Carry until nothing moves."""
        while sum(self.carry(number) for number in self.links()):
            continue


def consume(pair: Pair, into: bytearray, number: int = 0) -> None:
    channel = pair.receiver.read(number)
    while (data := pair.receiver.take(channel)) is not None:
        channel.absorb(data)
        into += data


def finish(pair: Pair, got: bytearray) -> None:
    """From the end of the writing to the close, over a link that holds."""
    pair.sender.end(pair.sender.outgoing[0])
    channel = pair.receiver.read(0)
    for _ in range(100):
        if not pair.links():
            pair.dial()
        pair.settle()
        consume(pair, got)
        if channel.is_whole:
            break
    channel.prove()
    pair.receiver.judge(channel, GOOD)
    pair.settle()
    pair.sender.close()
    pair.settle()
    pair.receiver.close()
    pair.settle()


# --- whatever becomes of the links


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 3000)),
    st.tuples(st.just("carry"), st.integers(0, 3)),
    st.tuples(st.just("portion"), st.integers(0, 4000)),
    st.tuples(st.just("consume"), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 3)),
    st.tuples(st.just("half cut"), st.integers(0, 3)),
    st.tuples(st.just("dial"), st.just(0)),
    st.tuples(st.just("tick"), st.just(0)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=80))
def test_what_arrives_is_what_was_sent_whatever_becomes_of_the_links(steps: list[tuple[str, int]]) -> None:
    pair = Pair()
    pair.dial()
    channel = pair.sender.open(0)
    sent, got = bytearray(), bytearray()
    fill = itertools.count()
    for what, value in steps:
        step(pair, channel, what, value, sent, got, fill)
        assert pair.receiver.read(0).held <= pair.receiver.party.window
        assert channel.written - channel.acked <= channel.window
    finish(pair, got)
    assert got == sent
    assert channel.verdict == GOOD
    assert pair.sender.state is pair.receiver.state is State.OVER


def step(
    pair: Pair, channel: object, what: str, value: int, sent: bytearray, got: bytearray, fill: itertools.count[int]
) -> None:
    links = pair.links()
    number = links[value % len(links)] if links else 0
    outgoing = pair.sender.outgoing[0]
    if what == "write" and outgoing.has_room(value):
        data = bytes([next(fill) % 251]) * value
        sent += data
        outgoing.absorb(data)
        outgoing.write(data)
    elif what == "carry" and links:
        pair.carry(number, limit=2000)
    elif what == "portion" and links:
        side = pair.receiver if value % 2 else pair.sender
        pair.under_way[number, pair.other(side)].append(flat(side.to_send(number, 1)))
        pair.deliver(number, pair.other(side), value)
    elif what == "consume":
        consume(pair, got)
    elif what == "cut" and links:
        pair.cut(number)
    elif what == "half cut" and links:  # one side hears of it later
        pair.receiver.lost(number)
        pair.under_way[number, pair.receiver].clear()
        pair.cut(number)
    elif what == "dial" and len(links) < 4:
        pair.dial()
    elif what == "tick":
        for side in (pair.sender, pair.receiver):
            assert side.tick(10**9) == []


@given(st.integers(0, 6000))
@settings(max_examples=60, deadline=None)
def test_a_link_cut_at_any_byte_costs_no_byte(place: int) -> None:
    pair = Pair()
    number = pair.dial()
    pair.carry(number)
    channel = pair.sender.open(0)
    sent = bytes(range(250)) * 20
    for start in range(0, len(sent), 700):
        channel.absorb(sent[start : start + 700])
        channel.write(sent[start : start + 700])
    pair.under_way[number, pair.receiver].append(flat(pair.sender.to_send(number)))
    pair.deliver(number, pair.receiver, place)
    pair.cut(number)
    got = bytearray()
    finish(pair, got)
    assert got == sent
    assert channel.resent <= channel.window


def test_what_has_arrived_is_not_sent_again() -> None:
    pair = Pair()
    number = pair.dial()
    channel = pair.sender.open(0)
    channel.write(b"x" * 5000)
    pair.settle()
    pair.cut(number)
    pair.dial()
    pair.settle()
    assert channel.resent == 0 and pair.receiver.read(0).repeated == 0


def test_a_dead_link_s_pieces_go_over_the_others() -> None:
    pair = Pair()
    first, second = pair.dial(), pair.dial()
    pair.settle()
    channel = pair.sender.open(0)
    for _ in range(10):
        channel.write(b"x" * 1000)
    pair.sender.to_send(first, 5000)  # lost on the way
    pair.carry(second)
    assert pair.receiver.read(0).arrived == 0 and pair.receiver.read(0).held > 0
    pair.cut(first)
    pair.settle()
    assert pair.receiver.read(0).arrived == 10_000


def test_the_verdict_is_said_again_until_it_was_heard() -> None:
    pair = Pair()
    number = pair.dial()
    channel = pair.sender.open(0)
    pair.sender.end(channel)
    pair.settle()
    pair.receiver.judge(pair.receiver.read(0), GOOD)
    pair.receiver.to_send(number)  # lost on the way
    pair.cut(number)
    pair.dial()
    pair.settle()
    assert channel.verdict == GOOD


def test_a_consumer_may_fail_before_the_end() -> None:
    pair = Pair()
    pair.dial()
    channel = pair.sender.open(0)
    channel.write(b"x")
    pair.settle()
    pair.receiver.judge(pair.receiver.read(0), ChannelVerdict(1, "disk full"))
    pair.settle()
    assert channel.verdict == ChannelVerdict(1, "disk full")
    assert channel.state is Sending.JUDGED


def test_channels_take_turns() -> None:
    pair = Pair(channels=2)
    number = pair.dial()
    pair.settle()
    for each in (pair.sender.open(0), pair.sender.open(1)):
        for _ in range(4):
            each.write(b"x" * 100)
    frames = list(fed(reader(), flat(pair.sender.to_send(number))))
    assert [frame.channel for frame in frames if isinstance(frame, Frame) and frame.kind is Kind.DATA] == [0, 1] * 4


def test_both_sides_may_write() -> None:
    one, two = Wire(Party(SECRETS, Role.BOTH), 1), Wire(Party(SECRETS, Role.BOTH), 1)
    greeting = two.accept(decode_greeting(one.dial(1)))
    receive(one, 1, greeting)
    for side, data in ((one, b"there"), (two, b"back")):
        side.open(0).write(data)
    receive(two, 1, flat(one.to_send(1)))
    receive(one, 1, flat(two.to_send(1)))
    assert (two.take(two.read(0)), one.take(one.read(0))) == (b"there", b"back")


# --- back-pressure and memory


def test_a_full_window_stops_the_writer_until_the_consumer_takes() -> None:
    pair = Pair()
    pair.dial()
    channel = pair.sender.open(0)
    piece = bytes(MIN_WINDOW // 16)
    while channel.has_room(len(piece)):
        channel.write(piece)
    pair.settle()
    assert channel.written == MIN_WINDOW == pair.receiver.read(0).held
    consume(pair, bytearray())
    pair.settle()
    assert channel.has_room(len(piece)) and (pair.sender, Change.WRITABLE) in pair.events


def test_many_small_pieces_are_bounded_too() -> None:
    pair = Pair()
    pair.dial()
    channel = pair.sender.open(0)
    for _ in range(MAX_PIECES):
        channel.write(b"x")
    assert not channel.has_room(1)
    pair.settle()
    consume(pair, bytearray())
    pair.settle()
    assert channel.has_room(1)


def test_the_smaller_window_holds() -> None:
    big, small = Wire(Party(SECRETS, Role.SENDS, 4 * MIN_WINDOW), 0), Wire(Party(SECRETS, Role.RECEIVES, MIN_WINDOW), 1)
    channel = big.open(0)
    receive(big, 1, small.accept(decode_greeting(big.dial(1))))
    for _ in range(3):
        channel.write(bytes(MIN_WINDOW // 2 + 1))
    receive(small, 1, flat(big.to_send(1, 10 * MIN_WINDOW)))
    assert small.read(0).held == MIN_WINDOW // 2 + 1


# --- a hostile peer


def reader() -> FrameReader:
    return FrameReader(greeted=True)


def receiver() -> Wire:
    """One that has a link, number 1, on which anything may come."""
    wire = Wire(Party(SECRETS, Role.RECEIVES, MIN_WINDOW), 1)
    wire.accept(decode_greeting(Party(SECRETS, Role.SENDS).ask(1, (0,) * 16, known=False)))
    return wire


def data(offset: int, payload: bytes) -> bytes:
    return flat(Frame(Kind.DATA, 0, offset, payload).encode())


END = flat(Frame(Kind.END, 0, 4, bytes(32)).encode())

HOSTILE = {
    "unknown kind": (b"\x63" + bytes(15), "unknown kind 99"),
    "bits that are none": (b"\1\0\0\1" + bytes(12), "unknown kind"),
    "oversize": (b"\1\0\0\0\xff\xff\xff\xff" + bytes(8), "DATA frame of 4294967295 bytes"),
    "empty data": (b"\1" + bytes(15), "DATA frame of 0 bytes"),
    "an ACK with payload": (b"\2\0\0\0\0\0\0\1" + bytes(8), "ACK frame of 1 bytes"),
    "a digest too short": (b"\3\0\0\0\0\0\0\1" + bytes(8), "END frame of 1 bytes"),
    "beyond the channels": (flat(Frame(Kind.DATA, 16, 0, b"x").encode()), "channel 16"),
    "an ABORT of a channel": (flat(Frame(Kind.ABORT, 1, 5, b"x").encode()), "ABORT frame for channel 1"),
    "a CLOSE of a channel": (flat(Frame(Kind.CLOSE, 1).encode()), "CLOSE frame for channel 1"),
    "a CLOSE that counts": (flat(Frame(Kind.CLOSE, 0, 1).encode()), "CLOSE frame with offset 1"),
    "a PING of a channel": (flat(Frame(Kind.PING, 2).encode()), "PING frame for channel 2"),
    "a channel nobody reads": (flat(Frame(Kind.DATA, 1, 0, b"x").encode()), "is not expected"),
    "beyond the window": (data(MIN_WINDOW, b"x"), "beyond the window"),
    "the end of numbers": (data(2**64 - 1, b"x"), "beyond the window"),
    "overlap from before": (data(0, b"abcd") + data(2, b"cdef"), "overlap"),
    "overlap beyond a gap": (data(10, b"abcd") + data(12, b"cdef"), "overlap"),
    "overlap with what follows": (data(10, b"abcd") + data(8, b"abcd"), "overlap"),
    "over a gap into what follows": (data(10, b"abcd") + data(0, b"x" * 11), "overlap"),
    "other bytes at the same place": (data(10, b"abcd") + data(10, b"abcx"), "overlap"),
    "beyond its end": (END + data(4, b"x"), "beyond its end"),
    "an end too early": (data(0, b"abcde") + END, "contradicts"),
    "an end before a piece beyond a gap": (data(9, b"abcde") + END, "contradicts"),
    "two ends": (END + flat(Frame(Kind.END, 0, 4, b"d" * 32).encode()), "contradicts"),
    "an ACK for no channel": (flat(Frame(Kind.ACK, 0, 0).encode()), "ACK for channel 0"),
    "a verdict for no channel": (flat(Frame(Kind.DONE, 0, 0).encode()), "DONE for channel 0"),
    "an ABORT with no exit code": (flat(Frame(Kind.ABORT, 0, 256).encode()), "verdict of 256"),
}


@pytest.mark.parametrize("portion", [None, 1])
@pytest.mark.parametrize("trailing", [b"", b"\7" + bytes(15)])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_ends_the_session_with_a_reason(name: str, trailing: bytes, portion: int | None) -> None:
    wire = receiver()
    sent, reason = HOSTILE[name]
    sent += trailing
    with pytest.raises(Violation, match=reason):
        for place in range(0, len(sent), portion or len(sent)):
            receive(wire, 1, sent[place : place + (portion or len(sent))])
    assert wire.state is State.ABORTED
    [abort] = fed(reader(), flat(wire.to_send(1)))
    assert isinstance(abort, Frame) and abort.kind is Kind.ABORT and reason in printable(abort.payload)  # type: ignore[arg-type]


def test_too_many_small_pieces_are_refused() -> None:
    wire = receiver()
    with pytest.raises(Violation, match="4096 pieces"):
        receive(wire, 1, b"".join(data(2 * each, b"x") for each in range(MAX_PIECES + 1)))


@given(st.binary(max_size=200), st.integers(1, 40))
def test_any_bytes_are_refused_or_harmless(garbage: bytes, portion: int) -> None:
    wire = receiver()
    try:
        for place in range(0, len(garbage), portion):
            receive(wire, 1, garbage[place : place + portion])
    except Violation:
        assert wire.state is State.ABORTED
    assert wire.read(0).held <= len(garbage)


@given(st.integers(0, 2**16 - 1))
@settings(max_examples=200)
def test_a_flipped_bit_is_never_taken_for_the_stream(place: int) -> None:
    wire = receiver()
    sent = data(0, b"state") + data(5, b"pipe") + flat(Frame(Kind.END, 0, 9, blake3(b"statepipe").digest()).encode())
    flipped = bytearray(sent)
    flipped[place // 8 % len(sent)] ^= 1 << place % 8
    channel = wire.read(0)
    got = bytearray()
    try:
        receive(wire, 1, bytes(flipped))
        while (buffer := wire.take(channel)) is not None:
            channel.absorb(buffer)
            got += buffer
        if channel.is_whole:
            channel.prove()
    except StatepipeError:
        return
    assert not channel.is_whole or got == b"statepipe"


def test_a_wrong_digest_is_an_integrity_error() -> None:
    wire = receiver()
    receive(wire, 1, data(0, b"abcd") + END)
    channel = wire.read(0)
    channel.absorb(wire.take(channel) or b"")
    with pytest.raises(IntegrityError, match="not those that were sent"):
        channel.prove()


def sender() -> Wire:
    wire = Wire(Party(SECRETS, Role.SENDS, MIN_WINDOW), 0)
    wire.dial(1)
    receive(wire, 1, Party(SECRETS, Role.RECEIVES).answer(1, (0,) * 16))
    wire.open(0).write(b"abcd")
    return wire


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Frame(Kind.ACK, 0, 5), "acknowledges byte 5"),
        (Frame(Kind.DONE, 0, 0), "before its end"),
        (Frame(Kind.DONE, 0, 256), "verdict of 256"),
        (Frame(Kind.DATA, 0, 0, b"x"), "is not expected"),
    ],
)
def test_a_hostile_receiver_is_refused(frame: Frame, reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        receive(sender(), 1, flat(frame.encode()))


def test_a_greeting_that_has_more_than_was_written_is_refused() -> None:
    wire = sender()
    wire.lost(1)
    wire.dial(2)
    with pytest.raises(Violation, match="acknowledges byte 9"):
        receive(wire, 2, Party(SECRETS, Role.RECEIVES).answer(2, (9,) + (0,) * 15))


def test_a_greeting_with_bytes_of_no_channel_is_refused() -> None:
    wire = Wire(Party(SECRETS, Role.SENDS), 0)
    wire.dial(1)
    with pytest.raises(Violation, match="of channel 3"):
        receive(wire, 1, Party(SECRETS, Role.RECEIVES).answer(1, (0, 0, 0, 9) + (0,) * 12))


# --- the opening


ASKED = decode_greeting(Party(SECRETS, Role.SENDS).ask(5, (0,) * 16, known=True))
FRESH = decode_greeting(Party(SECRETS, Role.SENDS).ask(5, (0,) * 16, known=False))


def test_a_session_is_for_who_began_it() -> None:
    with pytest.raises(Violation, match="belongs to another peer"):
        Doorkeeper(SECRETS, "alice").admit(ASKED, "mallory")


@pytest.mark.parametrize("greeting", [ASKED, FRESH])
def test_a_link_of_the_session_is_admitted_once(greeting: Greeting) -> None:
    door = Doorkeeper(SECRETS, "alice")
    door.admit(greeting, "alice")
    with pytest.raises(Violation, match="link 5 was used before"):
        door.admit(greeting, "alice")


def test_a_number_long_past_is_refused() -> None:
    door = Doorkeeper(SECRETS, "alice")
    for link in range(1000, 3000):
        door.admit(decode_greeting(Party(SECRETS, Role.SENDS).ask(link, (0,) * 16, known=True)), "alice")
    with pytest.raises(Violation, match="was used before"):
        door.admit(ASKED, "alice")
    assert len(door._seen) <= 64 * MAX_LINKS + 2


def test_the_token_is_needed_to_go_on() -> None:
    stranger = Party(Secrets(SECRETS.session, b"?" * 32), Role.SENDS)
    for known in (True, False):
        with pytest.raises(Violation, match="no proof"):
            Doorkeeper(SECRETS, "alice").admit(decode_greeting(stranger.ask(5, (0,) * 16, known=known)), "alice")


def test_a_proof_is_good_for_its_link_alone() -> None:
    moved = Greeting(Greets.RESUME, Role.SENDS, 6, MIN_WINDOW, SECRETS.session, ASKED.proof)
    with pytest.raises(Violation, match="no proof"):
        Doorkeeper(SECRETS, "alice").admit(moved, "alice")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuse(FRESH, "go away"), "refused the link: go away"),
        (Party(SECRETS, Role.RECEIVES).answer(6, (0,) * 16), "a different greeting"),
        (Party(Secrets(b"z" * 16, b"t" * 32), Role.RECEIVES).answer(5, (0,) * 16), "a different greeting"),
        (Party(Secrets(b"s" * 16, b"?" * 32), Role.RECEIVES).answer(5, (0,) * 16), "does not know"),
        (Party(SECRETS, Role.SENDS).answer(5, (0,) * 16), "a send connected to a send: a send needs"),
        (Party(SECRETS, Role.RECEIVES, 1).answer(5, (0,) * 16), "a window of 1 bytes"),
        (b"HTTP/1.1 400 Bad" + bytes(GREETING_SIZE - 16), "not a statepipe session"),
        (Party(SECRETS, Role.RECEIVES).answer(5, (0,) * 16).replace(b"\r\n\x1a\n\0\1", b"\r\n\x1a\n\0\2"), "version 2"),
        (Party(SECRETS, Role.RECEIVES).answer(5, (0,) * 16).replace(b"\0\1\3", b"\0\1\7"), "a greeting of kind 7"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(answer: bytes, reason: str) -> None:
    wire = Wire(Party(SECRETS, Role.SENDS), 0)
    wire.dial(5)
    with pytest.raises(Violation, match=reason):
        receive(wire, 5, answer)


def test_a_link_takes_the_place_of_the_one_before_it() -> None:
    """Whose death only the dialler has noticed. So there are never more than MAX_LINKS."""
    wire = Wire(Party(SECRETS, Role.RECEIVES), 1)
    ask = Party(SECRETS, Role.SENDS).ask
    for number in range(3 * MAX_LINKS):
        wire.accept(decode_greeting(ask(number, (0,) * 16, known=True)))
    assert list(wire.links) == list(range(2 * MAX_LINKS, 3 * MAX_LINKS))


def test_one_that_comes_late_takes_nobody_s_place() -> None:
    door, ask = Doorkeeper(SECRETS, "alice"), Party(SECRETS, Role.SENDS).ask
    door.admit(decode_greeting(ask(2 * MAX_LINKS + 3, (0,) * 16, known=True)), "alice")
    door.admit(decode_greeting(ask(MAX_LINKS + 4, (0,) * 16, known=True)), "alice")
    with pytest.raises(Late, match="a later link has replaced link 19"):
        door.admit(decode_greeting(ask(MAX_LINKS + 3, (0,) * 16, known=True)), "alice")


def test_what_went_over_the_one_before_goes_again() -> None:
    pair = Pair()
    first = pair.dial()
    pair.carry(first)
    channel = pair.sender.open(0)
    channel.write(b"x" * 5000)
    assert pair.sender.to_send(first)  # and never comes
    pair.numbers = itertools.count(first + MAX_LINKS)
    pair.dial()
    pair.settle()
    assert channel.resent == 5000 and pair.receiver.read(0).arrived == 5000


def test_the_token_crosses_once_and_is_never_shown() -> None:
    assert SECRETS.token in Party(SECRETS, Role.SENDS).ask(1, (0,) * 16, known=False)
    assert SECRETS.token not in Party(SECRETS, Role.SENDS).ask(2, (0,) * 16, known=True)
    assert "tttt" not in repr(Party(SECRETS, Role.SENDS))


# --- signs of life


def test_a_silent_link_is_named_and_one_with_signs_of_life_is_not() -> None:
    pair = Pair()
    pair.dial()
    pair.settle()
    for _ in range(10):
        assert pair.sender.tick(3) == pair.receiver.tick(3) == []
        pair.settle()
    named = [pair.sender.tick(3) for _ in range(4)]
    assert named == [[], [], [], [1]]


def test_an_unanswered_greeting_is_silence_too() -> None:
    wire = Wire(Party(SECRETS, Role.SENDS), 0)
    wire.dial(1)
    assert [wire.tick(2) for _ in range(3)] == [[], [], [1]]


# --- tables, limits, misuse


def test_the_tables_have_every_case() -> None:
    assert set(STATES) == {(state, turn) for state in State for turn in Turn}
    assert set(OUTGOING) == {(state, kind) for state in Sending for kind in (Kind.ACK, Kind.DONE)}
    assert set(INCOMING) == {(state, kind) for state in Receiving for kind in (Kind.DATA, Kind.END)}
    assert set(LENGTHS) == set(Kind)


def test_an_abort_reaches_the_peer_over_the_next_link_too() -> None:
    pair = Pair()
    pair.cut(pair.dial())
    pair.receiver.abort(ChannelVerdict(130, "stopped by SIGINT"))
    number = pair.dial()
    pair.settle()
    assert pair.sender.state is State.ABORTED and number in pair.links()


@pytest.mark.parametrize("act", ["open twice", "open far", "read far", "praise", "dial twice"])
def test_what_we_do_wrong_ourselves_is_our_fault(act: str) -> None:
    pair = Pair()
    pair.dial()
    pair.sender.open(0)
    with pytest.raises(Misuse):
        {
            "open twice": lambda: pair.sender.open(0),
            "open far": lambda: pair.sender.open(16),
            "read far": lambda: pair.receiver.read(1),
            "praise": lambda: pair.receiver.judge(pair.receiver.read(0), GOOD),
            "dial twice": lambda: pair.sender.dial(1),
        }[act]()


def test_a_peer_s_text_is_harmless_and_short() -> None:
    frame = text_frame(Kind.ABORT, 0, 1, "\x1b[2J€" * 1000)
    assert len(frame.payload) <= 1024
    assert (
        printable(frame.payload).startswith("\N{REPLACEMENT CHARACTER}[2J€") and printable(frame.payload).isprintable()
    )


@given(st.binary(min_size=1, max_size=500), st.integers(1, 600), st.binary(max_size=15))
def test_frames_are_read_in_any_portions(payload: bytes, portion: int, trailing: bytes) -> None:
    frames = [Frame(Kind.DATA, 3, 7, payload), Frame(Kind.PING), text_frame(Kind.DONE, 1, 3, "no")]
    sent = b"".join(flat(frame.encode()) for frame in frames) + trailing
    read = reader()
    parts = [sent[place : place + portion] for place in range(0, len(sent), portion)]
    got = [item for part in parts for item in fed(read, part)]
    assert [(f.kind, f.channel, f.offset, bytes(f.payload)) for f in got if isinstance(f, Frame)] == [
        (f.kind, f.channel, f.offset, bytes(f.payload)) for f in frames
    ]
    assert read.offset == GREETING_SIZE + len(sent)
