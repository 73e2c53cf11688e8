"""The source's side of a migration: send QEMU's stream to the other host, and give the guest away in two phases.

QEMU writes into a socketpair (qemu/migration.py) and stops at pre-switchover until both sides have agreed. To cancel,
the socketpair is shut down, so that not even a stalled link holds QEMU up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from statepipe.errors import QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.migration.coordinator import Coordinator
from statepipe.migration.peer import Peer
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.qemu.guest import demand_cont
from statepipe.qemu.migration import Outgoing, OutgoingSocket, outcome, reported
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.pace import Pace
from statepipe.qemu.runstates import FINAL, LIVE, SENT
from statepipe.recovery.handover import SWITCHOVER, Action, Event, Side, Source
from statepipe.recovery.journal import Journal
from statepipe.stages.watch import watch
from statepipe.state.saving import IDLE
from statepipe.typed import Any

CAPABILITIES = ("events", "return-path", "pause-before-switchover")

STATES = {
    "pre-switchover": Event.PRE_SWITCHOVER,
    "completed": Event.COMPLETED,
    "failed": Event.FAILED,
    "cancelled": Event.FAILED,
}
"""The events of QEMU's migration states. Every other state, also one of a later QEMU, is on the way."""

AT_ONCE = ("pre-switchover", "completed")
"""States that count as soon as QEMU's event reports them, as the guest stands still: to ask QEMU takes 1 to 10 ms."""

LOOK = 1.0
"""Seconds between two looks at QEMU's figures."""


@dataclass(frozen=True, slots=True)
class MigrateLimits:
    """Seconds (None: no limit) that the guest's memory may take, and what happens then: `cancel`, or `suspend`, which
    stops the guest so that the rest is soon sent (it runs on at the destination). `switchover` is how many seconds it
    may be stopped at the end until the destination has all of it."""

    seconds: float | None = None
    then: str = "cancel"
    switchover: float | None = None


class Departure(Coordinator):
    """Runs the source's side; `side` has reached PRECOPY.

    The caller sets the capabilities; `words` get the plain stream; `was` is the guest's run state, which it has again
    wherever it ends up.
    """

    def __init__(
        self,
        monitor: Monitor,
        peer: Peer,
        words: Sequence[NamedStage],
        journal: Journal,
        *,
        side: Side[Source],
        was: str,
        limits: MigrateLimits | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(side, monitor, peer, journal, say)
        self.was, self._limits = was, limits or MigrateLimits()
        self.switchover = self._limits.switchover
        self.stream = QemuStream()
        self.stranded: QemuError | None = None  # why a guest that stayed here does not run
        self.stopped: float | None = None  # when the guest was stopped, for the switchover or before (time.monotonic)
        self._last_stop: float | None = None  # when QEMU's event said so
        self._heard: set[str] = set()  # QEMU's states that have become events
        self._figures: dict[str, Any] = {}
        self._migration = Outgoing(monitor)  # if it is not begun, what QEMU does with its guest is another client's
        self._begun = threading.Event()  # QEMU was told to migrate, or never will be
        self._is_handing = False  # QEMU was told to send the last bytes: before that it cannot have sent all for us
        self._socket = OutgoingSocket(IDLE)
        stages = [("watch", watch(self.stream, lambda message: True)), *words]
        self._pipeline = Pipeline(self._socket.source, stages, peer.outgoing)

    @property
    def runs(self) -> bool:
        """Whether the guest runs again, wherever it ends up."""
        return self.was in LIVE

    def stop_guest(self) -> None:
        """Stop the guest before its memory is sent. Raises QemuError."""
        if self.runs:
            self.stopped = self.stopped or time.monotonic()
        self.monitor.execute("stop")

    def run(self) -> Source:
        """Migrate, and return the final state. `cause` is the first thing that went wrong."""
        with self._socket:
            self.coordinate(self._begin, self._act_on_qemu, self._socket.shut)
        state: Source = self.side.state
        return state

    def status(self) -> dict[str, Any]:
        """Return the status for JSON: the pipeline's and its links', `phase`, and QEMU's figures."""
        return self._pipeline.status() | {"phase": self.side.state.name.lower(), "migration": self._figures}

    def last_figures(self) -> dict[str, Any]:
        """Return QEMU's figures at the end; the last known ones if QEMU has gone or is silent."""
        with suppress(QemuGone, QemuSilent):
            self._figures = self.monitor.migration()
        return self._figures

    def set_rate(self, rate: int | None) -> None:
        """Set the rate in bytes a second for QEMU (max-bandwidth) and a throttle stage; None removes the limit."""
        self.monitor.execute("migrate-set-parameters", max_bandwidth=rate or 0)
        if self._pipeline.has_throttle:
            self._pipeline.set_rate(rate)

    def waits_for(self) -> str | None:
        """Return what this state waits for, and how the guest is meanwhile."""
        late = self._late()
        return f"{late}; the guest here is stopped meanwhile" if self.side.state in SWITCHOVER else late

    def _late(self) -> str | None:
        """Return the same without the guest."""
        there = self.peer.name
        words = {
            Source.ASKED: f"{there} was asked whether all is well and has not answered",
            Source.HANDING: f"the last bytes are being sent to {there}",
            Source.ACCEPTED: f"{there} has the whole guest, but QEMU here has not reported that yet",
            Source.HANDED: f"{there} has not reported yet that it has the whole guest",
            Source.ORPHANED: f"QEMU here has ended; {there} has not reported yet whether it has the whole guest",
            Source.DOUBTED: f"the guest ran at {there} before it was given away; QEMU here is still sending",
            Source.CANCELLING: "QEMU here was told to cancel the migration and has not answered; the guest was not "
            "given away",
            Source.RESUMING: "QEMU here has not reported yet that the guest is as it was before; the guest was not "
            "given away",
            Source.COMMITTED: f"{there} was told to run the guest and has not confirmed that it runs; until then the "
            "guest here stays stopped, even if statepipe is killed",
        }
        return words.get(self.side.state)

    def too_slow(self) -> StatepipeError:
        """Return why the switchover is undone."""
        what = f"the switchover took longer than {self.switchover:g} s: {self._late()}"
        return StatepipeError(what, hint="allow more time with --switchover-timeout SECONDS")

    def _begin(self) -> None:
        self.monitor.on_events(self._hear)
        try:
            self._socket.start(self._migration)
        finally:
            self._begun.set()
        self.spawn("stream", self._send, Event.BROKEN)
        self.spawn("back", self._receive)
        self.spawn("qemu", self._follow)

    def _send(self) -> None:
        self._pipeline.pour()
        self.peer.outgoing.commit()

    def _receive(self) -> None:
        """Write the return path to QEMU, for as long as it is open."""
        for buffer in self.peer.incoming:
            self._socket.answer(buffer)

    def _hear(self, what: str) -> None:
        """Take note of an event of QEMU's, in the monitor's thread."""
        if what in ("STOP", "RESUME"):
            self._last_stop = time.monotonic() if what == "STOP" else None
        elif what in AT_ONCE and self._begun.is_set() and self._migration.is_begun:  # else it may be another client's
            self._report(what)

    def _report(self, status: str, reason: QemuError | None = None) -> None:
        """Turn a state of QEMU's migration into an event, once."""
        if status in STATES and status not in self._heard:
            self._heard.add(status)
            if status == "pre-switchover":
                self.stopped = self.stopped or self._last_stop or time.monotonic()
            self.put(STATES[status], reason)

    def _follow(self) -> None:
        """Turn QEMU's migration states into events, until the final one, and keep the time limit. QEMU is asked once
        every LOOK seconds, and how a migration failed; of AT_ONCE, an event was enough. Raises QemuGone."""
        status, pace, limits = "", Pace(), self._limits
        deadline = math.inf if limits.seconds is None else time.monotonic() + limits.seconds
        while status not in FINAL and "completed" not in self._heard:
            self._figures = self.monitor.our_migration()
            if (words := pace.judge(self._figures)) is not None and self.stopped is None:
                self._say(words)
            status = str(self._figures["status"])
            self._report(status, _reason(self._figures))
            if time.monotonic() >= deadline and status == "active":
                deadline = math.inf
                if limits.then == "suspend":
                    self.stop_guest()
                else:
                    hint = "use --on-timeout suspend, --auto-converge or a longer --downtime-limit"
                    what = f"the guest's memory was not sent within {limits.seconds:g} s"
                    self.put(Event.CANCEL, StatepipeError(what, hint=hint))
            if status not in FINAL:
                self.monitor.migration_settled(LOOK)

    def _act_on_qemu(self, action: Action) -> None:
        if action is Action.CONTINUE:
            self.spawn("continue", self._continue)
        elif action is Action.CANCEL:
            self._socket.shut()
            self.spawn("cancel", self._cancel, Event.FAILED)
        elif action is Action.RESUME:
            self.spawn("resume", self._resume, Event.STRANDED)

    def _continue(self) -> None:
        """In its own thread: QEMU may answer only after the last bytes, and meanwhile their failure must be heard."""
        self._is_handing = True
        self.monitor.execute("migrate-continue", state="pre-switchover")

    def _cancel(self) -> None:
        """Cancel the migration and report its outcome, whatever happened to the other threads. Raises QemuError."""
        self._begun.wait()
        if not self._migration.is_begun:
            self.put(Event.FAILED)
            return
        try:
            figures = outcome(self.monitor, cancels=True)
        except QemuSilent as error:
            self.put(Event.OVERDUE, error)
        else:
            self.put(Event.COMPLETED if figures["status"] == "completed" else Event.FAILED, _reason(figures))

    def _resume(self) -> None:
        """Have the guest as before: QEMU resumes by itself only a guest that it stopped itself. Raises QemuGone.

        A guest that another client's migration has sent meanwhile runs elsewhere and stays stopped here.
        """
        try:
            self.monitor.wait_until_running()
            state = self.monitor.run_state()
            if self.runs and state not in LIVE and (self._migration.is_begun or state != SENT):
                if state == SENT:
                    demand_cont(self.monitor, self.was)
                self.monitor.resume(sent=self._is_handing and self.monitor.broken_off is None)
        except QemuGone:
            raise
        except QemuSilent as error:
            self.put(Event.OVERDUE, error)
        except QemuError as error:
            self.stranded = error
            self.put(Event.STRANDED, error)
        else:
            self.put(Event.RESUMED)


def _reason(figures: dict[str, Any]) -> QemuError | None:
    failed = figures["status"] in ("failed", "cancelled")
    return QemuError(reported(figures, "it gives no reason")) if failed else None
