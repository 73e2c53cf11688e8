"""save --qmp: drive QEMU through its monitor, and leave it as it was found, but for what was asked.

The stream comes over a socketpair whose one end is handed to QEMU: unlike exec: it can be cancelled and yanked, QEMU
waits for nobody's exit, and the return path carries the verdict. max-bandwidth (128 MiB/s by default) is lifted for
the save; it and the capabilities are put back afterwards. pause-before-switchover is not needed: until the return
path has answered, QEMU's guest is its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from statepipe.ends.fd import FdSource, write_all
from statepipe.ends.output import Output, new_output
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import (
    InterruptedBySignal,
    QemuError,
    QemuGone,
    QemuSilent,
    StatepipeError,
    TruncatedError,
)
from statepipe.pipeline.job import works_for
from statepipe.pipeline.pipeline import NamedStage
from statepipe.pipeline.signals import ignore
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import look
from statepipe.qemu.guest import demand_cont, describe_guest, hardware
from statepipe.qemu.images import Images, images
from statepipe.qemu.monitor import Monitor, demand_completed
from statepipe.qemu.process import inspect_process, qemu_under
from statepipe.qemu.runstates import LIVE as LIVE_STATES
from statepipe.qemu.settings import HARMLESS, adjust, restore_after, restored
from statepipe.qemu.snapshot import may_break_off, read_out
from statepipe.recovery.guardian import Command, Guardian
from statepipe.recovery.resolve import demand_unsent
from statepipe.recovery.undoing import Undoing, undone
from statepipe.stages.packing import Packing
from statepipe.state.rounds import Limits, Rounds
from statepipe.state.saving import IDLE, Plan, Saved, demand_lasting, save_stream
from statepipe.telling import Tell

LIVE = "live"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A save that succeeded: the file, QEMU's own figures, the seconds that the guest stood still for it, how it was
    left, and what to beware of."""

    saved: Saved
    migration: dict[str, Any]
    downtime: float
    run_state: str
    doubts: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: `then` is stay, cont or quit, or LIVE where the guest runs on throughout. `capabilities` are
    wanted beside ours. `replaceable` tells which files the new one may replace, as `new_output` has it."""

    path: str
    packing: Packing
    words: Sequence[NamedStage]
    seal: Sequence[NamedStage]
    then: str
    limits: Limits = field(default_factory=Limits)
    capabilities: tuple[str, ...] = ()
    replaceable: Replaceable | None = None


def save_by_qmp(address: str, request: Request, tell: Tell, guard: Command) -> Outcome:
    """Save the guest behind the monitor at `address`; `tell` hears what it is waited for. Raises StatepipeError; the
    guest then is as it was, and so it is, by the guardian that `guard` starts, where we are killed.

    The file is begun before QEMU hears of anything: where it cannot be, nothing happens."""
    with (
        new_output(request.path, replaceable=request.replaceable) as sink,
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
        disks = images(monitor)
        demand_lasting(disks.temporary)
        if live and disks.written and before in LIVE_STATES:
            tell(_MOVING_LIVE)
        keeps = live and not may_break_off(monitor)
        if keeps and request.limits.seconds is not None:
            what = "--timeout would break off a live save, after which this QEMU's guest stands still for good"
            raise QemuError(what, hint="QEMU 8.1 and later can; or save without --live")
        return _Save(monitor, request, undoing, before, tell, keeps=keeps).run(sink, disks)


_MOVING = (
    "the guest runs on and writes to its disks: without a snapshot of them taken at the moment of the save, "
    "load will refuse this state"
)

_MOVING_LIVE = (
    "the guest runs on from here and writes to its disks: without a snapshot of them from this very moment load will "
    "refuse this state; how that is taken: man statepipe-save, 'Live saves'"
)


def capabilities(*, live: bool) -> dict[str, bool]:
    """What the save wants on and off. background-snapshot goes with next to no other."""
    return {"events": True, "return-path": not live, "background-snapshot": live}


class _Save:
    """The save itself, from the first word that changes anything at QEMU. `before` is the guest's run state; `keeps`
    says that its snapshot must not be broken off."""

    def __init__(
        self, monitor: Monitor, request: Request, undoing: Undoing, before: str, tell: Tell, *, keeps: bool
    ) -> None:
        self._monitor, self._request, self._undoing = monitor, request, undoing
        self._before, self._tell, self._keeps = before, tell, keeps
        self._rounds = Rounds(monitor, request.limits, tell, undoing.stops)
        self._is_saved = False  # the file has its name, and QEMU says completed
        self._is_left = False  # what is to be undone is the guardian's
        self._figures: dict[str, Any] = {}
        self._downtime, self._run_state = 0.0, before
        self._doubts: str | None = None

    def run(self, sink: Output, disks: Images) -> Outcome:
        """Raises StatepipeError."""
        live = self._request.then == LIVE
        wanted = capabilities(live=live) | dict.fromkeys(self._request.capabilities, True)
        harmless = () if live else HARMLESS
        settings = adjust(
            self._monitor, wanted, {"max-bandwidth": 0}, harmless, lambda was: self._undoing.begin(self._before, was)
        )
        try:
            saved = self._pour(sink, disks, lambda: self._leave(sink, settings))
        except BaseException as error:
            if not (self._is_saved or self._is_left):
                restore_after(error, self._monitor, settings)
            raise
        is_told = live and self._before in LIVE_STATES
        moving = _MOVING if disks.written and self._run_state == "running" and not is_told else None
        doubts = "; ".join(filter(None, [self._doubts, moving])) or None
        return Outcome(saved, self._figures, self._downtime, self._run_state, doubts)

    def _goes_on(self) -> bool:
        """Whether the guest ran, and was stopped for the save."""
        return self._before in LIVE_STATES and self._rounds.stopped is not None

    def _plan(self, disks: Images) -> Plan:
        monitor, request = self._monitor, self._request
        guest = describe_guest(monitor) | {"live": request.then == LIVE, "run_state_before": self._before}
        guest["hardware"] = hardware(monitor)
        if process := inspect_process(qemu_under(monitor.pid)):
            guest["command"] = list(process.command)

        def last() -> dict[str, Any]:
            return {"stopped_for_it": True} if self._goes_on() else {}

        return Plan(request.packing, request.words, request.seal, guest, _look(disks, request.then), last)

    def _pour(self, sink: Output, disks: Images, leave: Callable[[], None]) -> Saved:
        """The stream into the file. Whatever fails, QEMU is held up no longer, and the guest is as before, as far as
        QEMU answers."""
        plan = self._plan(disks)
        ours, theirs = socket.socketpair()
        with ours, FdSource(ours.fileno(), "the migration socket", IDLE) as source:
            try:
                with theirs:
                    self._start(ours, theirs)
                with self._rounds.followed():
                    try:
                        return save_stream(plan, source, sink, lambda word: _answer(ours, word), self._approve, leave)
                    except BaseException as error:
                        self._release(ours, error)
                        raise
            except BaseException as error:
                if self._is_saved:
                    raise
                overdue = self._rounds.overdue
                cause = error if overdue is None or isinstance(error, InterruptedBySignal) else overdue
                cause = self._break_off(ours, cause)
                raise cause from (None if cause is error else error)

    def _release(self, ours: socket.socket, error: BaseException) -> None:
        """Nothing waits for QEMU, nor QEMU for us, once the save has failed.

        QEMU writes its last bytes with its main loop held. While nobody reads them it answers no command, and the
        thread that follows its figures waits for one. A snapshot that must not be broken off is read to its end later.
        """
        if isinstance(error, InterruptedBySignal):
            self._monitor.hurry()
        if not (self._is_saved or self._keeps):
            with suppress(OSError):  # QEMU was first
                ours.shutdown(socket.SHUT_RDWR)

    def _start(self, ours: socket.socket, theirs: socket.socket) -> None:
        """Begin the migration into the socketpair. Raises QemuError."""
        if self._request.limits.offline:
            self._rounds.stop_guest()
        if self._keeps:
            self._undoing.keep(ours.fileno())
        self._monitor.give(theirs.fileno(), "statepipe-save")
        self._undoing.migrate("fd:statepipe-save")

    def _approve(self) -> None:
        self._figures = demand_completed(self._monitor.migration_outcome())

    def _leave(self, sink: Output, settings: Mapping[str, Any]) -> None:
        """Do with the guest as was asked. No word of QEMU's undoes the file any more. Raises QemuError."""
        self._is_saved = True
        self._doubts = restored(self._monitor, settings)
        self._downtime = self._figures.get("downtime", 0) / 1000
        if self._rounds.stopped is not None and self._goes_on():
            self._downtime = time.monotonic() - self._rounds.stopped
        try:
            self._run_state = _leave(self._monitor, self._request.then)
        except QemuError as error:
            error.advise(f"{sink.name} holds the whole state", first=True)
            raise
        self._undoing.over()
        ignore()

    def _break_off(self, ours: socket.socket, error: BaseException) -> BaseException:
        """Let QEMU give up too, and a guest go on that we have stopped. The error, whose hint tells what became of it;
        another where it only told that QEMU has gone."""
        in_haste = isinstance(error, InterruptedBySignal | QemuSilent)
        if in_haste:
            self._monitor.hurry()
        if self._undoing.is_begun and self._keeps:
            self._is_left = in_haste  # to the guardian, which has the stream too, and all the time that it takes
            if in_haste:
                return error
            read_out(ours.fileno(), self._monitor, self._tell)
        ours.close()
        if not self._undoing.is_begun:
            if self._goes_on():
                _let_go_on(self._monitor, error)
        elif isinstance(error, StatepipeError) and not isinstance(error, QemuGone):
            try:
                said = self._describe()
                if isinstance(error, TruncatedError):  # its hint only guesses what QEMU knows
                    error.hint = None
                error.advise(said, first=True)
            except QemuError as gone:  # or it would not have the guest go on
                error.hint = None
                error.advise(str(gone), gone.hint)
                if isinstance(error, TruncatedError) and isinstance(gone, QemuGone):
                    return QemuGone("QEMU went away before all of its guest was saved", hint=str(error))
        return error

    def _describe(self) -> str:
        """What QEMU says of the migration and of the guest, which goes on if it was stopped for it."""
        outcome = self._monitor.migration()
        if outcome["status"] != "none":  # QEMU may not have heard of it yet
            outcome = self._monitor.migration_outcome()
        self._monitor.wait_until_running()
        if self._goes_on() and self._monitor.run_state() not in LIVE_STATES and not self._monitor.has_sent():
            self._monitor.resume()
        reason = f" ({outcome['error-desc']})" if outcome.get("error-desc") else ""
        return f"QEMU says the migration {_PAST[outcome['status']]}{reason}; the guest is {self._monitor.run_state()}"


_PAST = {"completed": "completed", "failed": "failed", "cancelled": "was cancelled", "none": "has not begun"}


def _look(disks: Images, then: str) -> Callable[[], list[Disk]]:
    """When to look at the disks: a live save holds the guest of its first moment, any other that of its last."""
    if then != LIVE:
        return lambda: look(disks)
    early = look(disks)
    return lambda: early


def _answer(ours: socket.socket, message: bytes) -> bool:
    """Onto the return path. QEMU closes it when it is cancelled too, so only the monitor tells whether it is gone."""
    with suppress(BrokenPipeError):
        write_all(ours.fileno(), message)
    return True


def _let_go_on(monitor: Monitor, error: BaseException) -> None:
    """The guest that we have stopped, or have told QEMU to stop. It is waited for, also after a signal: a `stop` that
    is still on its way would leave it so. The error's hint tells of one that does not go on."""
    try:
        monitor.resume()
    except QemuError as refused:
        if isinstance(error, StatepipeError):
            error.advise(f"the guest was stopped for the save: {refused}")


def _leave(monitor: Monitor, then: str) -> str:
    """Do with the guest as asked; its run state afterwards."""
    if then == "quit":
        with suppress(QemuGone):  # it may end before its answer is out
            monitor.execute("quit")
        return "ended"
    if then == "cont":
        monitor.resume(sent=True)
    return monitor.run_state()
