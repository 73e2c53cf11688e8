"""migrate without a statepipe at the destination: to a QEMU that waits at tcp:// or unix://, or through a program.

Only QEMU's own report says how it went, so this is one phase, not two. The return path is on: QEMU here reports
`completed` only after the QEMU there has reported that it has loaded everything. After any failure before that, the
guest runs on here; what happens to it there later cannot be seen from here. If the program fails after that, we warn.

At a unix socket the other QEMU must belong to a user who may have the guest: root, us, `--peer`, or the user of the
guest's own QEMU, who has it already.

If no filter changes the stream, QEMU gets the connection itself, and takes as long as with its own tcp:. Bytes that
pass through us take 1.4 to 2.0 times as long.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress

from statepipe.ends.net import Patience, SocketSink, SocketSource
from statepipe.ends.relay import Backflow, Returning
from statepipe.errors import PeerError, QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.formats.qemu.stream import QemuStream
from statepipe.migration.migrate import UNMOVED, MigrateRequest, Report, movable
from statepipe.migration.source import LOOK
from statepipe.pipeline.job import at_work, works_for
from statepipe.pipeline.pipeline import Pipeline
from statepipe.pipeline.signals import forget_late, held, ignore
from statepipe.processes import Process, name_of_signal
from statepipe.qemu.migration import OutgoingSocket, demand_completed, end_qemu
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.process import owner
from statepipe.qemu.runstates import FINAL
from statepipe.qemu.settings import adjust, restore_after, restored
from statepipe.recovery.guardian import GuardCommand, Guardian
from statepipe.recovery.undoing import Undoing, undone
from statepipe.session.overunix import demand_known
from statepipe.stages.watch import watch
from statepipe.state.saving import IDLE
from statepipe.telling import Tell
from statepipe.transfer.endpoints import FarSink, connected_to, outgoing
from statepipe.typed import Any

FarEnd = AbstractContextManager[tuple[Returning, FarSink]]
"""What comes back from the other end, and the sink that leads there."""

CLOSING = 1000
"""Milliseconds in which a program that has closed its end should end too."""

LINGERING = 30.0
"""Seconds in which a program must end after the guest was sent: enough to write out what it holds. This is bounded, as
no signal ends the wait any more, and the migration is reported only after it."""


def to_address(request: MigrateRequest) -> FarEnd:
    """The address of the request. Entering raises PeerError."""
    return outgoing(request.plan)


@contextmanager
def to_program(command: str) -> Iterator[tuple[Returning, FarSink]]:
    """A shell's command line: the stream is its standard input, the return path its standard output.

    Raises StatepipeError if its exit status is not 0, or if it does not end within LINGERING.
    """
    ours, theirs = socket.socketpair()
    name = f"exec:{command}"
    with ours:
        with theirs:
            process = Process(["sh", "-c", command], {0: theirs.fileno(), 1: theirs.fileno(), 2: 2})
        try:
            with SocketSource(ours, name, Patience()) as returning:
                try:
                    yield returning, SocketSink(ours, name, Patience())
                except QemuError as error:
                    if not returning.bytes and process.has_ended(CLOSING):
                        _demand_success(process, name, error.hint)
                        hint = "; ".join(filter(None, [error.hint, _MUTE]))
                        raise QemuError(f"{name} ended, and no QEMU has answered", hint=hint) from error
                    raise
            if not process.has_ended(int(LINGERING * 1000)):
                raise StatepipeError(f"{name} still ran after {LINGERING:g} s, and was ended")
            _demand_success(process, name, "its own message is above")
        except PeerError as error:  # it only says that the program's end of the socket is closed
            if process.has_ended(CLOSING):
                _demand_success(process, name, error.hint)
            raise
        finally:
            process.kill()
            process.reap()


_MUTE = (
    "its standard output must return the answers of the destination's QEMU; to save the guest instead: "
    "statepipe save --qmp SOCKET FILE"
)


def _demand_success(process: Process, name: str, hint: str | None) -> None:
    """Raises StatepipeError."""
    if status := process.status():
        how = f"status {status}" if status > 0 else name_of_signal(-status)
        raise StatepipeError(f"{name} ended with {how}", hint=hint)


def migrate_plainly(request: MigrateRequest, far: FarEnd, name: str, tell: Tell, guard: GuardCommand) -> Report:
    """Move the guest through us to `far`, which users call `name`; `tell` hears what is waited for, and `guard` starts
    the guardian.

    Raises StatepipeError, whose hint says where the guest is.
    """
    report: Report | None = None
    try:
        with Guardian(guard) as guardian, closing(Monitor(request.qmp, tell=tell)) as monitor:
            was = _demand_movable(request, monitor)
            with far as (returning, sink), undone(guardian, monitor, request.qmp) as undoing:

                def go() -> tuple[int, dict[str, Any]]:
                    with OutgoingSocket(IDLE) as stream:
                        stream.start(undoing.migration)
                        back = Backflow(returning, stream.answer, stream.source.cancel)
                        back.start()
                        try:
                            sink.until_closed = lambda: back.wait(None)
                            with sink:
                                stages = [("watch", watch(QemuStream(), lambda message: True)), *request.plan.words]
                                Pipeline(stream.source, stages, sink).pour()
                                sink.commit()
                        finally:
                            stream.shut()
                            back.stop()
                        return sink.bytes, demand_completed(monitor.migration_outcome())

                report = _migrate(request, monitor, undoing, was, name, tell, go)
    except StatepipeError as error:
        if report is None:
            raise
        tell(f"{error}, after QEMU had reported that the guest has moved")
    return report


def migrate_directly(request: MigrateRequest, tell: Tell, guard: GuardCommand) -> Report:
    """Move the guest to the address of the request, which QEMU itself writes to. Raises StatepipeError, likewise."""
    with Guardian(guard) as guardian, closing(Monitor(request.qmp, tell=tell)) as monitor:
        was = _demand_movable(request, monitor)
        with connected_to(request.plan) as connection, undone(guardian, monitor, request.qmp) as undoing:

            def go() -> tuple[int, dict[str, Any]]:
                figures = Direct(monitor).run(connection, undoing)
                return int(figures.get("ram", {}).get("transferred", 0)), figures

            return _migrate(request, monitor, undoing, was, str(request.plan.address), tell, go)


def _demand_movable(request: MigrateRequest, monitor: Monitor) -> str:
    """Return the guest's run state, before the other end is connected to. Raises QemuError if it cannot be moved."""
    monitor.demand_handover()
    works_for(monitor.pid)
    return movable(monitor, request.qmp)


def _migrate(
    request: MigrateRequest,
    monitor: Monitor,
    undoing: Undoing,
    was: str,
    name: str,
    tell: Tell,
    go: Callable[[], tuple[int, dict[str, Any]]],
) -> Report:
    """What both have in common; `was` is the guest's run state, `go` migrates and returns the bytes sent and QEMU's
    figures."""
    if (connection := request.plan.ready) is not None:  # a silent listener may be anybody
        demand_known(name, connection, request.plan.peer, owner(monitor.pid))
    wanted = dict.fromkeys(("events", "return-path", *request.capabilities), True)
    before = adjust(monitor, wanted, request.parameters, known=lambda before: undoing.begin(was, before))
    try:
        if request.offline:
            undoing.stop_guest()
        sent, figures = go()
        with held():  # the guest has gone: no signal undoes that
            stopped = undoing.stopped
            downtime = figures.get("downtime", 0) / 1000 if stopped is None else time.monotonic() - stopped
            try:
                left = restored(monitor, before)
                undoing.over()
                if request.quits:
                    with suppress(QemuSilent):
                        end_qemu(monitor)
            finally:  # if QEMU refuses to quit, report that error rather than a signal
                ignore()
                forget_late()
    except BaseException as error:
        there = "the destination's QEMU may say why, on its standard error"
        cause = undoing.undo(error, cancels=True, if_failed=there)
        if isinstance(cause, StatepipeError) and not (undoing.has_touched or isinstance(cause, QemuGone)):
            cause.advise(UNMOVED, first=True)
        restore_after(cause, monitor, before)
        if cause is error:
            raise
        raise cause from error
    if left is not None:
        tell(left)
    if stopped is not None:
        tell(f"the guest was stopped before the migration, so it is paused at {name}: type cont at its QEMU's monitor")
    return Report(name, None, figures, downtime, sent, 0)


class Direct:
    """A migration whose bytes QEMU sends by itself, as a job that can be asked for its status."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._started = time.monotonic()
        self._figures: dict[str, Any] = {"status": "none"}

    def run(self, connection: socket.socket, undoing: Undoing) -> dict[str, Any]:
        """Migrate into the connection; return QEMU's figures at the end. Raises QemuError unless it completed."""
        with connection:
            undoing.migration.start(connection.fileno())
        with at_work(self):
            while self._figures["status"] not in FINAL:
                self._figures = self._monitor.migration_changed(str(self._figures["status"]), LOOK)
        return demand_completed(self._figures)

    def status(self) -> dict[str, Any]:
        """Return QEMU's figures for JSON, with the seconds and bytes that every job has."""
        sent = self._figures.get("ram", {}).get("transferred", 0)
        seconds = round(time.monotonic() - self._started, 3)
        flow = {"seconds": seconds, "bytes_in": sent, "bytes_out": sent, "stages": []}
        return flow | {"phase": str(self._figures["status"]), "migration": self._figures}

    def set_rate(self, rate: int | None) -> None:
        """Set QEMU's max-bandwidth in bytes a second; None removes the limit."""
        self._monitor.execute("migrate-set-parameters", max_bandwidth=rate or 0)
