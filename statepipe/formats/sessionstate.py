"""Where a session stands, and what may move it on: tables, so that tests and the manual read what the code runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from statepipe.formats.channels import Verdict
from statepipe.formats.frames import FrameReader


class Misuse(Exception):
    """Called out of turn: a bug of ours."""


class State(enum.Enum):
    """Where the session stands."""

    RUNNING = "running"
    SAID_CLOSE = "said close"
    HEARD_CLOSE = "heard close"
    OVER = "over"
    ABORTED = "aborted"


class Turn(enum.Enum):
    """What moves the session on, apart from its channels."""

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
"""Every state and turn."""


class Change(enum.Enum):
    """What an event is about."""

    OPENED = "a link"
    READABLE = "more bytes, or the end, for the consumer of a channel"
    WRITABLE = "room in a channel"
    JUDGED = "the far verdict on a channel"
    CLOSED = "the peer has said and heard all it wants"
    ABORTED = "the peer gave up"


@dataclass(frozen=True, slots=True)
class Event:
    """Something changed. `number` is the channel's, or the link's for OPENED."""

    change: Change
    number: int = 0
    verdict: Verdict | None = None


@dataclass(slots=True, eq=False)
class Link:
    """One link as the machine sees it. The caller reads into `reader`."""

    number: int
    reader: FrameReader
    is_open: bool
    heard: bool = True
    said: bool = True
    silent: int = 0
    ping: bool = False
    ticks: int = 0
    has_brought: bool = False

    @property
    def is_of_use(self) -> bool:
        """Whether a frame has come over it, or it stands for more than a tick: some always break before."""
        return self.is_open and (self.has_brought or self.ticks > 1)
