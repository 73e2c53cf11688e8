"""load, driving QEMU: `load FILE -- qemu-system-…` starts it, `load --qmp SOCKET FILE` takes one that waits.

QEMU is started paused (`-S -incoming defer`) with a monitor of ours. The stream goes over a socketpair whose end is
held back until everything is verified; the guest runs only when QEMU, too, says `completed`, and only if it ran
when it was saved. Whatever fails before that, our QEMU is ended and its guest has not run for an instant.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from statepipe.descriptors import named_by
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
from statepipe.pipeline.pipeline import Pipeline
from statepipe.pipeline.signals import held, ignore
from statepipe.processes import hold_if_seen
from statepipe.qemu.commandline import refuse_daemon, starts_qemu
from statepipe.qemu.guard import Said, named_files
from statepipe.qemu.guest import describe_guest, hardware
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.images import images
from statepipe.qemu.monitor import DYING, Monitor, demand_completed
from statepipe.qemu.places import clashes, seen
from statepipe.qemu.process import Child, inspect_process, qemu_under
from statepipe.qemu.runstates import LIVE, UNRUN
from statepipe.qemu.settings import made_ready, restore_after, restored
from statepipe.qemu.view import View
from statepipe.state.file import STDIN, Keys, StateFile, open_state
from statepipe.state.loading import State, prepare
from statepipe.telling import Tell
from statepipe.wakeups import polled

RAN_AT_SAVE = (*LIVE, None)
"""A machine older than 2.4 does not tell its run state; QEMU itself then takes it to be running."""


@dataclass(frozen=True, slots=True)
class Telling:
    """Who hears of it: `warn` what is not proved and what is waited for, `here` that the guest is, at once, and
    `loaded` its run state. `settled` hears that QEMU has answered what was asked of it: no signal denies it then."""

    warn: Tell
    loaded: Tell
    here: Callable[[], None]
    settled: Callable[[], None] = ignore


class MayRun(InterruptedBySignal):
    """A signal came once QEMU was told to run the guest, and QEMU did not say that it does not: so it is not ended."""

    def __init__(self, late: InterruptedBySignal, hint: str) -> None:
        super().__init__(late.exit_code - 128, str(late))
        self.hint = hint


class CutOff(QemuGone):
    """QEMU was told to run the guest, and its monitor broke off while its process lives: so it is not ended."""


def load_into_new(path: str, command: Sequence[str], keys: Keys, said: Said, tell: Telling, *, detach: bool) -> int:
    """Load the state into a QEMU started by `command`; stay until it ends and return its exit status.

    `said` is a person's word on the disks. With `detach`, return 0 once the guest is loaded. Raises StatepipeError, and
    then that QEMU is gone, unless it was told to run the guest: the hint says so.
    """
    child: Child | None = None
    stays = False

    def here() -> None:
        """It is about to be told to run the guest: what would end us is QEMU's, and how it ends is its own matter."""
        nonlocal stays
        tell.here()
        if child is not None and not detach:
            child.pass_signals_on()
            stays = True

    telling = replace(tell, here=here, settled=tell.settled if detach else lambda: None)  # else they are QEMU's

    try:
        with ExitStack() as opened:
            refuse_daemon(command)
            _refuse_state_as_disk(path, command)
            with open_state(path, keys) as source:
                state = _prepare_state(source, tell.warn)
                state.refuse_changed_before(command, said)
                _refuse_taken(command)
                with held():  # a QEMU that was started must be known to us
                    child = Child(command, detach)
                    opened.enter_context(child.spare)
                monitor = opened.enter_context(closing(Monitor(child.monitor, child.pid, tell.warn)))
                try:
                    _load(state, monitor, said, telling, runs=not child.stays_paused)
                except QemuGone:
                    if not stays:
                        raise
            if detach:
                child.let_be(tell.warn)
            with suppress(QemuGone, QemuSilent):  # its guest has ended it already, or keeps it busy
                tell.loaded(monitor.run_state())
            return 0 if detach else child.wait()
    except (MayRun, CutOff) as late:
        if child is not None:
            child.let_be(tell.warn)
            look = f"look at QEMU, process {child.pid}: {_BEFORE_AGAIN}: kill {child.pid}"
            late.advise(look)
        raise
    except BaseException as error:
        if child is not None:
            child.end_after(error, "while loading")
        raise


def _refuse_state_as_disk(path: str, command: Sequence[str]) -> None:
    """Raises UsageError where QEMU's command line names the state itself: as a log it would be emptied, and as a disk
    written to, before it is read."""
    if path == STDIN or named_by(path) is not None or not starts_qemu(command):
        return
    if View(0).real(path) in named_files(command):
        what = f"QEMU's command line names {path}, which is the state to load"
        raise UsageError(what, hint="leave it out there: statepipe hands the state over")


_BEFORE_AGAIN = "its guest may write to its disks, so end it before the state is loaded again"


def _refuse_taken(command: Sequence[str]) -> None:
    """Raises StatepipeError for sockets at which another process listens: a QEMU that is started replaces them, and
    the QEMU that still holds the guest may be the one that listens."""
    if not starts_qemu(command):
        return
    rows = seen(command, View(0), os.getcwd(), held=False)
    if taken := [f"{row['path']} ({row['option']})" for row, _ in clashes([], rows)]:
        raise StatepipeError(
            f"QEMU is not started: it would replace sockets at which another process listens: {', '.join(taken)}",
            hint="end the QEMU that listens there, if its guest is the one that was saved; or name another socket",
        )


def load_into_waiting(path: str, address: str, keys: Keys, said: Said, tell: Telling) -> None:
    """Load the state into the QEMU behind the monitor at `address`, started with `-incoming defer`.

    Raises StatepipeError; unless QEMU has ended by itself, or may run the guest, it is told to quit.
    """
    with open_state(path, keys) as source:
        state = _prepare_state(source, tell.warn)
        with closing(Monitor(address, tell=tell.warn)) as monitor:
            try:
                before = _load(state, monitor, said, tell, runs=True)
            except (MayRun, CutOff) as late:
                resolve = f"statepipe resolve --qmp {shlex.quote(address)}"
                late.advise(f"look: {resolve}; {_BEFORE_AGAIN}")
                raise
            with suppress(QemuGone, QemuSilent):  # its guest has ended it already, or keeps it busy
                tell.loaded(monitor.run_state())
            if (words := restored(monitor, before)) is not None:
                tell.warn(words)


def _prepare_state(source: StateFile, warn: Tell) -> State:
    state = prepare(source)
    if state.doubts:
        warn(state.doubts)
    return state


def _load(state: State, monitor: Monitor, said: Said, tell: Telling, *, runs: bool) -> dict[str, Any]:
    """Load it, and run it if it ran; how QEMU was set to migrate before. Raises StatepipeError.

    A QEMU that may run or receive a guest that is none of ours is left alone; one that has half of ours can only be
    ended.
    """
    monitor.demand_waiting()
    monitor.demand_handover()
    now = describe_guest(monitor)
    state.refuse_other_machine(now["machine"])
    disks = images(monitor)
    state.refuse_changed_disks(disks, said, tell.warn)
    _refuse_other_hardware(state, monitor, now["ram"], said, tell.warn)
    before = made_ready(monitor, ("events", "late-block-activate"))
    try:
        ours = _open(monitor)
    except BaseException as error:
        restore_after(error, monitor, before)
        raise
    try:
        with ours:
            _feed(state, monitor, ours)
        demand_completed(monitor.migration_outcome(), "its message is above")
        tell.here()  # before QEMU is told to run it: from then on it is not ended for being late
        if runs and state.run_state in RAN_AT_SAVE:
            _run(monitor, tell.settled)
        else:
            tell.settled()
        return before
    except (MayRun, CutOff):
        raise
    except BaseException as error:
        with held():
            if isinstance(error, QemuRefused):  # of its monitor's words none says which disk it could not lock
                written = [row.path for row in disks.rows if row.is_file and not row.read_only]
                error.hint = lock_hint(str(error), written, but=monitor.pid) or error.hint
            _quit(monitor)
        raise


def _run(monitor: Monitor, settled: Callable[[], None]) -> None:
    """Have QEMU run the guest; `settled` hears its answer. Raises QemuError; CutOff for a monitor that breaks off
    before it, MayRun for a signal that comes before it.

    QEMU does what it was told whether anybody waits or not, perhaps once a disk answers. So after a signal it is
    asked: it answers in turn, and a guest that does not run by then was not told to.
    """
    with closing(_Watch(monitor.pid)) as process:
        try:
            _tell_to_run(monitor, process, settled)
        except InterruptedBySignal as late:
            monitor.hurry()
            said = _TOLD
            try:
                if (state := monitor.run_state()) in UNRUN:
                    raise late
                said = f"the guest is {state}"
            except QemuGone:
                if process.has_ended():
                    raise late from None
            except QemuSilent:
                said = _TOLD
            raise MayRun(late, f"the state is loaded, and {said}") from late


def _tell_to_run(monitor: Monitor, process: _Watch, settled: Callable[[], None]) -> None:
    try:
        monitor.execute("cont")
    except (QemuGone, QemuSilent) as error:
        if process.has_ended():
            raise
        settled()  # a signal would change nothing of it
        raise CutOff(str(error), hint=f"the state is loaded, and {_TOLD}") from error
    settled()


_TOLD = "QEMU was told to run the guest and has not answered: it may run at any moment"


class _Watch:
    """Sees whether the process has ended, also one that another than we started. One that is not known was not seen to
    have ended."""

    def __init__(self, pid: int) -> None:
        self._pidfd = hold_if_seen(pid)

    def has_ended(self) -> bool:
        """Whether it has, or does within DYING."""
        return self._pidfd is not None and bool(polled(self._pidfd).poll(DYING))

    def close(self) -> None:
        """Look no more."""
        if self._pidfd is not None:
            os.close(self._pidfd)


def _refuse_other_hardware(state: State, monitor: Monitor, ram: int, said: Said, warn: Tell) -> None:
    process = inspect_process(qemu_under(monitor.pid))
    now = hardware(monitor) | {"ram": ram}
    state.refuse_other_hardware(now, process.command if process else None, said, warn)


def _open(monitor: Monitor) -> socket.socket:
    """Our end of a socket that QEMU loads from. Raises QemuError if it takes none, as it loads already."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            monitor.give(theirs.fileno(), "statepipe-load")
            monitor.execute("migrate-incoming", uri="fd:statepipe-load")
    except BaseException:
        ours.close()
        raise
    return ours


def _feed(state: State, monitor: Monitor, ours: socket.socket) -> None:
    try:
        Pipeline(state.source, state.stages, FdSink(ours.fileno(), "the migration socket")).pour()
    except ReaderGone as error:
        raise _why_closed(monitor) from error
    ours.shutdown(socket.SHUT_WR)
    _drain(ours)


def _drain(ours: socket.socket) -> None:
    """Take what QEMU answers on the return path, until it closes: else it might fail to write it."""
    try:
        while ours.recv(4096):
            continue
    except ConnectionResetError:  # QEMU closed with bytes of ours unread: its monitor tells why
        return


def _why_closed(monitor: Monitor) -> QemuError:
    """Ask QEMU why it closed the socket."""
    outcome = monitor.migration_outcome()
    return QemuError(f"QEMU refused the state: {outcome.get('error-desc', outcome['status'])}")


def _quit(monitor: Monitor) -> None:
    monitor.hurry()
    # That it goes is what was wanted; where it says nothing, whatever was raised tells enough.
    with suppress(QemuGone, QemuSilent):
        monitor.execute("quit")
