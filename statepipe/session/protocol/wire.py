"""The session: channels of bytes over links that may fail and be replaced, each proved to its end and judged.

It does no I/O: the caller moves bytes between links and `receive` / `to_send`, reports lost links and ticks of time,
and acts on the events. docs/protocol.md describes who dials, and which frames follow which.

Each side numbers the channels that it writes from 0: DATA and END refer to the sender's channels, ACK and DONE to the
receiver's. The frames that must arrive in the end (ACK, END, DONE, CLOSE, ABORT) describe a state, not a change: after
the loss of a link they are sent again, and a repetition does no harm.

PING is a sign of life without an answer: each side sends one in every tick, and takes a link that was silent for some
ticks for dead. An answer would queue behind megabytes in the buffers of a slow link. A PING contains how much of the
link was received, so each side knows whether its frames arrive.

A live link does not prove a live session: a path that passes a few bytes of each link and drops the rest allows new
links forever. `life` counts the signs of progress of the session itself (`_goes_on`, `tick`).

`Misuse` is our fault, `Violation` and IntegrityError are the peer's: after those, `to_send` returns an ABORT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.errors import IntegrityError
from statepipe.session.protocol.admission import Party, check_terms
from statepipe.session.protocol.channels import (
    INCOMING,
    OUTGOING,
    ChannelVerdict,
    Incoming,
    Outgoing,
    Receiving,
    Sending,
    verdict_in,
)
from statepipe.session.protocol.frames import (
    HEADER_SIZE,
    MAX_CHANNELS,
    Frame,
    FrameReader,
    Greeting,
    Kind,
    Violation,
    lane,
    text_frame,
)
from statepipe.session.protocol.states import STATES, Change, Event, LinkState, Misuse, State, Turn
from statepipe.stage import Buffer

BATCH = 1 << 20
"""Bytes given to a link at once: four frames for one system call. With more, other links would get none."""


class Wire:
    """The state machine. Only one thread at a time may use it, except `Outgoing.absorb` and `Incoming.absorb`.

    The peer may write `channels` channels; for each we may have to keep a window.
    """

    def __init__(self, party: Party, channels: int) -> None:
        self.party, self.channels = party, channels
        self.state = State.RUNNING
        self.outgoing: dict[int, Outgoing] = {}
        self.incoming: dict[int, Incoming] = {}
        self.links: dict[int, LinkState] = {}
        self.opened = False  # whether any link has opened
        self._due: dict[tuple[Kind, int], None] = {}  # the frames to send, by kind and channel, in order
        self._peer_window = party.window
        self._abort: ChannelVerdict | None = None  # ours
        self.life = 0
        self._tells = False  # the peer reports what it has received; an older one does not
        self._most_heard = self._most_told = 0  # of one link, since the last progress

    # --- links

    def dial(self, number: int) -> bytes:
        """Add a link that we dialled; return its greeting."""
        self._add(LinkState(number, FrameReader(), is_open=False))
        return self.party.ask(number, self._received(), known=self.opened)

    def accept(self, greeting: Greeting) -> bytes:
        """Add a link whose greeting was admitted (admission.Doorkeeper); return the answer. Raises Violation."""
        check_terms(greeting.role, self.party.role, greeting.window)
        self._agree(greeting)
        self._add(LinkState(greeting.link, FrameReader(greeted=True), is_open=True))
        return self.party.answer(greeting.link, self._received())

    def _add(self, link: LinkState) -> None:
        if link.number in self.links:
            raise Misuse(f"link {link.number} exists already")
        for before in [each for each in self.links if lane(each) == lane(link.number)]:
            self.lost(before)  # the dialler has given it up before we would notice
        self.links[link.number] = link
        if link.is_open:
            self._say_again()

    def _received(self) -> tuple[int, ...]:
        return tuple(self.incoming[n].arrived if n in self.incoming else 0 for n in range(MAX_CHANNELS))

    def _agree(self, greeting: Greeting) -> None:
        self.opened = True
        self._peer_window = greeting.window
        for number, offset in enumerate(greeting.received):
            if number in self.outgoing:
                self.outgoing[number].peer_window = greeting.window
                if self.outgoing[number].has_arrived(offset):
                    self._goes_on()
            elif offset:
                raise Violation(f"it reports {offset} bytes of channel {number}, which does not exist")

    def lost(self, number: int) -> None:
        """Remove a link: its unacknowledged data and everything that must arrive is sent over another one."""
        if self.links.pop(number, None) is None:
            return
        for channel in self.outgoing.values():
            channel.lost(number)
        self._say_again()

    def _say_again(self) -> None:
        if self.state is State.ABORTED:
            self._due = {(Kind.ABORT, 0): None} if self._abort else {}
            return
        self._due |= {(Kind.ACK, n): None for n, each in self.incoming.items() if each.taken and not each.verdict}
        self._due |= {(Kind.END, n): None for n, each in self.outgoing.items() if each.state is Sending.ENDED}
        self._due |= {(Kind.DONE, n): None for n, each in self.incoming.items() if each.state is Receiving.JUDGED}
        if self.state in (State.SAID_CLOSE, State.OVER):
            self._due[Kind.CLOSE, 0] = None

    def tick(self, limit: int) -> list[int]:
        """Take note of a tick; return the links that were silent for `limit` ticks: cut these, and call `lost`.

        There was progress if more bytes of one link have arrived, here or there, than of any since the last progress,
        because a long frame takes time. Or if neither side waits for acknowledgements, and a PING said so.
        """
        most_heard = max((link.facts_heard - link.heard_mark for link in self.links.values()), default=0)
        most_told = max((link.told - link.told_mark for link in self.links.values()), default=0)
        is_calm = any(link.calm for link in self.links.values()) and not self.waits_to_be_heard()
        if most_heard > self._most_heard or most_told > self._most_told or is_calm:
            self.life += 1
        self._most_heard, self._most_told = max(self._most_heard, most_heard), max(self._most_told, most_told)
        for link in self.links.values():
            link.silent = 0 if link.heard else link.silent + 1
            link.ping = link.is_open
            link.heard = link.calm = False
        return [number for number, link in self.links.items() if link.silent >= limit]

    def _goes_on(self) -> None:
        """Note progress: something new was sent and has arrived."""
        self.life += 1
        self._most_heard = self._most_told = 0
        for link in self.links.values():
            link.mark()

    def waits_to_be_heard(self) -> bool:
        """Return whether there is more to send, or sent frames may not have arrived; False for an older peer."""
        unheard = any(link.told < link.owed for link in self.links.values())
        return self._tells and (unheard or bool(self._due) or self.has_data_to_send())

    # --- what we write

    def open(self, number: int) -> Outgoing:
        """Open a channel that we write, with a number below MAX_CHANNELS."""
        if number in self.outgoing or not 0 <= number < MAX_CHANNELS:
            raise Misuse(f"no channel {number} to open")
        channel = self.outgoing[number] = Outgoing(number, self.party.window)
        channel.peer_window = self._peer_window
        return channel

    def end(self, channel: Outgoing) -> None:
        """End a channel, after everything was absorbed."""
        if channel.state is Sending.OPEN:
            channel.state = Sending.ENDED
            self._due[Kind.END, channel.number] = None

    def read(self, number: int) -> Incoming:
        """Return the peer's channel of that number, whether or not it has begun."""
        if not 0 <= number < self.channels:
            raise Misuse(f"no channel {number} to read")
        if number not in self.incoming:
            self.incoming[number] = Incoming(number, self.party.window)
        return self.incoming[number]

    def take(self, channel: Incoming) -> Buffer | None:
        """Return the next buffer for the consumer, which acknowledges it; None if there is none yet."""
        data = channel.take()
        if data is not None and channel.ack_due():
            self._due[Kind.ACK, channel.number] = None
        return data

    def judge(self, channel: Incoming, verdict: ChannelVerdict) -> None:
        """Send the verdict on a channel; the first one counts. Success only for a channel that is whole and proved."""
        if not verdict.code and not channel.is_whole:
            raise Misuse("a good verdict on what is not whole")
        if channel.verdict is None:
            channel.verdict, channel.state = verdict, Receiving.JUDGED
            channel.drop()
            self._due[Kind.DONE, channel.number] = None

    def close(self) -> None:
        """Send CLOSE: we have sent and received all we want."""
        self._turn(Turn.SAY_CLOSE)
        self._due[Kind.CLOSE, 0] = None

    def abort(self, verdict: ChannelVerdict) -> None:
        """Give up the whole session with ABORT."""
        if self.state is not State.ABORTED:
            self._turn(Turn.SAY_ABORT)
            self._abort = verdict
            self._due = {(Kind.ABORT, 0): None}

    def forget(self) -> None:
        """Free the data of a session that has ended, but is remembered. The counters stay."""
        for written in self.outgoing.values():
            written.drop()
        for read in self.incoming.values():
            read.drop()

    def _turn(self, turn: Turn) -> None:
        self.state = STATES[self.state, turn]

    def has_to_send(self) -> bool:
        """Return whether a frame other than DATA waits; `to_send` returns those first."""
        return bool(self._due)

    def has_data_to_send(self) -> bool:
        """Return whether a DATA frame waits for which the peer has room."""
        return any(channel.waits for channel in self.outgoing.values())

    def to_send(self, number: int, limit: int = BATCH) -> list[Buffer]:
        """Return what to send over a link now, about `limit` bytes; empty if there is nothing."""
        link = self.links.get(number)
        if link is None or not link.is_open:
            return []
        buffers: list[Buffer] = []
        for frame in self._frames(link, limit):
            buffers += frame.encode()
            link.said += HEADER_SIZE + len(frame.payload)
            if frame.kind is not Kind.PING:
                link.owed = link.said
        return buffers

    def _frames(self, link: LinkState, limit: int) -> Iterator[Frame]:
        due, self._due = self._due, {}
        yield from (self._standing(kind, number) for kind, number in due)
        if link.ping:
            link.ping = False
            yield Frame(Kind.PING, int(self.waits_to_be_heard()), link.reader.offset)
        pulled = 0
        channels = [] if self.state is State.ABORTED else list(self.outgoing.values())
        while channels and pulled < limit:
            frames = [(each, each.pull(link.number)) for each in channels]  # in turn, so that none starves
            channels = [each for each, frame in frames if frame is not None]
            yield from (frame for _, frame in frames if frame is not None)
            pulled += sum(len(frame.payload) for _, frame in frames if frame is not None)

    def _standing(self, kind: Kind, number: int) -> Frame:
        if kind is Kind.ACK:
            return self.incoming[number].ack_frame()
        if kind is Kind.END:
            return self.outgoing[number].end_frame()
        if kind is Kind.CLOSE:
            return Frame(Kind.CLOSE)
        verdict = self.incoming[number].verdict if kind is Kind.DONE else self._abort
        assert verdict is not None
        return text_frame(kind, number, verdict.code, verdict.text)

    def receive(self, number: int, item: Frame | Greeting) -> list[Event]:
        """Process what the link's reader has decoded. Raises Violation, IntegrityError."""
        link = self.links.get(number)
        if link is None:
            return []
        link.heard = True
        try:
            if isinstance(item, Greeting):
                return self._welcome(link, item)
            if not link.is_open:
                raise Misuse("frames before the greeting")
            if item.kind is Kind.PING:
                return self._on_ping(link, item)
            return _HANDLERS[item.kind](self, item)
        except (Violation, IntegrityError) as error:
            self.abort(ChannelVerdict(error.exit_code, str(error)))
            raise

    def _welcome(self, link: LinkState, greeting: Greeting) -> list[Event]:
        self.party.check_answer(greeting, link.number)
        self._agree(greeting)
        link.is_open = True
        self._say_again()
        return [Event(Change.OPENED, link.number)]

    def _on_ping(self, link: LinkState, frame: Frame) -> list[Event]:
        if frame.offset > link.said:
            raise Violation(f"it reports {frame.offset} bytes of a link on which {link.said} were sent")
        self._tells = self._tells or frame.offset > 0
        link.told = max(link.told, frame.offset)
        link.pings += 1
        link.calm = link.calm or not frame.channel
        return []

    def _for_reading(self, frame: Frame) -> Incoming:
        if frame.channel >= self.channels:
            raise Violation(f"{frame.kind.name} for channel {frame.channel}, which is not expected")
        channel = self.read(frame.channel)
        channel.state = INCOMING[channel.state, frame.kind]
        return channel

    def _on_data(self, frame: Frame) -> list[Event]:
        channel = self._for_reading(frame)
        repeated = channel.repeated
        more = channel.arrive(frame.offset, frame.payload)
        if channel.repeated == repeated:
            self._goes_on()
        return [Event(Change.READABLE, frame.channel)] if more else []

    def _on_end(self, frame: Frame) -> list[Event]:
        channel = self._for_reading(frame)
        if channel.total is None:
            self._goes_on()
        if channel.state is not Receiving.JUDGED:
            channel.end(frame.offset, bytes(frame.payload))
        return [Event(Change.READABLE, frame.channel)]

    def _for_writing(self, frame: Frame) -> Outgoing:
        channel = self.outgoing.get(frame.channel)
        if channel is None:
            raise Violation(f"{frame.kind.name} for channel {frame.channel}, which does not exist")
        return channel

    def _on_ack(self, frame: Frame) -> list[Event]:
        if self._for_writing(frame).ack(frame.offset):
            self._goes_on()
        return [Event(Change.WRITABLE, frame.channel)]

    def _on_done(self, frame: Frame) -> list[Event]:
        channel = self._for_writing(frame)
        verdict = verdict_in(frame)
        if channel.verdict is None:
            self._goes_on()
        channel.judge(verdict)
        channel.state = OUTGOING[channel.state, Kind.DONE]
        return [Event(Change.JUDGED, frame.channel, channel.verdict)]

    def _on_close(self, frame: Frame) -> list[Event]:
        if self.state in (State.RUNNING, State.SAID_CLOSE):
            self._goes_on()
        self._turn(Turn.HEAR_CLOSE)
        return [Event(Change.CLOSED)]

    def _on_abort(self, frame: Frame) -> list[Event]:
        verdict = verdict_in(frame)
        self._turn(Turn.HEAR_ABORT)
        self._due.clear()
        return [Event(Change.ABORTED, verdict=verdict)]


_HANDLERS: dict[Kind, Callable[[Wire, Frame], list[Event]]] = {
    Kind.DATA: Wire._on_data,
    Kind.ACK: Wire._on_ack,
    Kind.END: Wire._on_end,
    Kind.DONE: Wire._on_done,
    Kind.ABORT: Wire._on_abort,
    Kind.CLOSE: Wire._on_close,
}
