"""The source's half of a migration: QEMU's stream goes to the other host, its guest is given away in two phases.

QEMU streams into a socketpair (`fd:`), with the return path, and stops at pre-switchover until both sides have said
that all is well. Cancelling shuts the socketpair, so that not even a stalled link can hold QEMU.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statepipe.errors import QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.migration.coordinator import Coordinator
from statepipe.migration.peer import Peer
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.qemu.guest import demand_cont
from statepipe.qemu.migration import Outgoing, OutgoingSocket, outcome, reported
from statepipe.qemu.monitor import FINAL, Monitor
from statepipe.qemu.pace import Pace
from statepipe.qemu.runstates import LIVE, SENT
from statepipe.recovery.handover import SWITCHOVER, Action, Event, Side, Source
from statepipe.recovery.journal import Journal
from statepipe.stages.watch import watch
from statepipe.state.saving import IDLE

CAPABILITIES = ("events", "return-path", "pause-before-switchover")

STATES = {
    "pre-switchover": Event.PRE_SWITCHOVER,
    "completed": Event.COMPLETED,
    "failed": Event.FAILED,
    "cancelled": Event.FAILED,
}
"""What QEMU's migration states are to us; every other, and any that a later QEMU adds, is on the way."""

LOOK = 1.0
"""Seconds between two looks at QEMU's figures, for who asks how it goes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the guest's memory may take, in seconds (None: for ever), and what happens then: `cancel`, or
    `suspend`, which stops the guest so that the rest is soon through: it runs on over there. And how long it may stand
    still at the end until the other host has all of it, in seconds (None: for ever)."""

    seconds: float | None = None
    then: str = "cancel"
    switchover: float | None = None


class Departure(Coordinator):
    """Runs the source's half; `side` has reached PRECOPY. The capabilities are the caller's to
    set; `words` see the plain stream; `was` is the guest's run state, which it is to have wherever it ends up."""

    def __init__(
        self,
        monitor: Monitor,
        peer: Peer,
        words: Sequence[NamedStage],
        journal: Journal,
        *,
        side: Side[Source],
        was: str,
        limits: Limits | None = None,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(side, monitor, peer, journal, say)
        self.stream = QemuStream()
        self.stranded: QemuError | None = None  # why a guest that stayed here does not run
        self.stopped: float | None = None  # when it was told to stop before its time (time.monotonic)
        self._figures: dict[str, Any] = {}
        self._begun = threading.Event()  # QEMU was told to migrate, or never will be
        self._is_handing = False  # QEMU was told to send the last bytes: only then has it sent all of them for us
        self._migration = Outgoing(monitor)  # if it is not begun, what QEMU does with its guest is another's migration
        self.was, self._limits = was, limits or Limits()
        self.switchover = self._limits.switchover
        self._socket = OutgoingSocket(IDLE)
        stages = [("watch", watch(self.stream, lambda message: True)), *words]
        self._pipeline = Pipeline(self._socket.source, stages, peer.outgoing)

    @property
    def runs(self) -> bool:
        """Whether it is to go on, wherever it ends up."""
        return self.was in LIVE

    def stop_guest(self) -> None:
        """Before its memory is through. Raises QemuError."""
        if self.runs:
            self.stopped = time.monotonic()
        self.monitor.execute("stop")

    def run(self) -> Source:
        """Migrate; where it ended. What went wrong first is in `cause`."""
        with self._socket:
            self.coordinate(self._begin, self._act_on_qemu, self._socket.shut)
        state: Source = self.side.state
        return state

    def status(self) -> dict[str, Any]:
        """How it goes, ready for JSON: the pipeline's and its links', `phase`, and QEMU's figures."""
        return self._pipeline.status() | {
            "phase": self.side.state.name.lower(),
            "migration": self._figures,
        }

    def last_figures(self) -> dict[str, Any]:
        """QEMU's at the end; the last that it told, where it has gone or is silent."""
        with suppress(QemuGone, QemuSilent):
            self._figures = self.monitor.migration()
        return self._figures

    def set_rate(self, rate: int | None) -> None:
        """In bytes a second, for QEMU (max-bandwidth) and for a throttle on the way, if there is one; None lifts it."""
        self.monitor.execute("migrate-set-parameters", max_bandwidth=rate or 0)
        if self._pipeline.has_throttle:
            self._pipeline.set_rate(rate)

    def waits_for(self) -> str | None:
        """What this state waits for, and how the guest is meanwhile."""
        late = self._late()
        return f"{late}; the guest stands still here meanwhile" if self.side.state in SWITCHOVER else late

    def _late(self) -> str | None:
        """The same without the guest, of which something else is true once the wait is over."""
        there = self.peer.name
        words = {
            Source.ASKED: f"{there} was asked whether all is well and has not answered",
            Source.HANDING: f"the last bytes are on their way to {there}",
            Source.ACCEPTED: f"{there} has the whole guest, and QEMU here has not said so yet",
            Source.HANDED: f"{there} has not said yet that it has the whole guest",
            Source.ORPHANED: f"QEMU here has ended; {there} has not said yet whether it has the whole guest",
            Source.DOUBTED: f"the guest ran at {there} before it was given away; QEMU here is still sending",
            Source.CANCELLING: "QEMU here was told to undo the migration and has not answered; the guest was not given "
            "away",
            Source.RESUMING: "QEMU here has not said yet that the guest is as it was before; the guest was not given "
            "away",
            Source.COMMITTED: f"{there} was told to run the guest and has not said yet that it does; until it does, "
            "whether it runs there is not known, and the guest here stands still, also if statepipe is killed",
        }
        return words.get(self.side.state)

    def too_slow(self) -> StatepipeError:
        """Why the switchover is undone."""
        what = f"the switchover was not through after {self.switchover:g} s: {self._late()}"
        return StatepipeError(what, hint="--switchover-timeout SECONDS gives it longer")

    def _begin(self) -> None:
        try:
            self._socket.start(self._migration)
        finally:
            self._begun.set()
        self.spawn("stream", self._send, Event.BROKEN)
        self.spawn("back", self._receive)
        self.spawn("qemu", self._follow)

    def _send(self) -> None:
        """QEMU's stream, followed to its own end, to the other host."""
        self._pipeline.pour()
        self.peer.outgoing.commit()

    def _receive(self) -> None:
        """The return path back into QEMU, for as long as it is open."""
        for buffer in self.peer.incoming:
            self._socket.answer(buffer)

    def _follow(self) -> None:
        """QEMU's migration states as events, until the last one. Raises QemuGone."""
        status, deadline, pace = "", self._deadline(), Pace()
        while status not in FINAL:
            self._figures = self.monitor.migration_changed(status, LOOK)
            if (words := pace.judge(self._figures)) is not None and self.stopped is None:
                self._say(words)
            if (now := str(self._figures["status"])) != status and now in STATES:
                self.put(STATES[now], _reason(self._figures))
            if time.monotonic() >= deadline and now == "active":
                deadline = math.inf
                self._run_out_of_time()
            status = now

    def _deadline(self) -> float:
        return math.inf if self._limits.seconds is None else time.monotonic() + self._limits.seconds

    def _run_out_of_time(self) -> None:
        if self._limits.then == "suspend":
            self.stop_guest()
        else:
            hint = "--on-timeout suspend, a longer --downtime-limit or --auto-converge bring it to an end"
            error = StatepipeError(f"the guest's memory was not through after {self._limits.seconds:g} s", hint=hint)
            self.put(Event.CANCEL, error)

    def _act_on_qemu(self, action: Action) -> None:
        if action is Action.CONTINUE:
            self.spawn("continue", self._continue)
        elif action is Action.CANCEL:
            self._socket.shut()
            self.spawn("cancel", self._cancel, Event.FAILED)
        elif action is Action.RESUME:
            self.spawn("resume", self._resume, Event.STRANDED)

    def _continue(self) -> None:
        """In a thread of its own: QEMU may answer only once the last bytes are out, and what breaks them off must be
        heard meanwhile."""
        self._is_handing = True
        self.monitor.execute("migrate-continue", state="pre-switchover")

    def _cancel(self) -> None:
        """See what becomes of the migration, whatever has become of who follows it. Raises QemuError."""
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
        """The guest as before: QEMU runs one again by itself only if it stopped it itself. Raises QemuGone.

        Another's migration may have given it away meanwhile: then it runs elsewhere, and stands still here for good.
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
