"""save --qmp: save a guest through its QEMU's monitor, and leave QEMU as it was but for what was asked.

QEMU writes its stream into a socketpair (qemu/migration.py), whose other direction is the return path: QEMU reports
`completed` only once we have answered that the file has its name. max-bandwidth (128 MiB/s by default) is lifted for
the save; it and the capabilities are restored afterwards. pause-before-switchover is not needed: until that answer the
guest stays QEMU's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from statepipe.ends.output import Output, new_output
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import InterruptedBySignal, QemuError, QemuSilent
from statepipe.pipeline.job import works_for
from statepipe.pipeline.pipeline import NamedStage
from statepipe.pipeline.signals import ignore
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import look
from statepipe.qemu.guest import Facts, demand_cont, describe_guest, hardware
from statepipe.qemu.images import Images, images
from statepipe.qemu.migration import OutgoingSocket, demand_completed, end_qemu
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.process import inspect_process, qemu_under
from statepipe.qemu.runstates import LIVE as LIVE_STATES
from statepipe.qemu.settings import HARMLESS, adjust, restore_after, restored
from statepipe.qemu.snapshot import may_break_off, read_out
from statepipe.recovery.guardian import GuardCommand, Guardian
from statepipe.recovery.resolve import demand_unsent
from statepipe.recovery.undoing import Undoing, undone
from statepipe.stages.packing import Packing
from statepipe.state.older import refuse_other_guest
from statepipe.state.rounds import Limits, Rounds
from statepipe.state.saving import IDLE, Plan, Saved, demand_lasting, save_stream
from statepipe.telling import Tell
from statepipe.typed import Any

LIVE = "live"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A save that succeeded: the file, QEMU's own figures, the seconds that the guest was stopped for it, its run state
    now, and what to beware of."""

    saved: Saved
    migration: dict[str, Any]
    downtime: float
    run_state: str
    doubts: str | None


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """What was asked for. `then` is stay, cont or quit, or LIVE if the guest runs on throughout. `capabilities` are
    set in addition to ours. `replaceable` says which files the new one may replace, as for `new_output`, and None that
    an object may replace another one."""

    path: str
    packing: Packing
    words: Sequence[NamedStage]
    seal: Sequence[NamedStage]
    then: str
    limits: Limits = field(default_factory=Limits)
    capabilities: tuple[str, ...] = ()
    replaceable: Replaceable | None = None


def save_by_qmp(address: str, request: SaveRequest, tell: Tell, guard: GuardCommand) -> Outcome:
    """Save the guest behind the monitor at `address`; `tell` hears what is waited for.

    The file is begun before QEMU is told anything: if it cannot be, nothing happens. Raises StatepipeError, with the
    guest as it was before; if we are killed, the guardian that `guard` starts sees to that.
    """
    with (
        new_output(
            request.path, replaceable=request.replaceable, overwrite=request.replaceable is None, tell=tell
        ) as sink,
        Guardian(guard) as guardian,
        closing(Monitor(address, tell=tell)) as monitor,
        undone(guardian, monitor, address) as undoing,
    ):
        live = request.then == LIVE
        monitor.demand_handover()
        works_for(monitor.pid, once=live)
        before = monitor.run_state()
        demand_unsent(before, address)
        monitor.demand_idle()
        if request.then == "cont":
            demand_cont(monitor, before)
        guest = describe_guest(monitor)
        refuse_other_guest(sink, guest["name"], guest["uuid"])
        disks = images(monitor)
        demand_lasting(disks.temporary)
        if live and disks.written and before in LIVE_STATES:
            tell(_MOVING_LIVE)
        keeps = live and not may_break_off(monitor)
        if keeps and request.limits.seconds is not None:
            what = "with this QEMU, --timeout cannot cancel a live save: the guest would never run again"
            raise QemuError(what, hint="use QEMU 8.1 or later, or save without --live")
        return _Save(monitor, request, undoing, before, tell, keeps=keeps).run(sink, disks, guest)


_MOVING = (
    "the guest runs on and writes to its disks: without a snapshot of them taken at the moment of the save, "
    "load will refuse this state"
)

_MOVING_LIVE = (
    "the guest runs on from here and writes to its disks: without a snapshot of them from this very moment load will "
    "refuse this state; how to take it: man statepipe-save, 'Live saves'"
)


def capabilities(*, live: bool) -> dict[str, bool]:
    """Return what a save sets on and off. QEMU allows hardly any other capability with background-snapshot."""
    return {"events": True, "return-path": not live, "background-snapshot": live}


class _Save:
    """The save itself, from the first command that changes anything at QEMU. `before` is the guest's run state;
    `keeps` says that its snapshot must not be broken off."""

    def __init__(
        self, monitor: Monitor, request: SaveRequest, undoing: Undoing, before: str, tell: Tell, *, keeps: bool
    ) -> None:
        self._monitor, self._request, self._undoing = monitor, request, undoing
        self._before, self._tell, self._keeps = before, tell, keeps
        self._rounds = Rounds(monitor, request.limits, tell, undoing.stop_guest)
        self._is_saved = False  # the file has its name, and QEMU has reported completed
        self._is_left = False  # the guardian undoes it
        self._figures: dict[str, Any] = {}
        self._downtime, self._run_state = 0.0, before
        self._doubts: str | None = None

    def run(self, sink: Output, disks: Images, guest: Facts) -> Outcome:
        """Raises StatepipeError. `guest` is what `describe_guest` tells."""
        live = self._request.then == LIVE
        wanted = capabilities(live=live) | dict.fromkeys(self._request.capabilities, True)
        harmless = () if live else HARMLESS
        settings = adjust(
            self._monitor, wanted, {"max-bandwidth": 0}, harmless, lambda was: self._undoing.begin(self._before, was)
        )
        try:
            saved = self._pour(sink, self._plan(disks, guest), lambda: self._leave(sink, settings))
        except BaseException as error:
            if not (self._is_saved or self._is_left):
                restore_after(error, self._monitor, settings)
            raise
        is_told = live and self._before in LIVE_STATES
        moving = _MOVING if disks.written and self._run_state == "running" and not is_told else None
        doubts = "; ".join(filter(None, [self._doubts, moving])) or None
        return Outcome(saved, self._figures, self._downtime, self._run_state, doubts)

    def _plan(self, disks: Images, told: Facts) -> Plan:
        monitor, request = self._monitor, self._request
        guest = told | {"live": request.then == LIVE, "run_state_before": self._before}
        guest["hardware"] = hardware(monitor)
        if process := inspect_process(qemu_under(monitor.pid)):
            guest["command"] = list(process.command)
        # a live save has the guest of its first moment, any other that of its last
        early: list[Disk] | None = look(disks) if request.then == LIVE else None

        def last() -> dict[str, Any]:
            return {} if self._undoing.stopped is None else {"stopped_for_it": True}

        return Plan(
            request.packing, request.words, request.seal, guest, lambda: look(disks) if early is None else early, last
        )

    def _pour(self, sink: Output, plan: Plan, leave: Callable[[], None]) -> Saved:
        """Save the stream to the file. After a failure QEMU is not held up, and the guest is as before, as far as QEMU
        answers. Raises StatepipeError."""

        def approve() -> None:
            self._figures = demand_completed(self._monitor.migration_outcome())

        with OutgoingSocket(IDLE) as stream:
            try:
                if self._request.limits.offline:
                    self._undoing.stop_guest()
                if self._keeps:
                    self._undoing.keep(stream.fd)
                stream.start(self._undoing.migration)
                with self._rounds.followed():
                    try:
                        return save_stream(plan, stream.source, sink, stream.answer, approve, leave)
                    except BaseException as error:
                        # QEMU's main loop waits while it writes its last bytes. If nobody reads them, it answers no
                        # command, and the thread that follows the rounds waits for an answer.
                        if isinstance(error, InterruptedBySignal):
                            self._monitor.hurry()
                        if not (self._is_saved or self._keeps):
                            stream.shut()
                        raise
            except BaseException as error:
                if self._is_saved:
                    raise
                overdue = self._rounds.overdue
                cause = error if overdue is None or isinstance(error, InterruptedBySignal) else overdue
                cause = self._break_off(stream, cause)
                raise cause from (None if cause is error else error)

    def _leave(self, sink: Output, settings: Mapping[str, Any]) -> None:
        """Leave the guest as was asked; from now on nothing that QEMU answers undoes the file. Raises QemuError."""
        self._is_saved = True
        self._doubts = restored(self._monitor, settings)
        stopped, then = self._undoing.stopped, self._request.then
        self._downtime = self._figures.get("downtime", 0) / 1000 if stopped is None else time.monotonic() - stopped
        try:
            if then == "quit":
                end_qemu(self._monitor)
                self._run_state = "ended"
            else:
                if then == "cont":
                    self._monitor.resume(sent=True)
                self._run_state = self._monitor.run_state()
        except QemuError as error:
            error.advise(f"{sink.name} holds the whole state", first=True)
            raise
        self._undoing.over()
        ignore()

    def _break_off(self, stream: OutgoingSocket, error: BaseException) -> BaseException:
        """End QEMU's migration, and let a guest run on that we have stopped. Return the error to raise, whose hint says
        what QEMU reports of both."""
        in_haste = isinstance(error, InterruptedBySignal | QemuSilent)
        if in_haste:
            self._monitor.hurry()
        if self._undoing.migration.is_begun and self._keeps:
            if in_haste:
                self._is_left = True  # to the guardian: it has the stream too, and as much time as that takes
                return error
            read_out(stream.fd, self._monitor, self._tell)
        stream.close()
        return self._undoing.undo(error)
