"""What counts as alive is that a session goes on: what each side says is heard. Links alone are not it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from statepipe.session.protocol.admission import Party
from statepipe.session.protocol.channels import MAX_WINDOW, ChannelVerdict, Outgoing
from statepipe.session.protocol.frames import FRAME_SIZE, MAX_LINKS, Frame, Kind, Role, Violation, decode_greeting
from statepipe.session.protocol.states import Event, LinkState
from statepipe.session.protocol.wire import BATCH, Wire
from tests.unit.session.test_wire import GOOD, SECRETS, flat
from tests.wires import receive

SILENCE = 8
"""Ticks after which a link is dead."""

AT_ONCE = 3
"""Ticks within which a session that goes on shows it."""

LONG = 300

EVERYTHING = 1 << 60

Passes = Callable[[int], tuple[int, int]]
"""How many bytes of a link a way lets through, there and back, beyond the greetings; told how many were before it."""


class Older(Wire):
    """One that says nothing of what it has heard, and does not listen to that."""

    def _frames(self, link: LinkState, limit: int) -> Iterator[Frame]:
        for frame in super()._frames(link, limit):
            yield Frame(Kind.PING) if frame.kind is Kind.PING else frame

    def _on_ping(self, link: LinkState, frame: Frame) -> list[Event]:
        return []


class Way:
    """A sender, a receiver, and what their links pass through.

    `quiet` counts the ticks without a sign of life, for each; `longest` is the most of them. `bandwidth` are bytes a
    tick, each way; `buffers` those that are taken beyond them.
    """

    def __init__(
        self,
        passes: Passes = lambda before: (EVERYTHING, EVERYTHING),
        *,
        bandwidth: int = EVERYTHING,
        buffers: int = 4 * BATCH,
        receiver: type[Wire] = Wire,
        window: int = MAX_WINDOW,
    ) -> None:
        self.sender = Wire(Party(SECRETS, Role.SENDS, window), 1)
        self.receiver = receiver(Party(SECRETS, Role.RECEIVES, window), 1)
        self.sides = (self.sender, self.receiver)
        self.quiet, self.longest = [0, 0], [0, 0]
        self.dials = 0
        self._life = [0, 0]
        self._passes, self._bandwidth, self._buffers = passes, bandwidth, buffers
        self._queues, self._left = [bytearray(), bytearray()], [0, 0]
        self._number = 0

    def write(self, size: int, channel: Outgoing | None = None) -> Outgoing:
        """So many bytes of the sender's, in frames."""
        channel = channel or self.sender.outgoing.get(0) or self.sender.open(0)
        for place in range(0, size, FRAME_SIZE):
            piece = bytes(min(FRAME_SIZE, size - place))
            channel.absorb(piece)
            channel.write(piece)
        return channel

    def take(self) -> int:
        """All that has come, as a consumer does."""
        channel, count = self.receiver.read(0), 0
        while (data := self.receiver.take(channel)) is not None:
            channel.absorb(data)
            count += len(data)
        return count

    def cut(self) -> None:
        for side in self.sides:
            side.lost(self._number)

    def run(self, ticks: int, each: Callable[[], object] = lambda: None) -> None:
        for _ in range(ticks):
            if not self.sender.links:
                self._dial()
            for _ in range(4):
                self._carry(0)
                self._carry(1)
            each()
            self._tick()

    def _dial(self) -> None:
        self._number += MAX_LINKS
        answer = self.receiver.accept(decode_greeting(self.sender.dial(self._number)))
        receive(self.sender, self._number, answer)
        self._queues = [bytearray(), bytearray()]
        there, back = self._passes(self.dials)
        self._left = [back, there]
        self.dials += 1

    def _carry(self, index: int) -> None:
        """What goes to a side."""
        hears, queue = self.sides[index], self._queues[index]
        if len(queue) < self._buffers:
            data = flat(self.sides[1 - index].to_send(self._number))
            queue += data[: self._left[index]]
            self._left[index] = max(self._left[index] - len(data), 0)
        now = bytes(queue[: self._bandwidth // 4])
        del queue[: len(now)]
        if self._number in hears.links and now:
            receive(hears, self._number, now)
            hears.links[self._number].heard = True

    def _tick(self) -> None:
        for index, side in enumerate(self.sides):
            for number in side.tick(SILENCE):
                side.lost(number)
            self.quiet[index] = self.quiet[index] + 1 if side.life == self._life[index] else 0
            self._life[index] = side.life
            self.longest[index] = max(self.longest[index], self.quiet[index])


# --- what is none


BOTH_WAYS = [(count, count) for count in (0, 15, 16, 100, 1000, FRAME_SIZE)]
THERE = [(count, EVERYTHING) for count in (0, 15, 16, 100, 1000, FRAME_SIZE)]
BACK = [(EVERYTHING, count) for count in (0, 15)]  # more is an acknowledgement: then it does go on


@pytest.mark.parametrize("passes", BOTH_WAYS + THERE + BACK)
def test_a_way_that_swallows_what_comes_after_the_greetings_lets_no_session_live(passes: tuple[int, int]) -> None:
    """New links come all the time. The sender sees no sign of life, nor does the receiver where nothing reaches it."""
    way = Way(lambda before: passes if before else (18_000_000, 18_000_000))
    way.write(200 * FRAME_SIZE)
    way.run(LONG, way.take)
    assert way.dials > LONG / 20
    assert way.quiet[0] > LONG / 2
    assert way.quiet[1] > LONG / 2 or passes[0] == EVERYTHING


def test_the_same_few_bytes_of_each_link_count_once() -> None:
    way = Way(lambda before: (1000, 1000))
    way.write(FRAME_SIZE)
    way.run(LONG)
    assert min(way.quiet) > LONG - 10 * SILENCE


def test_a_verdict_that_is_never_heard_is_no_life_of_the_one_who_gives_it() -> None:
    swallows = [False]
    way = Way(lambda before: (EVERYTHING, 0) if swallows[0] else (EVERYTHING, EVERYTHING))
    way.sender.end(way.write(FRAME_SIZE))
    way.run(5, way.take)
    swallows[0] = True
    way.cut()
    channel = way.receiver.read(0)
    channel.prove()
    way.receiver.judge(channel, GOOD)
    way.run(LONG)
    assert way.quiet[1] > LONG / 2 and way.sender.outgoing[0].verdict is None


# --- what is


def test_who_is_idle_lives() -> None:
    """Before the first byte, in the midst, and after the last."""
    way = Way()
    way.run(LONG)
    channel = way.write(3 * FRAME_SIZE)
    way.run(LONG, way.take)
    way.sender.end(channel)
    way.run(LONG)
    assert max(way.longest) <= AT_ONCE


def test_who_is_idle_lives_on_over_links_that_break() -> None:
    way = Way(lambda before: (400, 400))  # a minute or less
    way.run(3 * LONG)
    assert way.dials > 10 and max(way.longest) <= SILENCE + 2 * AT_ONCE


@pytest.mark.parametrize("receiver", [Wire, Older])
def test_a_slow_consumer_is_waited_for(receiver: type[Wire]) -> None:
    """Its window is full, and all of it has arrived."""
    way = Way(receiver=receiver, window=8 * FRAME_SIZE)
    way.write(8 * FRAME_SIZE)
    way.run(LONG)
    assert max(way.longest) <= AT_ONCE
    assert way.take() == 8 * FRAME_SIZE
    way.run(LONG)
    assert max(way.longest) <= AT_ONCE and way.sender.outgoing[0].acked == 8 * FRAME_SIZE


def test_a_byte_now_and_then_is_enough() -> None:
    way = Way()
    way.run(LONG, lambda: (way.write(1), way.take()))
    assert max(way.longest) <= AT_ONCE


@pytest.mark.parametrize("bandwidth", [100, 4000, 100_000])
@pytest.mark.parametrize("receiver", [Wire, Older])
def test_a_slow_link_lives_however_long_a_frame_takes(bandwidth: int, receiver: type[Wire]) -> None:
    """With megabytes in its buffers, behind which every sign of life has to wait."""
    way = Way(bandwidth=bandwidth, receiver=receiver)
    way.write(64 * FRAME_SIZE)
    way.run(2 * LONG, way.take)
    assert max(way.longest) <= AT_ONCE and way.dials == 1


def test_a_way_that_cuts_lives_as_long_as_frames_get_through() -> None:
    way = Way(lambda before: (2 * FRAME_SIZE, 2 * FRAME_SIZE))
    way.write(10 * FRAME_SIZE)
    way.run(LONG, way.take)
    assert max(way.longest) <= 2 * SILENCE + AT_ONCE  # one side hears of a link's end after the other
    assert way.receiver.incoming[0].taken == 10 * FRAME_SIZE


# --- what is said of it


def test_who_has_heard_more_than_was_said_is_not_believed() -> None:
    way = Way()
    way.run(1)
    said = way.sender.links[MAX_LINKS].said
    with pytest.raises(Violation, match="it reports"):
        way.sender.receive(MAX_LINKS, Frame(Kind.PING, 0, said + 1))


def test_a_failure_told_twice_is_one_sign() -> None:
    way = Way()
    way.write(FRAME_SIZE)
    way.run(2)
    way.receiver.judge(way.receiver.read(0), ChannelVerdict(1, "no"))
    way.run(2)
    before = way.sender.life
    way.sender.receive(MAX_LINKS, Frame(Kind.DONE, 0, 1, b"no"))
    assert way.sender.life == before
