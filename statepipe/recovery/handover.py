"""The two phases of a migration as two tables: on which side the guest runs, whatever fails. No I/O, no clock.

    source                                     destination
    OFFERING    OFFER            ------------>  EXPECTING   its QEMU starts
                                 <------------  ANSWER, ANSWERING
    PRECOPY     BEGIN, ASK       ------------>  INCOMING
    PROMISED    the guest runs   <------------  READY
                QEMU stops it at pre-switchover
    HANDING     migrate-continue, the rest flows           QEMU `completed`, paused, digests agree
    HANDED      QEMU `completed` <------------  ACCEPTED   WAITING
    COMMITTED   GO               ------------>             STARTING: cont
    MOVED                        <------------  RUNNING    RUNS

Until BEGIN the hosts only compare what they have (migration/negotiation.py): after any failure before that, the guest
was not touched. A `check` leaves instead of beginning.

The guest stands still from pre-switchover on. So the destination is asked before, and whatever fails there later is
told at once. A QEMU that stops its guest before READY came waits for it: ASKED.

One rule decides the rest: the destination runs the guest only after GO, and the source never runs it once it has sent
GO. So any failure before GO ends with the guest on the source. After GO it ends with the guest on the destination,
unless the destination reports that its QEMU ended before the guest could run. What remains is a destination that was
sent GO and cannot be reached, or does not know whether its guest ran: UNDECIDED, and the source stays as it is until a
person decides.

An answer may be late, and QEMU may do what it was told whether anybody still waits or not. So no state claims more than
was seen: a QEMU that was told to run its guest is RESUMING or STARTING until it has answered, and one that must end is
ENDING until its process has ended. If an answer is OVERDUE, the result is that it is not known: UNANSWERED, UNDECIDED,
UNENDED. A monitor that broke off does not prove that QEMU has ended: MUTE is not GONE.

If the source's QEMU ends while the last bytes are sent, nothing is lost if the destination has all of them: ORPHANED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from statepipe.typed import Generic, TypeVar


class Event(enum.Enum):
    """What happens to a side: at its QEMU, the other side, the link, or by its user."""

    OFFER = "the source sends what it has, and what it wants"
    ANSWER = "the destination sends what it has; its QEMU waits for the guest"
    BEGIN = "the source has compared both hosts, and begins"
    PRE_SWITCHOVER = "QEMU has stopped the guest and waits"
    COMPLETED = "QEMU reports completed, and the destination has verified everything"
    FAILED = "QEMU reports failed or cancelled, or refused a command"
    GONE = "QEMU was seen to have ended, before or after it was told something"
    MUTE = "QEMU lives, but its monitor has broken off"
    ENDED = "our QEMU was seen to have ended before it was told to run"
    STRAYED = "QEMU ran its guest before GO, by another client's command"
    RESUMED = "QEMU reports that the guest is as it was before"
    STRANDED = "QEMU refused to run the guest again"
    CANCEL = "a user, a signal or a time limit cancels the migration"
    OVERDUE = "an answer did not arrive in time"
    BROKEN = "the stream to the other side broke off, so the other side lacks a part of it"
    LOST = "the other side cannot be reached any more"
    ASK = "the source asks whether all is well"
    READY = "the destination answers that all is well"
    ACCEPTED = "the destination has the whole guest, paused"
    GO = "the source lets the destination run the guest"
    RUNNING = "the destination's guest runs"
    ABORT = "the source gives up"
    REFUSED = "the destination has ended its QEMU, whose guest never ran"
    UNSURE = "the guest ran or may have run at the destination, and whether it does now is not known"


class Action(enum.Enum):
    """What a side does, in the order given. QEMU's answer to what it is told is an event, however late."""

    SEND_ANSWER = "send what this host has, once QEMU here waits for the guest"
    SEND_BEGIN = "tell the destination that the guest begins to move"
    END_OURS = "end the QEMU that we started for this guest; another one keeps waiting"
    SEND_ASK = "ask the destination"
    CONTINUE = "migrate-continue"
    CANCEL = "migrate_cancel"
    RESUME = "restore the guest: cont, unless it runs already or was paused before"
    SEND_GO = "write GO to the journal, then send it"
    SEND_ABORT = "tell the destination to give up"
    SEND_READY = "tell the source that all is well"
    SEND_ACCEPTED = "tell the source that the whole guest is here"
    START = "write GO to the journal, then cont: the guest runs here, unless it was paused before"
    SEND_RUNNING = "tell the source that the guest runs here"
    END = "end QEMU here, and see that it has ended"
    SEND_REFUSED = "tell the source that the guest never runs here"
    SEND_UNSURE = "tell the source that it is not known whether the guest runs here"


class Source(enum.Enum):
    """Where the source is."""

    OFFERING = "the hosts compare what they have; the guest is not touched"
    UNTOUCHED = "the migration did not begin; the guest was not touched"
    PRECOPY = "the guest runs here and its memory is being sent"
    PROMISED = "the guest runs here and its memory is being sent; the destination has said that all is well"
    ASKED = "the guest is stopped; the destination was asked"
    HANDING = "the last bytes are being sent"
    ACCEPTED = "the destination has everything; QEMU here has not reported that yet"
    HANDED = "everything is sent; the destination has not reported yet that it has it"
    ORPHANED = "QEMU here has ended; the destination may have everything"
    CANCELLING = "the migration is being cancelled"
    RESUMING = "the migration is cancelled; QEMU here has not reported yet that the guest is as it was before"
    COMMITTED = "the destination was told to run the guest"
    MOVED = "the guest runs on the destination"
    KEPT = "the guest is here, and was not given away"
    DOUBTED = "the guest ran at the destination before GO; QEMU here is still sending"
    UNDECIDED = "the guest may run or have run at the destination, and whether it does is not known here"
    UNANSWERED = "the guest was not given away; QEMU here does not answer, so whether it runs here is not known"
    DEAD = "QEMU here has ended, and with it the guest"


class Destination(enum.Enum):
    """Where the destination is."""

    EXPECTING = "no guest was offered yet"
    ANSWERING = "QEMU here waits; the source compares the hosts"
    DECLINED = "the migration did not begin; a QEMU that we started has ended"
    INCOMING = "the guest's memory arrives"
    WAITING = "the whole guest is here, paused"
    STARTING = "QEMU here was told to run the guest"
    RUNS = "the guest runs here"
    ENDING = "QEMU here is being ended; its guest never ran"
    STRAYED = "QEMU here is being ended; its guest ran before GO, by another client's command"
    ENDED = "QEMU here has ended; the guest never ran"
    UNENDED = "QEMU here was killed and has not ended yet; its guest never ran"
    UNSURE = "the guest ran here, or QEMU was told to run it and is gone: a person decides where it runs on"


S, D, E, A = Source, Destination, Event, Action

_CANCELLED = (S.CANCELLING, (A.SEND_ABORT, A.CANCEL))
_UNDO = {
    **dict.fromkeys((E.REFUSED, E.UNSURE, E.LOST, E.CANCEL, E.BROKEN), _CANCELLED),
    E.FAILED: (S.RESUMING, (A.SEND_ABORT, A.RESUME)),
}
_DOUBT = {E.UNSURE: (S.DOUBTED, ())}
_DEAF = {E.MUTE: (S.UNANSWERED, (A.SEND_ABORT,))}
_UNANSWERED = {E.GONE: (S.DEAD, ()), **dict.fromkeys((E.MUTE, E.OVERDUE), (S.UNANSWERED, ()))}
_DIED = _DEAF | {E.GONE: (S.DEAD, (A.SEND_ABORT,))}

_NOT_BEGUN = dict.fromkeys((E.REFUSED, E.LOST, E.CANCEL, E.FAILED, E.MUTE, E.OVERDUE, E.BROKEN), (S.UNTOUCHED, ()))

SOURCE: Mapping[Source, Mapping[Event, tuple[Source, tuple[Action, ...]]]] = {
    S.OFFERING: {**_NOT_BEGUN, E.GONE: (S.DEAD, ()), E.ANSWER: (S.PRECOPY, (A.SEND_BEGIN, A.SEND_ASK))},
    S.PRECOPY: _UNDO | _DIED | {E.READY: (S.PROMISED, ()), E.PRE_SWITCHOVER: (S.ASKED, ())},
    S.PROMISED: _UNDO | _DIED | {E.PRE_SWITCHOVER: (S.HANDING, (A.CONTINUE,))},
    S.ASKED: _UNDO | _DIED | {E.READY: (S.HANDING, (A.CONTINUE,))},
    S.HANDING: _UNDO
    | _DEAF
    | _DOUBT
    | {
        E.COMPLETED: (S.HANDED, ()),
        E.ACCEPTED: (S.ACCEPTED, ()),
        E.GONE: (S.ORPHANED, ()),
    },
    S.ACCEPTED: _UNDO
    | _DEAF
    | _DOUBT
    | {
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
    S.DOUBTED: _UNANSWERED | {E.COMPLETED: (S.UNDECIDED, ()), E.FAILED: (S.RESUMING, (A.RESUME,))},
    S.ORPHANED: {
        E.ACCEPTED: (S.COMMITTED, (A.SEND_GO,)),
        E.UNSURE: (S.DEAD, ()),
        E.BROKEN: (S.DEAD, (A.SEND_ABORT,)),
        E.REFUSED: (S.DEAD, ()),
        E.LOST: (S.DEAD, ()),
        E.OVERDUE: (S.DEAD, (A.SEND_ABORT,)),
    },
    S.CANCELLING: _UNANSWERED | dict.fromkeys((E.FAILED, E.COMPLETED), (S.RESUMING, (A.RESUME,))),
    S.RESUMING: _UNANSWERED | dict.fromkeys((E.RESUMED, E.STRANDED), (S.KEPT, ())),
    S.COMMITTED: {
        E.RUNNING: (S.MOVED, ()),
        E.REFUSED: (S.RESUMING, (A.RESUME,)),
        E.LOST: (S.UNDECIDED, ()),
        E.UNSURE: (S.UNDECIDED, ()),
        E.OVERDUE: (S.UNDECIDED, ()),
    },
    **{end: {} for end in (S.UNTOUCHED, S.MOVED, S.KEPT, S.UNDECIDED, S.UNANSWERED, S.DEAD)},
}
"""(new state, actions) by state and event. An event that is not listed changes nothing; a state without events is an
end."""

_GIVE_UP = dict.fromkeys((E.FAILED, E.GONE, E.MUTE, E.CANCEL, E.ABORT, E.LOST), (D.ENDING, (A.END,)))

_DECLINE = dict.fromkeys((E.FAILED, E.GONE, E.MUTE, E.CANCEL, E.ABORT, E.LOST, E.OVERDUE), (D.DECLINED, (A.END_OURS,)))

DESTINATION: Mapping[Destination, Mapping[Event, tuple[Destination, tuple[Action, ...]]]] = {
    D.EXPECTING: _DECLINE | {E.OFFER: (D.ANSWERING, (A.SEND_ANSWER,))},
    D.ANSWERING: _DECLINE | {E.BEGIN: (D.INCOMING, ())},
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
    **{end: {} for end in (D.DECLINED, D.RUNS, D.ENDED, D.UNENDED, D.UNSURE)},
}
"""The same for the destination. From STARTING on, neither the source nor a lost link nor a signal can take the guest
back: QEMU may run it at any moment. FAILED there means that QEMU refused `cont`, ENDED that it had ended before it was
told. A QEMU that ends after it was told may have run its guest and written to its disks. So has one that STRAYED: it is
ended, but the source's memory no longer matches the disks."""

HURRIED = (S.CANCELLING, S.RESUMING, S.DOUBTED, D.ENDING, D.STRAYED)
"""States whose answer may be OVERDUE at any time; in the others, only once a signal asked us to stop."""

SWITCHOVER = (S.ASKED, S.HANDING, S.HANDED, S.ACCEPTED)
"""States in which the guest is stopped and can still be taken back: the switchover, which has its own time limit."""


WITHOUT_SYNC = (S.PROMISED, S.ASKED, S.HANDING, S.ACCEPTED, S.HANDED, D.WAITING)
"""States whose line in a journal need not be on the disk before they act. If the host crashes, QEMU is gone too, and
the line before says the same of the guest: it was not given away, or never ran there."""


State = TypeVar("State", bound=enum.Enum)
Row = Mapping[Event, tuple[State, tuple[Action, ...]]]
"""What to do in one state about each event."""


class Side(Generic[State]):
    """One side of a migration: `hear` an event, and do what it returns, in order."""

    def __init__(self, state: State, table: Mapping[State, Row[State]]) -> None:
        self.state = state
        self._table = table

    def after(self, event: Event) -> tuple[State, tuple[Action, ...]]:
        """Return the state that the event leads to, and what to do; this state and nothing if it changes nothing."""
        return self._table[self.state].get(event, (self.state, ()))

    def hear(self, event: Event) -> tuple[Action, ...]:
        """Move to that state, and return what to do."""
        self.state, actions = self.after(event)
        return actions

    def heeds(self, event: Event) -> bool:
        """Return whether the event changes anything."""
        return event in self._table[self.state]

    @property
    def ended(self) -> bool:
        """Whether nothing can change the outcome any more."""
        return not self._table[self.state]


def source() -> Side[Source]:
    """Return the source of a migration that has not begun."""
    return Side(Source.OFFERING, SOURCE)


def destination() -> Side[Destination]:
    """Return the destination of a migration that has not begun."""
    return Side(Destination.EXPECTING, DESTINATION)


_UNDONE = (A.CANCEL, A.RESUME)

RECOVERY: Mapping[Source | Destination, tuple[Action, ...]] = {
    **dict.fromkeys((S.OFFERING, S.UNTOUCHED), ()),
    **dict.fromkeys((S.PRECOPY, S.PROMISED, S.ASKED, S.HANDING, S.ACCEPTED, S.HANDED, S.ORPHANED), _UNDONE),
    **dict.fromkeys((S.CANCELLING, S.RESUMING, S.KEPT, S.UNANSWERED), _UNDONE),
    **dict.fromkeys((S.DOUBTED, S.COMMITTED, S.MOVED, S.UNDECIDED, S.DEAD), ()),
    **dict.fromkeys((D.EXPECTING, D.ANSWERING, D.DECLINED), (A.END_OURS,)),
    **dict.fromkeys((D.INCOMING, D.WAITING, D.ENDING, D.STRAYED, D.ENDED, D.UNENDED), (A.END,)),
    D.STARTING: (A.START,),
    **dict.fromkeys((D.RUNS, D.UNSURE), ()),
}
"""What the guardian does if statepipe itself was killed in a state.

Before GO the destination never runs the guest: the source cancels what its QEMU was doing, the destination ends its
QEMU. After GO the source does nothing, since nothing is known there, and the destination runs the guest, as QEMU may be
about to do by itself: it does what it was told before statepipe died."""
