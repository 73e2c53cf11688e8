"""load, driving QEMU: `load FILE -- qemu-system-…` starts one, `load --qmp SOCKET FILE` uses one that waits.

QEMU is started paused (`-S -incoming defer`) with a monitor for us. The stream goes through a socketpair; its end is
held back until everything is verified. The guest runs only once QEMU has reported `completed`, and only if it ran when
it was saved. Before that, any failure ends our QEMU, and its guest never ran. After that, no failure ends it.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress

from statepipe.ends.fd import FdSink
from statepipe.errors import (
    InterruptedBySignal,
    QemuError,
    QemuGone,
    QemuRefused,
    QemuSilent,
    ReaderGone,
    StatepipeError,
    UsageError,
)
from statepipe.pipeline.signals import held, ignore
from statepipe.qemu.commandline import refuse_daemon, starts_qemu
from statepipe.qemu.guard import Said, named_files
from statepipe.qemu.guest import describe_guest, hardware
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.images import Images, images
from statepipe.qemu.migration import ProcessWatch, demand_completed, end_qemu, start_incoming
from statepipe.qemu.overlays import Clone
from statepipe.qemu.process import DYING, Child, inspect_process, qemu_under
from statepipe.qemu.runstates import RAN_AT_SAVE, UNRUN
from statepipe.qemu.settings import made_ready, restore_after, restored
from statepipe.qemu.taken import taken
from statepipe.qemu.view import View
from statepipe.state.claims import claim
from statepipe.state.file import Keys, on_disk, open_state
from statepipe.state.loading import State, prepare
from statepipe.state.source import StateFile, damage_named
from statepipe.telling import Tell
from statepipe.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor


class Telling(NamedTuple):
    """Who is called during a load: `warn` with what is not proved or waited for, `here` at once when QEMU has the
    guest, `loaded` with the guest's run state, and `settled` once QEMU has answered: from then on no signal undoes it.
    """

    warn: Tell
    loaded: Tell
    here: Callable[[], None]
    settled: Callable[[], None] = ignore


class MayRun(InterruptedBySignal):
    """A signal arrived after QEMU was told to run the guest. QEMU may run it, so it is not ended."""

    def __init__(self, late: InterruptedBySignal, hint: str) -> None:
        super().__init__(late.exit_code - 128, str(late))
        self.hint = hint


class CutOff(QemuGone):
    """QEMU was told to run the guest, and its monitor broke off while its process lives: so it is not ended."""


def load_into_new(
    path: str, command: Sequence[str], keys: Keys, said: Said, tell: Telling, clone: Clone, *, detach: bool
) -> int:
    """Load the state into a QEMU started by `command`; wait until that ends and return its exit status.

    `said` is about the disks, `clone` has the overlays over them. With `detach`, return 0 once it is loaded. Raises
    StatepipeError; then that QEMU has ended, unless it has the guest or was told to run it, which the hint says.
    """
    child: Child | None = None
    stays = is_loaded = False

    def here() -> None:
        """QEMU is about to be told to run the guest: signals that would end us are passed on to it from now on."""
        nonlocal stays
        tell.here()
        if child is not None and not detach:
            child.pass_signals_on()
            stays = True

    telling = tell._replace(here=here, settled=tell.settled if detach else lambda: None)  # else QEMU gets the signals
    try:
        with ExitStack() as opened:
            refuse_daemon(command)
            refuse_state_as_disk(path, command)
            with open_state(path, keys) as source:
                state = _prepare_state(source, tell.warn)
                state.refuse_changed_before(command, said)
                command = ready(command, clone, opened)
                with held():  # no signal between QEMU's start and our record of it, nor in an import (enum, TypeError)
                    child = Child(command, detach)
                    opened.enter_context(child.spare)
                    from statepipe.qemu.monitor import Monitor

                monitor = opened.enter_context(closing(Monitor(child.monitor, child.pid, tell.warn)))
                try:
                    _load(state, monitor, said, telling, clone, runs=not child.stays_paused)
                except QemuGone:
                    if not stays:
                        raise
                is_loaded = True
            if detach:
                child.let_be(tell.warn)
            _report(monitor, tell)
            return 0 if detach else child.wait()
    except (MayRun, CutOff) as late:
        if child is not None:
            child.let_be(tell.warn)
            late.advise(f"look at QEMU, process {child.pid}: {_BEFORE_AGAIN}: kill {child.pid}", clone.where)
        raise
    except BaseException as error:
        if not is_loaded:
            clone.undo(tell.warn)
            if child is not None:
                child.end_after(error, "while loading")
        elif child is not None:
            if not detach:
                child.let_be(tell.warn)  # its output goes on without us
            if isinstance(error, StatepipeError):
                error.advise(f"the state is loaded: look at QEMU, process {child.pid}", clone.where)
        raise


def _report(monitor: Monitor, tell: Telling) -> None:
    """Report the run state of a loaded guest. If QEMU does not tell it, the load has succeeded all the same."""
    try:
        tell.loaded(monitor.run_state())
    except (QemuGone, QemuSilent):  # the guest has ended QEMU already, or keeps it busy
        return
    except QemuError as error:
        tell.warn(f"the state is loaded, but QEMU did not report the guest's run state: {error}")


def refuse_state_as_disk(path: str, command: Sequence[str]) -> None:
    """Raises UsageError if QEMU's command line names the state file: QEMU would write to it before it is read."""
    if (real := on_disk(path)) is None or not starts_qemu(command):
        return
    view, files = View(0), named_files(command)
    if view.real(real) in files or any(view.is_same(real, file) for file in files):
        what = f"QEMU's command line names {path}, which is the state to load"
        raise UsageError(what, hint="remove it from the command line: statepipe passes the state to QEMU")


_BEFORE_AGAIN = "its guest may write to its disks, so end it before the state is loaded again"


def ready(command: Sequence[str], clone: Clone, opened: ExitStack) -> list[str]:
    """Return the command line for a new QEMU, once its overlays are there. No other load takes what that QEMU will make
    until `opened` ends.

    Raises StatepipeError for sockets, ports, files and interfaces that others have: the new QEMU would take them away,
    and from the QEMU that still has the guest perhaps. A script may start QEMU in another namespace, but not a clone.
    """
    if clone.is_wanted or starts_qemu(command):
        claimed = claim(command, os.getcwd(), opened)  # first: until the other QEMU has made them, nobody sees them
        if found := taken(command, os.getcwd()):
            hint = "if that is the QEMU whose guest was saved, end it; else name others"
            raise StatepipeError(f"QEMU is not started: {'; '.join(found)}", hint=hint)
        if claimed:
            what = f"another load starts a QEMU with the same files: {', '.join(claimed)}"
            raise StatepipeError(f"QEMU is not started: {what}", hint="name others")
    return clone.of(command)


def load_into_waiting(path: str, address: str, keys: Keys, said: Said, tell: Telling) -> None:
    """Load the state into the QEMU behind the monitor at `address`, started with `-incoming defer`.

    Raises StatepipeError. Then a QEMU that has received nothing still waits; otherwise it was told to quit, unless it
    has ended by itself or was told to run the guest.
    """
    from statepipe.qemu.monitor import Monitor

    with open_state(path, keys) as source:
        state = _prepare_state(source, tell.warn)
        with closing(Monitor(address, tell=tell.warn)) as monitor:
            try:
                before = _load(state, monitor, said, tell, Clone(), runs=True)
            except (MayRun, CutOff) as late:
                late.advise(f"look: statepipe resolve --qmp {shlex.quote(address)}; {_BEFORE_AGAIN}")
                raise
            words = restored(monitor, before)
            _report(monitor, tell)
            if words is not None:
                tell.warn(words)


def _prepare_state(source: StateFile, warn: Tell) -> State:
    state = prepare(source)
    if state.doubts:
        warn(state.doubts)
    return state


def _load(state: State, monitor: Monitor, said: Said, tell: Telling, clone: Clone, *, runs: bool) -> dict[str, Any]:
    """Load it, and run it if it ran; return QEMU's migration settings as they were before. Raises StatepipeError.

    A QEMU that may run or receive another guest is left alone; one that has a part of ours can only be ended.
    """
    disks = demand_its_own(state, monitor, said, tell.warn, clone)
    before = made_ready(monitor, ("events", "late-block-activate"))
    ours, theirs = socket.socketpair()
    try:
        start_incoming(monitor, theirs)
    except BaseException as error:
        ours.close()
        restore_after(error, monitor, before)
        raise
    try:
        with ours:
            _feed(state, monitor, ours)
        demand_completed(monitor.migration_outcome(), "its message is above")
        tell.here()  # before QEMU is told to run it: from then on it is not ended for being late
        if runs and state.run_state in RAN_AT_SAVE:
            run_guest(monitor, tell.settled)
        else:
            tell.settled()
        return before
    except (MayRun, CutOff):
        raise
    except BaseException as error:
        end_half_loaded(error, monitor, disks)
        raise


def demand_its_own(state: State, monitor: Monitor, said: Said, warn: Tell, clone: Clone) -> Images:
    """Return the images of a QEMU that waits, without overlays. Raises StatepipeError unless its machine and disks are
    the guest's."""
    monitor.demand_waiting()
    monitor.demand_handover()
    now = describe_guest(monitor)
    state.refuse_other_machine(now["machine"])
    disks = clone.through(images(monitor))
    state.refuse_changed_disks(disks, said, warn)
    process = inspect_process(qemu_under(monitor.pid))
    has = hardware(monitor) | {"ram": now["ram"]}
    state.refuse_other_hardware(has, process.command if process else None, said, warn)
    return disks


def end_half_loaded(error: BaseException, monitor: Monitor, disks: Images) -> None:
    """End a QEMU that has a part of a guest, which has not run, and complete the hint of `error`."""
    with held():
        if isinstance(error, QemuRefused):  # its monitor does not say which disk it could not lock
            written = [row.path for row in disks.rows if row.is_file and not row.read_only]
            error.hint = lock_hint(str(error), written, but=monitor.pid) or error.hint
        monitor.hurry()
        with suppress(QemuSilent):  # the error on its way says enough
            end_qemu(monitor)


def _feed(state: State, monitor: Monitor, ours: socket.socket) -> None:
    """Write the stream to QEMU, then read its return path until it closes it: else QEMU might fail to write it."""
    from statepipe.pipeline.pipeline import Pipeline

    try:
        with damage_named(state.source.name):
            Pipeline(state.source, state.stages(), FdSink(ours.fileno(), "the migration socket")).pour()
    except ReaderGone as error:
        figures = monitor.migration_outcome()
        raise QemuError(f"QEMU refused the state: {figures.get('error-desc', figures['status'])}") from error
    ours.shutdown(socket.SHUT_WR)
    with suppress(ConnectionResetError):  # QEMU closed it with bytes of ours unread: its monitor reports why
        while ours.recv(4096):
            continue


def run_guest(monitor: Monitor, settled: Callable[[], None]) -> None:
    """Have QEMU run the guest, and call `settled` at its answer. Raises QemuError; CutOff if the monitor breaks off
    before that, MayRun if a signal arrives before that.

    QEMU runs the guest whether anybody waits or not, perhaps once a disk answers. So after a signal it is asked: it
    answers in order, and a guest that does not run by then was not told to.
    """
    with closing(ProcessWatch(monitor.pid)) as process:
        try:
            try:
                monitor.execute("cont")
            except (QemuGone, QemuSilent) as error:
                if process.has_ended(DYING):
                    raise
                settled()  # a signal would change nothing
                raise CutOff(str(error), hint=f"the state is loaded, and {_TOLD}") from error
            settled()
        except InterruptedBySignal as late:
            monitor.hurry()
            said = _TOLD
            try:
                if (state := monitor.run_state()) in UNRUN:
                    raise late
                said = f"the guest is {state}"
            except QemuGone:
                if process.has_ended(DYING):
                    raise late from None
            except QemuSilent:  # it may run
                pass
            raise MayRun(late, f"the state is loaded, and {said}") from late


_TOLD = "QEMU was told to run the guest and has not answered: it may run at any moment"
