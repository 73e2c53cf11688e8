"""The two phases of a migration, as two tables: which side's guest runs, whatever fails. No I/O, no clock.

    source                                     destination
    OFFERING    OFFER            ------------>  EXPECTING   its QEMU starts
                                 <------------  ANSWER, ANSWERING
                BEGIN            ------------>  INCOMING
    PRECOPY     QEMU stops at pre-switchover
    ASKED       ASK              ------------>  INCOMING   every stage is asked
                                 <------------  READY
    HANDING     migrate-continue, the rest flows           QEMU `completed`, paused, digests agree
    HANDED      QEMU `completed` <------------  ACCEPTED   WAITING
    COMMITTED   GO               ------------>             STARTING: cont
    MOVED                        <------------  RUNNING    RUNS

Until BEGIN the hosts only compare what they have (migration/negotiation.py): whatever fails then, the guest was not
touched. A `check` leaves instead of beginning.

One rule carries the rest: the destination runs only after GO, and the source never runs once GO has left. So before
GO any failure ends with the guest on the source; after it, with the guest on the destination, unless that one says
that it has ended its QEMU before its guest could run. What is left is a destination that was told GO and cannot be
reached, or cannot tell whether its guest ran: UNDECIDED, and the source stays as it is until a person looks.

An answer may come late, and what QEMU was told it may do then, whether anybody still waits or not. So no state says
more than was seen: a QEMU that was told to run its guest is RESUMING or STARTING until it has answered, and one that
is to end is ENDING until its process has ended. Where an answer has been waited for long enough (OVERDUE) the last word
is that it is not known: UNANSWERED, UNDECIDED, UNENDED. A monitor that broke off is no QEMU that has ended: MUTE is not
GONE.

The source's QEMU dying while the last bytes flow is no loss if the destination has all of them: ORPHANED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Generic, TypeVar


class Event(enum.Enum):
    """What a side hears: of its own QEMU, of the other side, of the link, of its user."""

    OFFER = "the source tells what it has, and what it wants"
    ANSWER = "the destination tells what it has; its QEMU waits for the guest"
    BEGIN = "the source has compared the two, and begins"
    PRE_SWITCHOVER = "QEMU has stopped the guest and waits"
    COMPLETED = "QEMU says completed, and all is verified where it arrived"
    FAILED = "QEMU says failed or cancelled, or refused"
    GONE = "QEMU was seen to have ended, before or after what it was told"
    MUTE = "QEMU lives, and cannot be asked or told anything any more"
    ENDED = "our QEMU was seen to have ended before it was told to run"
    STRAYED = "QEMU ran its guest before GO, by another client's command"
    RESUMED = "QEMU says that the guest is as it was before"
    STRANDED = "QEMU would not run the guest again"
    CANCEL = "a user, a signal or the clock wants it undone"
    OVERDUE = "an answer has been waited for long enough"
    BROKEN = "the stream to the other side broke off, so that one has not all of it"
    LOST = "the other side cannot be reached any more"
    ASK = "the source asks whether all is well"
    READY = "the destination says that all is well"
    ACCEPTED = "the destination holds the whole guest, paused"
    GO = "the source lets the destination run"
    RUNNING = "the destination's guest runs"
    ABORT = "the source gives up"
    REFUSED = "the destination has ended its QEMU, which never runs"
    UNSURE = "the guest ran or may have run at the destination, and whether it does now is not known"


class Action(enum.Enum):
    """What a side is to do, in the order given. What QEMU is told here, it answers when it likes: with an event."""

    SEND_ANSWER = "tell the source what this host has, once QEMU here waits for the guest"
    SEND_BEGIN = "tell the destination that the guest begins to move"
    END_OURS = "end the QEMU that we started for this guest; a QEMU that was there before waits on"
    SEND_ASK = "ask the destination"
    CONTINUE = "migrate-continue"
    CANCEL = "migrate_cancel"
    RESUME = "see that the guest is as before: cont, unless it runs already or was paused before"
    SEND_GO = "write GO to the journal, then send it"
    SEND_ABORT = "tell the destination to give up"
    SEND_READY = "tell the source that all is well"
    SEND_ACCEPTED = "tell the source that the whole guest is here"
    START = "write GO to the journal, then cont: the guest runs here, unless it was paused before"
    SEND_RUNNING = "tell the source that the guest runs here"
    END = "end our QEMU and see it ended"
    SEND_REFUSED = "tell the source that the guest never runs here"
    SEND_UNSURE = "tell the source that whether the guest runs here is not known"


class Source(enum.Enum):
    """Where the source is."""

    OFFERING = "the hosts compare what they have; the guest is not touched"
    UNTOUCHED = "the migration did not begin; the guest was not touched"
    PRECOPY = "the guest runs here and its memory is on its way"
    ASKED = "the guest stands still, the destination is asked"
    HANDING = "the last bytes are on their way"
    ACCEPTED = "the destination has all; QEMU here has still to say so"
    HANDED = "all is sent; the destination has still to say that it has it"
    ORPHANED = "QEMU here has ended; the destination may have all"
    CANCELLING = "it is being undone"
    RESUMING = "it is undone, and QEMU here has still to say that the guest is as it was before"
    COMMITTED = "the destination was told to run"
    MOVED = "the guest runs on the destination"
    KEPT = "the guest is here, and was not given away"
    DOUBTED = "the guest has run at the destination before its time; QEMU here is still sending"
    UNDECIDED = "the guest may run or have run at the destination, and whether it does is not known here"
    UNANSWERED = "the guest was not given away; QEMU here does not answer, so whether it runs here is not known"
    DEAD = "QEMU here has ended, and with it the guest"


class Destination(enum.Enum):
    """Where the destination is."""

    EXPECTING = "no guest was offered yet"
    ANSWERING = "QEMU here waits, and the source compares what the hosts have"
    DECLINED = "the migration did not begin; no QEMU that we started is left"
    INCOMING = "the guest's memory arrives"
    WAITING = "the whole guest is here, paused"
    STARTING = "the guest is told to run"
    RUNS = "the guest runs here"
    ENDING = "QEMU here is being ended; its guest never ran"
    STRAYED = "QEMU here is being ended; its guest ran before GO, by another client's command"
    ENDED = "QEMU here has ended; the guest never ran"
    UNENDED = "QEMU here was killed and has not ended yet; its guest never ran"
    UNSURE = "the guest ran here, or QEMU was told to run it and has gone: a person decides where it runs on"


S, D, E, A = Source, Destination, Event, Action

_CANCELLED = (S.CANCELLING, (A.SEND_ABORT, A.CANCEL))
_UNDO = {
    **dict.fromkeys((E.REFUSED, E.UNSURE, E.LOST, E.CANCEL, E.BROKEN), _CANCELLED),
    E.FAILED: (S.RESUMING, (A.SEND_ABORT, A.RESUME)),
}
_DOUBT = {E.UNSURE: (S.DOUBTED, ())}
_DEAF = {E.MUTE: (S.UNANSWERED, (A.SEND_ABORT,))}
_DIED = _DEAF | {E.GONE: (S.DEAD, (A.SEND_ABORT,))}

_NOT_BEGUN = dict.fromkeys((E.REFUSED, E.LOST, E.CANCEL, E.FAILED, E.MUTE, E.OVERDUE, E.BROKEN), (S.UNTOUCHED, ()))

SOURCE: Mapping[Source, Mapping[Event, tuple[Source, tuple[Action, ...]]]] = {
    S.OFFERING: {**_NOT_BEGUN, E.GONE: (S.DEAD, ()), E.ANSWER: (S.PRECOPY, (A.SEND_BEGIN,))},
    S.UNTOUCHED: {},
    S.PRECOPY: _UNDO | _DIED | {E.PRE_SWITCHOVER: (S.ASKED, (A.SEND_ASK,))},
    S.ASKED: _UNDO | _DIED | {E.READY: (S.HANDING, (A.CONTINUE,))},
    S.HANDING: {
        **_UNDO,
        **_DEAF,
        **_DOUBT,
        E.COMPLETED: (S.HANDED, ()),
        E.ACCEPTED: (S.ACCEPTED, ()),
        E.GONE: (S.ORPHANED, ()),
    },
    S.ACCEPTED: {
        **_UNDO,
        **_DEAF,
        **_DOUBT,
        E.COMPLETED: (S.COMMITTED, (A.SEND_GO,)),
        E.GONE: (S.COMMITTED, (A.SEND_GO,)),
    },
    S.HANDED: {
        E.ACCEPTED: (S.COMMITTED, (A.SEND_GO,)),
        E.UNSURE: (S.UNDECIDED, ()),
        E.REFUSED: (S.RESUMING, (A.RESUME,)),
        E.LOST: (S.RESUMING, (A.RESUME,)),
        E.CANCEL: (S.RESUMING, (A.SEND_ABORT, A.RESUME)),
        E.BROKEN: (S.RESUMING, (A.SEND_ABORT, A.RESUME)),
        E.GONE: (S.ORPHANED, ()),
    },
    S.DOUBTED: {
        E.COMPLETED: (S.UNDECIDED, ()),
        E.FAILED: (S.RESUMING, (A.RESUME,)),
        E.GONE: (S.DEAD, ()),
        E.MUTE: (S.UNANSWERED, ()),
        E.OVERDUE: (S.UNANSWERED, ()),
    },
    S.ORPHANED: {
        E.ACCEPTED: (S.COMMITTED, (A.SEND_GO,)),
        E.UNSURE: (S.DEAD, ()),
        E.BROKEN: (S.DEAD, (A.SEND_ABORT,)),
        E.REFUSED: (S.DEAD, ()),
        E.LOST: (S.DEAD, ()),
        E.OVERDUE: (S.DEAD, (A.SEND_ABORT,)),
    },
    S.CANCELLING: {
        E.FAILED: (S.RESUMING, (A.RESUME,)),
        E.COMPLETED: (S.RESUMING, (A.RESUME,)),
        E.GONE: (S.DEAD, ()),
        E.MUTE: (S.UNANSWERED, ()),
        E.OVERDUE: (S.UNANSWERED, ()),
    },
    S.RESUMING: {
        E.RESUMED: (S.KEPT, ()),
        E.STRANDED: (S.KEPT, ()),
        E.GONE: (S.DEAD, ()),
        E.MUTE: (S.UNANSWERED, ()),
        E.OVERDUE: (S.UNANSWERED, ()),
    },
    S.COMMITTED: {
        E.RUNNING: (S.MOVED, ()),
        E.REFUSED: (S.RESUMING, (A.RESUME,)),
        E.LOST: (S.UNDECIDED, ()),
        E.UNSURE: (S.UNDECIDED, ()),
        E.OVERDUE: (S.UNDECIDED, ()),
    },
    S.MOVED: {},
    S.KEPT: {},
    S.UNDECIDED: {},
    S.UNANSWERED: {},
    S.DEAD: {},
}
"""(new state, actions) by state and event; an event that is not listed changes nothing. Without entries: an end."""

_GIVE_UP = dict.fromkeys((E.FAILED, E.GONE, E.MUTE, E.CANCEL, E.ABORT, E.LOST), (D.ENDING, (A.END,)))

_DECLINE = dict.fromkeys((E.FAILED, E.GONE, E.MUTE, E.CANCEL, E.ABORT, E.LOST, E.OVERDUE), (D.DECLINED, (A.END_OURS,)))

DESTINATION: Mapping[Destination, Mapping[Event, tuple[Destination, tuple[Action, ...]]]] = {
    D.EXPECTING: _DECLINE | {E.OFFER: (D.ANSWERING, (A.SEND_ANSWER,))},
    D.ANSWERING: _DECLINE | {E.BEGIN: (D.INCOMING, ())},
    D.DECLINED: {},
    D.INCOMING: {
        **_GIVE_UP,
        E.ASK: (D.INCOMING, (A.SEND_READY,)),
        E.COMPLETED: (D.WAITING, (A.SEND_ACCEPTED,)),
    },
    D.WAITING: _GIVE_UP | {E.GO: (D.STARTING, (A.START,))},
    D.STARTING: {
        E.RUNNING: (D.RUNS, (A.SEND_RUNNING,)),
        E.FAILED: (D.ENDING, (A.END,)),
        E.ENDED: (D.ENDED, (A.SEND_REFUSED,)),
        E.GONE: (D.UNSURE, (A.SEND_UNSURE,)),
        E.MUTE: (D.UNSURE, (A.SEND_UNSURE,)),
    },
    D.ENDING: {
        E.STRAYED: (D.STRAYED, (A.SEND_UNSURE,)),
        E.ENDED: (D.ENDED, (A.SEND_REFUSED,)),
        E.OVERDUE: (D.UNENDED, ()),
    },
    D.STRAYED: {
        E.ENDED: (D.UNSURE, ()),
        E.OVERDUE: (D.UNSURE, ()),
    },
    D.RUNS: {},
    D.ENDED: {},
    D.UNENDED: {},
    D.UNSURE: {},
}
"""The same for the destination. From STARTING on, the source cannot take it back, nor can a link that is lost, nor a
signal: QEMU may run the guest at any moment. FAILED there is QEMU's own no to `cont`, ENDED one that had ended before
it could be told; one that goes away once it was told may have run its guest, and have written to its disks. So has
one that STRAYED: its QEMU is ended, but the source's memory no longer belongs to the disks."""

HURRIED = (S.CANCELLING, S.RESUMING, S.DOUBTED, D.ENDING, D.STRAYED)
"""States whose answer may be OVERDUE whoever asked; elsewhere only somebody who wants us to end makes it so."""

SWITCHOVER = (S.ASKED, S.HANDING, S.HANDED, S.ACCEPTED)
"""States in which the guest stands still and can still be taken back: the switchover, which has a bound of its own."""


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

    def heeds(self, event: Event) -> bool:
        """Whether it changes anything here."""
        return event in self._table[self.state]

    @property
    def ended(self) -> bool:
        """Whether nothing can change the outcome any more."""
        return not self._table[self.state]


def source() -> Side[Source]:
    """The source of a migration that has not begun: the hosts are about to compare what they have."""
    return Side(Source.OFFERING, SOURCE)


def destination() -> Side[Destination]:
    """The destination of a migration that has not begun: no guest was offered yet."""
    return Side(Destination.EXPECTING, DESTINATION)


_UNDONE = (A.CANCEL, A.RESUME)

RECOVERY: Mapping[Source | Destination, tuple[Action, ...]] = {
    **dict.fromkeys((S.OFFERING, S.UNTOUCHED), ()),
    **dict.fromkeys((S.PRECOPY, S.ASKED, S.HANDING, S.ACCEPTED, S.HANDED, S.ORPHANED), _UNDONE),
    **dict.fromkeys((S.CANCELLING, S.RESUMING, S.KEPT, S.UNANSWERED), _UNDONE),
    **dict.fromkeys((S.DOUBTED, S.COMMITTED, S.MOVED, S.UNDECIDED, S.DEAD), ()),
    **dict.fromkeys((D.EXPECTING, D.ANSWERING, D.DECLINED), (A.END_OURS,)),
    **dict.fromkeys((D.INCOMING, D.WAITING, D.ENDING, D.STRAYED, D.ENDED, D.UNENDED), (A.END,)),
    D.STARTING: (A.START,),
    **dict.fromkeys((D.RUNS, D.UNSURE), ()),
}
"""What sets a guest right when statepipe itself died in a state, as the guardian heard of it, or as the journal has it.

Before GO the destination never runs: the source undoes whatever its QEMU was doing, the destination ends its own. After
GO the source does nothing, for nobody there can know, and the destination has its guest run, which QEMU may be about
to do by itself: what it was told before statepipe died, it does when it can."""


def recovery(state: Source | Destination) -> tuple[Action, ...]:
    """What RECOVERY has for it."""
    return RECOVERY[state]
