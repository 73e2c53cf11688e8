"""What both sides of a migration share: threads turn what happens into events, and one thread decides and acts.

Everything that happens (at QEMU, the other host, the stream, the user, the clock) becomes an event in one queue. One
thread takes them one by one, looks them up in the table (recovery/handover.py), writes down the new state and does what
the table says. So no two decisions overlap, and no signal interrupts one. That thread waits for nobody: another thread
tells QEMU, and QEMU's answer is an event, however late. The main thread waits; a signal there is an event too.

Nothing is reported of a guest before the table has reached an end. No wait is silent: while an answer is late, we say
what is waited for.
"""

from __future__ import annotations

import math
import queue
import signal
import threading
import time
from collections.abc import Callable

from statepipe.errors import InterruptedBySignal, PeerError, QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.migration.negotiation import STEPS, step_of
from statepipe.migration.peer import PARTING, Message, Peer
from statepipe.qemu.migration import ProcessWatch
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.process import DYING
from statepipe.recovery.handover import HURRIED, SWITCHOVER, Action, Destination, Event, Side, Source
from statepipe.recovery.journal import Journal
from statepipe.shapes import told
from statepipe.threads import ENDING, End, held, join, start
from statepipe.typed import Any

ENDS = (Action.SEND_ABORT, Action.SEND_REFUSED, Action.SEND_UNSURE)
"""The actions that tell the other side that it is over, and why."""

FORWARD = (Event.PRE_SWITCHOVER, Event.READY, Event.COMPLETED, Event.ACCEPTED, Event.GO)
"""The events that bring the guest nearer to the other host."""

UNANSWERED = (Source.UNANSWERED, Source.UNDECIDED, Destination.UNENDED, Destination.UNSURE)
"""The ends in which QEMU may still answer late, and nobody waits for it."""

WORD, WORD_ON_STOPPING = 3.0, 1.0
"""Seconds in a state until we say what is waited for: usually, and once a signal asked us to stop."""

OVERDUE, OVERDUE_ON_STOPPING = 30.0, 10.0
"""Seconds until an answer is overdue, if the state has a row for that: usually, and once a signal asked us to stop."""


class Coordinator:
    """One side. `cause` is the first error, which is the one to report; `say` informs the user meanwhile.

    `switchover` limits the states SWITCHOVER together, in seconds; None: no limit.
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
        self.signal: InterruptedBySignal | None = None  # the one that arrived, in time or too late
        self._word_at = self._overdue_at = self._bound_at = math.inf

    def put(self, event: Event, cause: BaseException | None = None) -> None:
        """Add an event, from any thread."""
        self._events.put((event, cause))

    def spawn(self, name: str, work: Callable[[], None], failed: Event = Event.CANCEL) -> threading.Thread:
        """Run `work` in a thread; what it raises becomes the event `failed`, or that somebody is gone."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # reported at the end: `cause` is raised in the main thread
                self.put(self._what(error, failed), error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        start(thread)
        return thread

    def coordinate(self, begin: Callable[[], None], act: Callable[[Action], None], release: Callable[[], None]) -> None:
        """Run from `begin` to an end of the table. `act` does what is not a message, `release` ends waits for QEMU.

        A signal meanwhile asks to undo the migration. What is raised is a bug; the guardian then acts.
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
                failures.append(AssertionError(f"the deciding thread has ended at {self.side.state}"))
            if failures:
                self.monitor.hurry()  # nothing that QEMU still answers matters
                self.peer.abandon(failures[0])
                self.peer.leave()
                self._join(PARTING)
                raise failures[0]
            self._part(listener)
            # a signal that arrived after the decision changes neither the result nor what is left to do
            while (late := signal.sigtimedwait(ENDING, 0)) is not None:
                self.signal = self.signal or InterruptedBySignal(late.si_signo)

    def _watch(self, over: End) -> None:
        """Wait for the end, or for a signal: there is only one (pipeline/signals.py)."""
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            try:
                over.wait()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        except InterruptedBySignal as error:
            self.signal = error
            self.put(Event.CANCEL, error)

    # --- deciding

    def _decide(self, begin: Callable[[], None], act: Callable[[Action], None]) -> None:
        """Take events until an end of the table, and act on each."""
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
        """Return the next event, also of the clock; while there is none, say what is waited for."""
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
            return Event.OVERDUE, QemuSilent(self.waits_for() or "no answer arrived")
        if now >= self._word_at:
            self._word_at = math.inf
            if (words := self.waits_for()) is not None:
                self._say(words)
        return None

    def waits_for(self) -> str | None:
        """Return what this state waits for, as a sentence; None if that may take any time."""
        raise NotImplementedError

    def too_slow(self) -> StatepipeError:
        """Return why the switchover is undone after its time."""
        raise NotImplementedError

    def _enter(self) -> None:
        """Set what falls due in a new state."""
        now, state = time.monotonic(), self.side.state
        self._word_at = now + (WORD_ON_STOPPING if self._is_stopping else WORD)
        self._overdue_at = math.inf
        if self.side.heeds(Event.OVERDUE) and (self._is_stopping or state in HURRIED):
            self._overdue_at = now + (OVERDUE_ON_STOPPING if self._is_stopping else OVERDUE)
        if state not in SWITCHOVER:
            self._bound_at = math.inf
        elif self._bound_at is math.inf and self.switchover is not None:
            self._bound_at = now + self.switchover

    def _move(self, event: Event, cause: BaseException | None) -> tuple[Action, ...]:
        """Write the new state down, then move to it. If a step of FORWARD cannot be written down, cancel instead."""
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
        """Do an action. Its failure is an event: FAILED if QEMU refused."""
        try:
            if action in STEPS:
                self.told.add(STEPS[action])
                self.peer.tell(self._message(action))
            else:
                act(action)
        except (PeerError, QemuError) as error:
            self.put(self._what(error, Event.FAILED), error)

    def _message(self, action: Action) -> Message:
        """Return the message of an action; of an end, with its reason."""
        reason = {"reason": told(self.cause)} if self.cause and action in ENDS else {}
        return {"event": STEPS[action].name} | reason

    # --- hearing

    def _listen(self) -> None:
        """Turn the other side's messages into events. Raises PeerError at their end: the other side is lost then."""
        for _ in Event:  # none is sent twice
            if (message := self.peer.hear()) is None:
                raise PeerError("the other host ended the session")
            self.put(*step_of(message, type(self.side.state)))
        raise PeerError("the other host sent more messages than a migration has steps")

    def _what(self, error: BaseException, otherwise: Event) -> Event:
        """Return the event of a failure. A monitor that broke off does not prove that QEMU ended: its process does."""
        if isinstance(error, PeerError):
            return Event.LOST
        if isinstance(error, QemuGone):
            return Event.GONE if self.has_ended(DYING) else Event.MUTE
        return Event.CANCEL if isinstance(error, QemuSilent) and otherwise is Event.FAILED else otherwise

    def has_ended(self, patience: int = 0) -> bool:
        """Return whether QEMU's process was seen to end within so many milliseconds; False if it is not known."""
        return self._process.has_ended(patience)

    # --- leaving

    def _part(self, listener: threading.Thread) -> None:
        """End the session, and wait for the threads that used it, and for those of a QEMU that answers.

        If the guest runs here, wait for a lost link to come back: else the source's user would have to decide.
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
