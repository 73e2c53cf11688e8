"""The two phases of a migration, as two tables: which side's guest runs, whatever fails. No I/O, no clock.

    source                                     destination
    PRECOPY     QEMU stops at pre-switchover
    ASKED       ASK              ------------>  INCOMING   every stage is asked
                                 <------------  READY
    HANDING     migrate-continue, the rest flows           QEMU `completed`, paused, digests agree
    HANDED      QEMU `completed` <------------  ACCEPTED   WAITING
    COMMITTED   GO               ------------>             STARTING: cont
    MOVED                        <------------  RUNNING    RUNS

One rule carries the rest: the destination runs only after GO, and the source never runs once GO has left. So before
GO any failure ends with the guest on the source; after it, with the guest on the destination, unless that one says
that it has ended its QEMU for good. What is left is a destination that cannot be reached after GO: UNDECIDED, and
both stay as they are until a person looks.

The source's QEMU dying while the last bytes flow is no loss if the destination has all of them: ORPHANED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Generic, TypeVar


class Event(enum.Enum):
    """What a side hears: of its own QEMU, of the other side, of the link, of its user."""

    PRE_SWITCHOVER = "QEMU has stopped the guest and waits"
    COMPLETED = "QEMU says completed, and all is verified where it arrived"
    FAILED = "QEMU says failed or cancelled, or refused"
    GONE = "QEMU has ended"
    CANCEL = "a user or a signal wants it undone"
    BROKEN = "the stream to the other side broke off, so that one has not all of it"
    LOST = "the other side cannot be reached any more"
    ASK = "the source asks whether all is well"
    READY = "the destination says that all is well"
    ACCEPTED = "the destination holds the whole guest, paused"
    GO = "the source lets the destination run"
    RUNNING = "the destination's guest runs"
    ABORT = "the source gives up"
    REFUSED = "the destination has ended its QEMU, which never runs"


class Action(enum.Enum):
    """What a side is to do, in the order given."""

    SEND_ASK = "ask the destination"
    CONTINUE = "migrate-continue"
    CANCEL = "migrate_cancel"
    RESUME = "cont: the guest runs here again, unless it was paused before"
    SEND_GO = "write GO to the journal, then send it"
    SEND_ABORT = "tell the destination to give up"
    SEND_READY = "tell the source that all is well"
    SEND_ACCEPTED = "tell the source that the whole guest is here"
    START = "write GO to the journal, then cont: the guest runs here, unless it was paused before"
    SEND_RUNNING = "tell the source that the guest runs here"
    END = "end our QEMU and see it ended"
    SEND_REFUSED = "tell the source that the guest never runs here"


class Source(enum.Enum):
    """Where the source is."""

    PRECOPY = "the guest runs here and its memory is on its way"
    ASKED = "the guest stands still, the destination is asked"
    HANDING = "the last bytes are on their way"
    ACCEPTED = "the destination has all; QEMU here has still to say so"
    HANDED = "all is sent; the destination has still to say that it has it"
    ORPHANED = "QEMU here has ended; the destination may have all"
    CANCELLING = "it is being undone"
    COMMITTED = "the destination was told to run"
    MOVED = "the guest runs on the destination"
    KEPT = "the guest runs here"
    UNDECIDED = "the destination was told to run, and cannot be reached"
    DEAD = "QEMU here has ended, and with it the guest"


class Destination(enum.Enum):
    """Where the destination is."""

    INCOMING = "the guest's memory arrives"
    WAITING = "the whole guest is here, paused"
    STARTING = "the guest is told to run"
    RUNS = "the guest runs here"
    ENDED = "QEMU here has ended; the guest never ran"


S, D, E, A = Source, Destination, Event, Action

_UNDO = {
    E.REFUSED: (S.CANCELLING, (A.CANCEL,)),
    E.LOST: (S.CANCELLING, (A.CANCEL,)),
    E.CANCEL: (S.CANCELLING, (A.CANCEL,)),
    E.BROKEN: (S.CANCELLING, (A.CANCEL,)),
    E.FAILED: (S.KEPT, (A.SEND_ABORT,)),
}
_DIED = {E.GONE: (S.DEAD, (A.SEND_ABORT,))}

SOURCE: Mapping[Source, Mapping[Event, tuple[Source, tuple[Action, ...]]]] = {
    S.PRECOPY: _UNDO | _DIED | {E.PRE_SWITCHOVER: (S.ASKED, (A.SEND_ASK,))},
    S.ASKED: _UNDO | _DIED | {E.READY: (S.HANDING, (A.CONTINUE,))},
    S.HANDING: {
        **_UNDO,
        E.COMPLETED: (S.HANDED, ()),
        E.ACCEPTED: (S.ACCEPTED, ()),
        E.GONE: (S.ORPHANED, ()),
    },
    S.ACCEPTED: {
        **_UNDO,
        E.COMPLETED: (S.COMMITTED, (A.SEND_GO,)),
        E.GONE: (S.COMMITTED, (A.SEND_GO,)),
    },
    S.HANDED: {
        E.ACCEPTED: (S.COMMITTED, (A.SEND_GO,)),
        E.REFUSED: (S.KEPT, (A.RESUME,)),
        E.LOST: (S.KEPT, (A.RESUME,)),
        E.CANCEL: (S.KEPT, (A.SEND_ABORT, A.RESUME)),
        E.BROKEN: (S.KEPT, (A.SEND_ABORT, A.RESUME)),
        E.GONE: (S.ORPHANED, ()),
    },
    S.ORPHANED: {
        E.ACCEPTED: (S.COMMITTED, (A.SEND_GO,)),
        E.BROKEN: (S.DEAD, (A.SEND_ABORT,)),
        E.REFUSED: (S.DEAD, ()),
        E.LOST: (S.DEAD, ()),
    },
    S.CANCELLING: {
        E.FAILED: (S.KEPT, (A.SEND_ABORT,)),
        E.COMPLETED: (S.KEPT, (A.SEND_ABORT, A.RESUME)),
        **_DIED,
    },
    S.COMMITTED: {
        E.RUNNING: (S.MOVED, ()),
        E.REFUSED: (S.KEPT, (A.RESUME,)),
        E.LOST: (S.UNDECIDED, ()),
    },
    S.MOVED: {},
    S.KEPT: {},
    S.UNDECIDED: {},
    S.DEAD: {},
}
"""(new state, actions) by state and event; an event that is not listed changes nothing. Without entries: an end."""

_GIVE_UP = dict.fromkeys((E.FAILED, E.GONE, E.CANCEL, E.ABORT, E.LOST), (D.ENDED, (A.END, A.SEND_REFUSED)))

DESTINATION: Mapping[Destination, Mapping[Event, tuple[Destination, tuple[Action, ...]]]] = {
    D.INCOMING: {
        **_GIVE_UP,
        E.ASK: (D.INCOMING, (A.SEND_READY,)),
        E.COMPLETED: (D.WAITING, (A.SEND_ACCEPTED,)),
    },
    D.WAITING: _GIVE_UP | {E.GO: (D.STARTING, (A.START,))},
    D.STARTING: {
        E.RUNNING: (D.RUNS, (A.SEND_RUNNING,)),
        E.FAILED: (D.ENDED, (A.END, A.SEND_REFUSED)),
        E.GONE: (D.ENDED, (A.END, A.SEND_REFUSED)),
    },
    D.RUNS: {},
    D.ENDED: {},
}
"""The same for the destination. From STARTING on, the source cannot take it back, nor can a link that is lost."""


State = TypeVar("State", bound=enum.Enum)
Row = Mapping[Event, tuple[State, tuple[Action, ...]]]
"""What is to be done in one state about each event."""


class Side(Generic[State]):
    """One side of a migration: `hear` an event, do what it returns, in order."""

    def __init__(self, state: State, table: Mapping[State, Row[State]]) -> None:
        self.state = state
        self._table = table

    def after(self, event: Event) -> tuple[State, tuple[Action, ...]]:
        """The state that it leads to, and what is to be done; nothing, if it changes nothing here."""
        return self._table[self.state].get(event, (self.state, ()))

    def hear(self, event: Event) -> tuple[Action, ...]:
        """Move on; what is to be done about it."""
        self.state, actions = self.after(event)
        return actions

    @property
    def ended(self) -> bool:
        """Whether nothing can change the outcome any more."""
        return not self._table[self.state]


def source() -> Side[Source]:
    """The source of a migration that has just begun."""
    return Side(Source.PRECOPY, SOURCE)


def destination() -> Side[Destination]:
    """The destination of a migration that has just begun."""
    return Side(Destination.INCOMING, DESTINATION)


def recovery(state: Source) -> tuple[Action, ...]:
    """What sets the source's guest right when statepipe itself died in `state`, as the journal has it.

    Before GO the destination never runs: whatever QEMU was doing is undone. After it nobody here can know.
    """
    if state in (Source.MOVED, Source.COMMITTED, Source.UNDECIDED, Source.DEAD):
        return ()
    return (Action.CANCEL, Action.RESUME)
