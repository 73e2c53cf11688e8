"""What both halves of a migration are: threads that turn what happens into events, and one that decides and acts.

Whatever is heard (of QEMU, of the other host, of the stream that flows, of a user) becomes an event in one queue. One
thread takes them one by one, looks into the table (formats/handover.py), writes down the new state and does what the
table says: so no two decisions are ever under way, and no signal comes into the midst of one. The main thread waits;
a signal there is an event as well.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from typing import Any

from statepipe.commands.journal import Journal
from statepipe.commands.terms import STEPS, step_of
from statepipe.engine.peer import PARTING, Message, Peer
from statepipe.errors import InterruptedBySignal, PeerError, QemuError, QemuGone, StatepipeError
from statepipe.formats.handover import Action, Destination, Event, Side, Source
from statepipe.qemu.monitor import Monitor
from statepipe.shapes import told
from statepipe.threads import ENDING, forget_late, held, start

FORWARD = (Event.PRE_SWITCHOVER, Event.READY, Event.COMPLETED, Event.ACCEPTED, Event.GO)
"""Events that bring the guest nearer to the other host."""


class Coordinator:
    """One half. `cause` is the first error that was heard of, which is the one to tell."""

    def __init__(self, side: Side[Any], monitor: Monitor, peer: Peer, journal: Journal) -> None:
        self.side = side
        self.monitor = monitor
        self.peer = peer
        self.journal = journal
        self.cause: BaseException | None = None
        self._events: queue.SimpleQueue[tuple[Event, BaseException | None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def put(self, event: Event, cause: BaseException | None = None) -> None:
        """Something happened; from any thread."""
        self._events.put((event, cause))

    def spawn(self, name: str, work: Callable[[], None], failed: Event = Event.CANCEL) -> threading.Thread:
        """Run `work` in a thread of its own; what it raises becomes an event: `failed`, unless somebody is gone."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # told when all is over: `cause` is raised in the main thread
                self.put(_what(error, failed), error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        start(thread)
        return thread

    def coordinate(self, begin: Callable[[], None], act: Callable[[Action], None], release: Callable[[], None]) -> None:
        """From `begin` to the end of the table; `act` does what is not a message, `release` wakes who waits for QEMU.

        A signal meanwhile asks for it to be undone. What is raised is a bug; the guardian then acts on what it left.
        """
        failures: list[BaseException] = []

        def decide() -> None:
            try:
                self._decide(begin, act)
            except BaseException as error:
                failures.append(error)

        with held():
            listener = self.spawn("peer", self._listen, Event.LOST)
            decider = threading.Thread(target=decide, name="decide", daemon=True)
            decider.start()
            while decider.is_alive():
                self._watch(decider)
            release()
            if failures:
                self._break_off(failures[0])
                raise failures[0]
            self._part(listener)
            if self.side.state in (Source.MOVED, Destination.RUNS):
                forget_late()

    def _watch(self, decider: threading.Thread) -> None:
        """Wait for its end, or for the signal that is the first and only one (engine/signals.py)."""
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            try:
                decider.join()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        except InterruptedBySignal as error:
            self.put(Event.CANCEL, error)

    def _decide(self, begin: Callable[[], None], act: Callable[[Action], None]) -> None:
        """Take events until nothing can change any more, and act on each."""
        unwritten = self.journal.write(self.side.state)
        if unwritten is not None:
            self.journal.write(self.side.state)
            self.put(Event.CANCEL, unwritten)
        self._attempt(begin)
        while not self.side.ended:
            for action in self._move(*self._events.get()):
                self._act(action, act)

    def _move(self, event: Event, cause: BaseException | None) -> tuple[Action, ...]:
        """Move on, the new state written down first. A step towards the other host that cannot be, is not taken."""
        if (unwritten := self._write(event)) is not None:
            event, cause = (Event.CANCEL, unwritten) if event in FORWARD else (event, cause)
            self._write(event)
        self.cause = self.cause or cause
        return self.side.hear(event)

    def _write(self, event: Event) -> StatepipeError | None:
        state, _ = self.side.after(event)
        return None if state is self.side.state else self.journal.write(state, event)

    def _act(self, action: Action, act: Callable[[Action], None]) -> None:
        if action in STEPS:
            self._attempt(lambda: self.peer.tell(self._message(action)))
        else:
            self._attempt(lambda: act(action))

    def _attempt(self, step: Callable[[], None]) -> None:
        """Take a step. What fails in it is an event: FAILED where QEMU said no."""
        try:
            step()
        except (PeerError, QemuError) as error:
            self.put(_what(error, Event.FAILED), error)

    def _message(self, action: Action) -> Message:
        """What is said of an action; with an end, what led to it."""
        ends = action in (Action.SEND_ABORT, Action.SEND_REFUSED)
        return {"event": STEPS[action].name} | ({"reason": told(self.cause)} if self.cause and ends else {})

    def _listen(self) -> None:
        """Turn the other side's messages into events, for as long as it speaks. Raises PeerError.

        However this ends, the other side is lost: nobody hears it any more.
        """
        while (message := self.peer.hear()) is not None:
            self.put(*step_of(message, type(self.side.state)))
        self.put(Event.LOST, PeerError("the other host has left"))

    def _break_off(self, error: BaseException) -> None:
        """Nothing decides any more, so nothing that QEMU has still to say is waited for."""
        self.monitor.hurry()
        self.peer.abandon(error)
        self.peer.leave()
        for thread in self._threads:
            thread.join(PARTING)

    def _part(self, listener: threading.Thread) -> None:
        """Let go of the other side, and wait for the threads that spoke with it."""
        self.peer.fall_silent()
        listener.join(PARTING)
        self.peer.part(in_peace=not listener.is_alive())
        self.peer.leave()
        for thread in self._threads:
            thread.join()


def _what(error: BaseException, otherwise: Event) -> Event:
    """The event that a failure is."""
    if isinstance(error, PeerError):
        return Event.LOST
    return Event.GONE if isinstance(error, QemuGone) else otherwise
