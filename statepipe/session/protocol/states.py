"""The states of a session and their transitions, as tables, so that tests and documents use what the code runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from statepipe.session.protocol.channels import ChannelVerdict
from statepipe.session.protocol.frames import GREETING_SIZE, HEADER_SIZE, FrameReader


class Misuse(Exception):
    """A call at the wrong time: a bug of ours."""


class State(enum.Enum):
    """The state of a session."""

    RUNNING = "running"
    SAID_CLOSE = "said close"
    HEARD_CLOSE = "heard close"
    OVER = "over"
    ABORTED = "aborted"


class Turn(enum.Enum):
    """What changes the state of a session, apart from its channels."""

    SAY_CLOSE = "say CLOSE"
    HEAR_CLOSE = "hear CLOSE"
    SAY_ABORT = "say ABORT"
    HEAR_ABORT = "hear ABORT"


STATES = {
    (State.RUNNING, Turn.SAY_CLOSE): State.SAID_CLOSE,
    (State.RUNNING, Turn.HEAR_CLOSE): State.HEARD_CLOSE,
    (State.SAID_CLOSE, Turn.SAY_CLOSE): State.SAID_CLOSE,
    (State.SAID_CLOSE, Turn.HEAR_CLOSE): State.OVER,
    (State.HEARD_CLOSE, Turn.SAY_CLOSE): State.OVER,
    (State.HEARD_CLOSE, Turn.HEAR_CLOSE): State.HEARD_CLOSE,
    (State.OVER, Turn.SAY_CLOSE): State.OVER,
    (State.OVER, Turn.HEAR_CLOSE): State.OVER,
    **{(each, turn): State.ABORTED for each in State for turn in (Turn.SAY_ABORT, Turn.HEAR_ABORT)},
    **{(State.ABORTED, turn): State.ABORTED for turn in Turn},
}
"""The next state, for every state and turn."""


class Change(enum.Enum):
    """The kind of an event."""

    OPENED = "a link"
    READABLE = "more bytes, or the end, for the consumer of a channel"
    WRITABLE = "room in a channel"
    JUDGED = "the far verdict on a channel"
    CLOSED = "the peer has said and heard all it wants"
    ABORTED = "the peer gave up"


@dataclass(frozen=True, slots=True)
class Event:
    """A change. `number` is the channel's, or the link's for OPENED."""

    change: Change
    number: int = 0
    verdict: ChannelVerdict | None = None


@dataclass(slots=True, eq=False)
class LinkState:
    """One link as the machine sees it. The caller reads into `reader`.

    Bytes since its beginning, including the greeting: `said` were sent; up to `owed` the peer must receive them (a PING
    does not count); up to `told` it has reported them received. `pings` have arrived. In this tick arrived: anything
    (`heard`), a PING of a peer that waits for nothing (`calm`). The marks are the positions at the last progress.
    """

    number: int
    reader: FrameReader
    is_open: bool
    heard: bool = True
    calm: bool = False
    silent: int = 0
    ping: bool = False
    said: int = GREETING_SIZE
    owed: int = 0
    told: int = 0
    pings: int = 0
    heard_mark: int = GREETING_SIZE
    told_mark: int = GREETING_SIZE

    @property
    def facts_heard(self) -> int:
        """The bytes received, without PINGs."""
        return self.reader.offset - self.pings * HEADER_SIZE

    def mark(self) -> None:
        """Note progress of the session."""
        self.heard_mark, self.told_mark = self.facts_heard, max(self.told, GREETING_SIZE)
