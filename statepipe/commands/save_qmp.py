"""save --qmp: drive QEMU through its monitor, and leave it as it was found, but for what was asked.

The stream comes over a socketpair whose one end is handed to QEMU: unlike exec: it can be cancelled and yanked, QEMU
waits for nobody's exit, and the return path carries the verdict. max-bandwidth (128 MiB/s by default) is lifted for
the save; it and the capabilities are put back afterwards. pause-before-switchover is not needed: until the return
path has answered, QEMU's guest is its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from statepipe.commands.guardian import Command, Guardian
from statepipe.commands.outgoing import IDLE, Plan, Saved, demand_lasting, save_stream
from statepipe.commands.resolve import demand_unsent
from statepipe.commands.rounds import Limits, Rounds
from statepipe.ends.fd import FdSource, write_all
from statepipe.ends.output import Output, new_output
from statepipe.engine.desk import works_for
from statepipe.engine.pipeline import NamedStage
from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, QemuSilent, StatepipeError, TruncatedError
from statepipe.formats.handover import Source
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import look
from statepipe.qemu.guest import demand_cont, describe_guest
from statepipe.qemu.hardware import hardware
from statepipe.qemu.images import Images, images
from statepipe.qemu.monitor import Monitor, Tell, demand_completed
from statepipe.qemu.process import inspect_process, qemu_under
from statepipe.qemu.runstates import LIVE as LIVE_STATES
from statepipe.qemu.settings import HARMLESS, adjusted
from statepipe.qemu.snapshot import may_break_off, read_out
from statepipe.stages.packing import Packing

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
    wanted beside ours."""

    path: str
    packing: Packing
    words: Sequence[NamedStage]
    seal: Sequence[NamedStage]
    then: str
    limits: Limits = field(default_factory=Limits)
    capabilities: tuple[str, ...] = ()


def save_by_qmp(address: str, request: Request, tell: Tell, guard: Command) -> Outcome:
    """Save the guest behind the monitor at `address`; `tell` hears what it is waited for. Raises StatepipeError; the
    guest then is as it was, and so it is, by the guardian that `guard` starts, where we are killed.

    The file is begun before QEMU hears of anything: where it cannot be, nothing happens."""
    with (
        new_output(request.path) as sink,
        Guardian(guard) as guardian,
        closing(Monitor(address, tell=tell)) as monitor,
        _undone(guardian),
    ):
        live = request.then == LIVE
        monitor.demand_handover()
        works_for(monitor.pid, once=live)
        before = monitor.run_state()
        demand_unsent(before, address)
        if request.then == "cont":
            demand_cont(monitor, before)
        disks = images(monitor)
        demand_lasting(disks.temporary)
        keep: Keep | None = None
        if live and disks.written and before in LIVE_STATES:
            tell(_MOVING_LIVE)
        if live and not may_break_off(monitor):
            if request.limits.seconds is not None:
                what = "--timeout would break off a live save, after which this QEMU's guest stands still for good"
                raise QemuError(what, hint="QEMU 8.1 and later can; or save without --live")
            keep = Keep(guardian, monitor, tell)
        wanted = capabilities(live=live) | dict.fromkeys(request.capabilities, True)
        rounds = Rounds(monitor, request.limits, tell)
        with adjusted(monitor, wanted, {"max-bandwidth": 0}, () if live else HARMLESS) as settings:
            known = {"qmp": address, "runs": before in LIVE_STATES, "was": before, "before": settings}
            guardian.note({"state": Source.PRECOPY.name} | known)
            saved, migration = _save(monitor, request, sink, before, disks, rounds, keep)
            guardian.note({"over": True})  # the file is there: the guest is left as it was asked for
        downtime = migration.get("downtime", 0) / 1000
        if rounds.stopped is not None and before in LIVE_STATES:
            downtime = time.monotonic() - rounds.stopped
        run_state = _leave(monitor, request.then)
        moves_on = disks.written and run_state == "running" and not (live and before in LIVE_STATES)
        return Outcome(saved, migration, downtime, run_state, _MOVING if moves_on else None)


class Keep:
    """Has a snapshot that must not be broken off read to its end, here or by the guardian."""

    def __init__(self, guardian: Guardian, monitor: Monitor, tell: Tell) -> None:
        self._guardian, self._monitor, self._tell = guardian, monitor, tell

    def begin(self, stream: socket.socket) -> None:
        """Before QEMU begins to write to it."""
        self._guardian.note({}, {"snapshot": stream.fileno()})

    def read_out(self, stream: socket.socket) -> None:
        """The save has failed."""
        read_out(stream.fileno(), self._monitor, self._tell)


@contextmanager
def _undone(guardian: Guardian) -> Iterator[None]:
    """What fails in a way that was foreseen has been undone here."""
    try:
        yield
    except StatepipeError:
        guardian.settle()
        raise


_MOVING = (
    "the guest runs on and writes to its disks: without a snapshot of them taken at the moment of the save, "
    "load will refuse this state"
)

_MOVING_LIVE = (
    "the guest runs on from here and writes to its disks: without a snapshot of them from this very moment load will "
    "refuse this state; how that is taken: man statepipe, 'Saving a guest that runs on'"
)


def capabilities(*, live: bool) -> dict[str, bool]:
    """What the save wants on and off. background-snapshot goes with next to no other."""
    return {"events": True, "return-path": not live, "background-snapshot": live}


def _save(
    monitor: Monitor, request: Request, sink: Output, before: str, disks: Images, rounds: Rounds, keep: Keep | None
) -> tuple[Saved, dict[str, Any]]:
    def goes_on() -> bool:
        return before in LIVE_STATES and rounds.stopped is not None

    guest = describe_guest(monitor) | {"live": request.then == LIVE, "run_state_before": before}
    guest["hardware"] = hardware(monitor)
    if process := inspect_process(qemu_under(monitor.pid)):
        guest["command"] = list(process.command)
    plan = Plan(
        request.packing,
        request.words,
        request.seal,
        guest,
        _look(disks, request.then),
        lambda: _last(stopped=goes_on()),
    )
    outcome: dict[str, Any] = {}

    def approve() -> None:
        outcome.update(demand_completed(monitor.migration_outcome()))

    try:
        if request.limits.offline:
            rounds.stop_guest()
        ours = _start(monitor, keep)
    except BaseException as error:
        if goes_on():
            _let_go_on(monitor, error)
        raise
    with ours, FdSource(ours.fileno(), "the migration socket", IDLE) as source:
        try:
            with rounds.followed():
                saved = _flow(plan, source, sink, ours, monitor, approve, keep)
        except BaseException as error:
            cause = error if rounds.overdue is None or isinstance(error, InterruptedBySignal) else rounds.overdue
            _explain(monitor, cause, goes_on=goes_on())
            raise cause from (None if cause is error else error)
    return saved, outcome


def _last(*, stopped: bool) -> dict[str, Any]:
    """What the trailer says beside the stream and the disks: of a guest that ran until it was saved."""
    return {"stopped_for_it": True} if stopped else {}


def _flow(
    plan: Plan,
    source: FdSource,
    sink: Output,
    ours: socket.socket,
    monitor: Monitor,
    approve: Callable[[], None],
    keep: Keep | None,
) -> Saved:
    """Whatever fails, QEMU is held up no longer."""
    try:
        return save_stream(plan, source, sink, lambda message: _answer(ours, message), approve)
    except BaseException as error:
        if keep is not None:
            keep.read_out(ours)
        ours.close()
        _hurry_for(monitor, error)
        raise


def _look(disks: Images, then: str) -> Callable[[], list[Disk]]:
    """When to look at the disks: a live save holds the guest of its first moment, any other that of its last."""
    if then != LIVE:
        return lambda: look(disks)
    early = look(disks)
    return lambda: early


def _start(monitor: Monitor, keep: Keep | None) -> socket.socket:
    """Begin the migration into a socketpair; our end of it."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            if keep is not None:
                keep.begin(ours)
            monitor.give(theirs.fileno(), "statepipe-save")
            monitor.execute("migrate", uri="fd:statepipe-save")
    except BaseException:
        if keep is not None:  # QEMU may have begun all the same
            keep.read_out(ours)
        ours.close()
        raise
    return ours


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
            error.hint = "; ".join(filter(None, [error.hint, f"the guest was stopped for the save: {refused}"]))


def _hurry_for(monitor: Monitor, error: BaseException) -> None:
    if isinstance(error, InterruptedBySignal):
        monitor.hurry()


def _explain(monitor: Monitor, error: BaseException, *, goes_on: bool) -> None:
    """Wait until QEMU has given up too, let a guest go on that we have stopped, and add to the error what became of
    it."""
    _hurry_for(monitor, error)
    if isinstance(error, StatepipeError) and not isinstance(error, QemuGone):
        try:
            advice = None if isinstance(error, TruncatedError) else error.hint  # which only guesses what QEMU knows
            error.hint = "; ".join(filter(None, [_describe(monitor, goes_on=goes_on), advice]))
        except (QemuGone, QemuSilent) as gone:
            error.hint = "; ".join(filter(None, [str(gone), gone.hint]))


def _describe(monitor: Monitor, *, goes_on: bool) -> str:
    outcome = monitor.migration_outcome()
    monitor.wait_until_running()
    if goes_on and outcome["status"] != "completed" and monitor.run_state() not in LIVE_STATES:
        monitor.resume()
    reason = f" ({outcome['error-desc']})" if outcome.get("error-desc") else ""
    return f"QEMU says the migration {_PAST[outcome['status']]}{reason}; the guest is {monitor.run_state()}"


_PAST = {"completed": "completed", "failed": "failed", "cancelled": "was cancelled"}


def _leave(monitor: Monitor, then: str) -> str:
    """Do with the guest as asked; its run state afterwards."""
    if then == "quit":
        with suppress(QemuGone):  # it may end before its answer is out
            monitor.execute("quit")
        return "ended"
    if then == "cont":
        monitor.resume()
    return monitor.run_state()
