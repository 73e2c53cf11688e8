"""What both halves of a migration are: threads that turn what happens into events, and one that decides and acts.

Whatever is heard (of QEMU, of the other host, of the stream that flows, of a user, of the clock) becomes an event in
one queue. One thread takes them one by one, looks into the table (recovery/handover.py), writes down the new state and
does what the table says: so no two decisions are ever under way, and no signal comes into the midst of one. That thread
waits for nobody: what QEMU is told, a thread of its own tells it, and the answer is an event, however late. The main
thread waits; a signal there is an event as well.

Nothing is said of a guest before the table has come to its end, and no wait is silent: while an answer is late, we say
what is waited for.
"""

from __future__ import annotations

import math
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from statepipe.errors import InterruptedBySignal, PeerError, QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.migration.negotiation import STEPS, step_of
from statepipe.migration.peer import PARTING, Message, Peer
from statepipe.qemu.migration import ProcessWatch
from statepipe.qemu.monitor import DYING, Monitor
from statepipe.recovery.handover import HURRIED, SWITCHOVER, Action, Destination, Event, Side, Source
from statepipe.recovery.journal import Journal
from statepipe.shapes import told
from statepipe.threads import ENDING, End, held, join, start

ENDS = (Action.SEND_ABORT, Action.SEND_REFUSED, Action.SEND_UNSURE)
"""What tells the other side that it is over, and why."""

FORWARD = (Event.PRE_SWITCHOVER, Event.READY, Event.COMPLETED, Event.ACCEPTED, Event.GO)
"""Events that bring the guest nearer to the other host."""

UNANSWERED = (Source.UNANSWERED, Source.UNDECIDED, Destination.UNENDED, Destination.UNSURE)
"""Ends in which QEMU may still owe an answer: nobody waits for it any more."""

WORD, WORD_ON_STOPPING = 3.0, 1.0
"""Seconds in a state until we say what is waited for; the second once somebody wants us to end."""

PATIENCE, PATIENCE_ON_STOPPING = 30.0, 10.0
"""Seconds until an answer is overdue, where the table has something for that."""


class Coordinator:
    """One half. `cause` is the first error that was heard of, which is the one to tell. `say` tells people meanwhile.

    `switchover` is the bound in seconds of the states SWITCHOVER together, if they have one.
    """

    switchover: float | None = None

    def __init__(
        self, side: Side[Any], monitor: Monitor, peer: Peer, journal: Journal, say: Callable[[str], object]
    ) -> None:
        self.side = side
        self.monitor = monitor
        self.peer = peer
        self.journal = journal
        self.cause: BaseException | None = None
        self.told: set[Event] = set()  # what the other side was told, or may have been
        self._say = say
        self.pid = monitor.pid
        self._process = ProcessWatch(self.pid)
        self._events: queue.SimpleQueue[tuple[Event, BaseException | None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_stopping = False
        self.signal: InterruptedBySignal | None = None  # the one that came, in time or too late
        self._word_at = self._overdue_at = self._bound_at = math.inf

    def put(self, event: Event, cause: BaseException | None = None) -> None:
        """Something happened; from any thread."""
        self._events.put((event, cause))

    def spawn(self, name: str, work: Callable[[], None], failed: Event = Event.CANCEL) -> threading.Thread:
        """Run `work` in a thread of its own; what it raises becomes an event: `failed`, unless somebody is gone."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # told when all is over: `cause` is raised in the main thread
                self.put(self._what(error, failed), error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        start(thread)
        return thread

    def coordinate(self, begin: Callable[[], None], act: Callable[[Action], None], release: Callable[[], None]) -> None:
        """From `begin` to the end of the table; `act` does what is not a message, `release` wakes who waits for QEMU.

        A signal meanwhile asks for it to be undone. What is raised is a bug; the guardian then acts on what it left.
        """
        failures: list[BaseException] = []
        over = End()

        def decide() -> None:
            try:
                self._decide(begin, act)
            except BaseException as error:
                failures.append(error)
            finally:
                over.tell()

        with held():
            listener = self.spawn("peer", self._listen, Event.LOST)
            start(threading.Thread(target=decide, name="decide", daemon=True))
            while not over.come:
                self._watch(over)
            release()
            if not failures and not self.side.ended:
                failures.append(AssertionError(f"nothing decides any more, at {self.side.state}"))
            if failures:
                self._break_off(failures[0])
                raise failures[0]
            self._part(listener)
            self._hear_late()

    def _watch(self, over: End) -> None:
        """Wait for the end, or for the signal that is the first and only one (pipeline/signals.py)."""
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            try:
                over.wait()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        except InterruptedBySignal as error:
            self.signal = error
            self.put(Event.CANCEL, error)

    def _hear_late(self) -> None:
        """A signal that came once all was decided takes no word of how it ended away, nor what is left to be done."""
        while (late := signal.sigtimedwait(ENDING, 0)) is not None:
            self.signal = self.signal or InterruptedBySignal(late.si_signo)

    # --- deciding

    def _decide(self, begin: Callable[[], None], act: Callable[[Action], None]) -> None:
        """Take events until nothing can change any more, and act on each."""
        unwritten = self.journal.write(self.side.state)
        if unwritten is not None:
            self.journal.write(self.side.state)
            self.put(Event.CANCEL, unwritten)
        self._enter()
        self.spawn("begin", begin, Event.FAILED)
        while not self.side.ended:
            for action in self._move(*self._next()):
                self._act(action, act)

    def _next(self) -> tuple[Event, BaseException | None]:
        """The next event, also of the clock; while there is none, people hear what is waited for."""
        while True:
            due = min(self._word_at, self._overdue_at, self._bound_at)
            try:
                return self._events.get(timeout=None if due is math.inf else max(due - time.monotonic(), 0))
            except queue.Empty:
                if (event := self._fall_due()) is not None:
                    return event

    def _fall_due(self) -> tuple[Event, BaseException | None] | None:
        now = time.monotonic()
        if now >= self._bound_at:
            self._bound_at = math.inf
            return Event.CANCEL, self.too_slow()
        if now >= self._overdue_at:
            self._overdue_at = math.inf
            return Event.OVERDUE, QemuSilent(self.waits_for() or "no answer came")
        if now >= self._word_at:
            self._word_at = math.inf
            if (words := self.waits_for()) is not None:
                self._say(words)
        return None

    def waits_for(self) -> str | None:
        """What this state waits for, as a sentence; None where that may take as long as it likes."""
        raise NotImplementedError

    def too_slow(self) -> StatepipeError:
        """Why the switchover is undone once its time is over."""
        raise NotImplementedError

    def _enter(self) -> None:
        """A new state: what falls due in it."""
        now, state = time.monotonic(), self.side.state
        self._word_at = now + (WORD_ON_STOPPING if self._is_stopping else WORD)
        self._overdue_at = math.inf
        if self.side.heeds(Event.OVERDUE) and (self._is_stopping or state in HURRIED):
            self._overdue_at = now + (PATIENCE_ON_STOPPING if self._is_stopping else PATIENCE)
        if state not in SWITCHOVER:
            self._bound_at = math.inf
        elif self._bound_at is math.inf and self.switchover is not None:
            self._bound_at = now + self.switchover

    def _move(self, event: Event, cause: BaseException | None) -> tuple[Action, ...]:
        """Move on, the new state written down first. A step towards the other host that cannot be, is not taken."""
        if (unwritten := self._write(event)) is not None:
            event, cause = (Event.CANCEL, unwritten) if event in FORWARD else (event, cause)
            self._write(event)
        self.cause = self.cause or cause
        before, stopping = self.side.state, isinstance(cause, InterruptedBySignal)
        actions = self.side.hear(event)
        self._is_stopping = self._is_stopping or stopping
        if stopping or self.side.state is not before:
            self._enter()
        return actions

    def _write(self, event: Event) -> StatepipeError | None:
        state, _ = self.side.after(event)
        return None if state is self.side.state else self.journal.write(state, event)

    def _act(self, action: Action, act: Callable[[Action], None]) -> None:
        """Do it. What fails in it is an event: FAILED where QEMU said no."""
        try:
            if action in STEPS:
                self.told.add(STEPS[action])
                self.peer.tell(self._message(action))
            else:
                act(action)
        except (PeerError, QemuError) as error:
            self.put(self._what(error, Event.FAILED), error)

    def _message(self, action: Action) -> Message:
        """What is said of an action; with an end, what led to it."""
        reason = {"reason": told(self.cause)} if self.cause and action in ENDS else {}
        return {"event": STEPS[action].name} | reason

    # --- hearing

    def _listen(self) -> None:
        """Turn the other side's messages into events, for as long as it speaks. Raises PeerError.

        However this ends, the other side is lost: nobody hears it any more.
        """
        for _ in Event:  # none is said twice
            if (message := self.peer.hear()) is None:
                raise PeerError("the other host has ended the session")
            self.put(*step_of(message, type(self.side.state)))
        raise PeerError("the other host sent more messages than a migration has steps")

    def _what(self, error: BaseException, otherwise: Event) -> Event:
        """The event that a failure is. Who lost QEMU's monitor has not lost QEMU: its process is looked at."""
        if isinstance(error, PeerError):
            return Event.LOST
        if isinstance(error, QemuGone):
            return Event.GONE if self.has_ended(DYING) else Event.MUTE
        return Event.CANCEL if isinstance(error, QemuSilent) and otherwise is Event.FAILED else otherwise

    def has_ended(self, patience: int = 0) -> bool:
        """Whether QEMU's process was seen to have ended, within so many milliseconds; not so where it is not known."""
        return self._process.has_ended(patience)

    # --- leaving

    def _break_off(self, error: BaseException) -> None:
        """Nothing decides any more, so nothing that QEMU has still to say is waited for."""
        self.monitor.hurry()
        self.peer.abandon(error)
        self.peer.leave()
        self._join(PARTING)

    def _part(self, listener: threading.Thread) -> None:
        """Let go of the other side, and wait for the threads that spoke with it, and with a QEMU that answers.

        That the guest runs here, the source hears also once a link is back: else a person would have to decide there.
        """
        self.peer.fall_silent()
        ended = join(listener, max(PARTING, self.peer.patience) if self.side.state is Destination.RUNS else PARTING)
        self.peer.part(in_peace=ended)
        self.peer.leave()
        if self.side.state in UNANSWERED:
            self.monitor.hurry()
        self._join(PARTING if self.side.state in UNANSWERED else None)

    def _join(self, within: float | None) -> None:
        while self._threads:
            join(self._threads.pop(), within)
        self._process.close()
