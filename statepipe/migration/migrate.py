"""migrate: move a guest to another host through a session, in two phases (recovery/handover.py).

Both hosts are compared first, and nothing moves if it would fail. During the move, each state is in the journal and
with the guardian before anything is done about it. After any failure before the destination was told to run, the guest
runs on here, with its QEMU's settings as they were.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from statepipe.ends.address import SSH
from statepipe.errors import QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.migration.contact import called
from statepipe.migration.negotiation import CHECK, MIGRATE, Offer, begin
from statepipe.migration.source import CAPABILITIES, Departure, MigrateLimits
from statepipe.pipeline.job import at_work, works_for
from statepipe.qemu.commandline import anew
from statepipe.qemu.compare import FAIL, WARN, Finding, compare, worst
from statepipe.qemu.facts import gather
from statepipe.qemu.migration import ProcessWatch, end_qemu
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.process import demand_equal
from statepipe.qemu.runstates import LIVE, MOVABLE, RUNNING
from statepipe.qemu.settings import adjust, are_restored, put_back
from statepipe.recovery.guardian import GuardCommand, Guardian
from statepipe.recovery.handover import Event, Source
from statepipe.recovery.journal import Journal, StepListener
from statepipe.recovery.resolve import demand_unsent, how_to_decide
from statepipe.recovery.undoing import facts_of, settle
from statepipe.session.options import ConnectionPlan
from statepipe.telling import Tell
from statepipe.typed import Any

UNMOVED = "nothing was moved"
"""Said of a guest to which nothing was done."""


@dataclass(frozen=True, slots=True)
class MigrateRequest:
    """What was asked for. `plan.words` get the plain stream, and `undo` undoes them at the destination.

    `offline` stops the guest first. `parameters` are QEMU's (downtime-limit in ms, max-bandwidth in bytes a second),
    `capabilities` are set in addition to ours. `force` overrides what the comparison of the hosts found. `remote_qemu`
    is the QEMU command line that ssh starts at the destination; None: the guest's own.
    """

    qmp: str
    plan: ConnectionPlan
    undo: tuple[str, ...] = ()
    offline: bool = False
    quits: bool = False
    force: bool = False
    limits: MigrateLimits = field(default_factory=MigrateLimits)
    parameters: dict[str, Any] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    journal: str | None = None
    remote_qemu: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A guest that has moved: QEMU's figures, seconds from STOP here to RUNNING, bytes sent and sent again.

    `state` is the run state that it had here and now has there; None if no statepipe there reports it.
    """

    peer: str
    state: str | None
    figures: dict[str, Any]
    downtime: float
    sent: int
    resent: int


def check(qmp: str, plan: ConnectionPlan, remote: Sequence[str] | None, tell: Tell) -> list[Finding]:
    """Compare the guest's host with the one at the plan's address, and its QEMU with the one that `remote` starts
    there; `tell` hears what is waited for. Raises StatepipeError."""
    with closing(Monitor(qmp, tell=tell)) as monitor, called(plan, _far_words(monitor, plan, remote)) as peer:
        offer = Offer(CHECK, gather(monitor))
        findings = compare(offer.facts, offer.make(peer))
        peer.farewell()
        return findings


def migrate(request: MigrateRequest, warn: Tell, guard: GuardCommand, listeners: Sequence[StepListener]) -> Report:
    """Move the guest. Raises StatepipeError, whose hint says where the guest is."""
    progress = _Progress()
    with Guardian(guard) as guardian, closing(Monitor(request.qmp, tell=warn)) as monitor:
        monitor.demand_handover()
        works_for(monitor.pid)
        movable(monitor, request.qmp)
        with (
            _located(progress, guardian, monitor),
            called(request.plan, _far_words(monitor, request.plan, request.remote_qemu)) as peer,
        ):
            was = movable(monitor, request.qmp)
            offer = Offer(MIGRATE, gather(monitor), request.undo, was in LIVE)
            _judge(compare(offer.facts, offer.make(peer)), warn, force=request.force)
            side = begin(peer)
            progress.where = f"the guest {'runs' if was == RUNNING else f'is {was}'} at {peer.name}"

            def known(before: Mapping[str, Any]) -> None:  # from now on there is something to undo
                progress.noted = before
                with closing(ProcessWatch(monitor.pid)) as process:
                    guardian.note(facts_of(side.state.name, request.qmp, monitor.pid, was, before), process.fds)

            facts = {"side": "source", "peer": peer.name, "guest": offer.facts["guest"]}
            # what else is on and not for a single stream is off meanwhile; `tunnel` carries QEMU's own connections
            wanted = dict.fromkeys((*CAPABILITIES, *request.capabilities), True)
            with (
                closing(Journal(request.journal, facts, (guardian.note, progress, *listeners))) as journal,
                put_back(monitor, adjust(monitor, wanted, request.parameters, known=known)),
            ):
                words, limits = request.plan.words, request.limits
                departure = Departure(monitor, peer, words, journal, side=side, was=was, limits=limits, say=warn)
                progress.has_begun = True
                if request.offline:
                    departure.stop_guest()
                with at_work(departure):
                    state = departure.run()
                    guardian.settle()
                if state is not Source.MOVED:
                    raise _failure(departure, state, request)
                figures, sent, resent = departure.last_figures(), peer.outgoing.bytes, peer.outgoing.resent
            if request.quits:
                end_qemu(monitor)
    return Report(peer.name, was, figures, progress.downtime(departure.stopped), sent, resent)


class _Progress:
    """How far a migration is: a listener of its journal. `noted` are QEMU's settings before we changed them, `where` is
    where the guest is once it has moved."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self.noted: Mapping[str, Any] | None = None
        self.has_begun = False
        self.where = ""

    def __call__(self, facts: dict[str, Any]) -> None:
        if "state" in facts:
            self._at[facts["state"]] = time.monotonic()

    @property
    def has_moved(self) -> bool:
        """Whether the destination has reported that it has the guest."""
        return Source.MOVED.name in self._at

    def downtime(self, stopped: float | None) -> float:
        """Seconds from when the guest was `stopped` to the destination's report that it runs."""
        moved = self._at[Source.MOVED.name]
        return moved - (moved if stopped is None else stopped)


@contextmanager
def _located(progress: _Progress, guardian: Guardian, monitor: Monitor) -> Iterator[None]:
    """Add to the hint of a failure where the guest is if it was not touched, or has moved. If it was not touched, the
    guardian has nothing to do once QEMU's settings are seen to be as before."""
    try:
        yield
    except StatepipeError as error:
        if progress.has_moved:
            error.advise(progress.where, first=True)
        elif not progress.has_begun:
            if not (error.hint or "").startswith(UNMOVED):
                error.advise(UNMOVED, first=True)
            settle(guardian, error, lambda: progress.noted is None or are_restored(monitor, progress.noted))
        raise


def _far_words(monitor: Monitor, plan: ConnectionPlan, remote: Sequence[str] | None) -> list[str]:
    """Return what ssh starts at the destination: a receive with the QEMU command line `remote`, or with this guest's.

    Whoever decides what is started there acts as the user whom ssh logs in. So this QEMU's own command line counts only
    if it has the same rights as we have; raises QemuError otherwise. Its program is the one that it runs, whatever it
    calls itself.
    """
    if plan.address.scheme != SSH:
        return []
    retry = [] if plan.retry is None else ["--retry", f"{plan.retry:g}"]
    words = ["receive", "--session-stdio", *retry]
    if remote is not None:
        return [*words, "--", *anew(remote)]
    process = demand_equal(monitor.pid)
    return [*words, "--chdir", process.folder, "--", process.program, *anew(process.command)[1:]]


def movable(monitor: Monitor, qmp: str) -> str:
    """Return the run state of a guest that can be moved and is not being moved already. Raises QemuError."""
    state = monitor.run_state()
    demand_unsent(state, qmp)
    if state not in MOVABLE:
        raise QemuError(f"there is no guest to move: QEMU's run state is {state}", hint="see: statepipe resolve --help")
    monitor.demand_idle()
    return state


def _judge(findings: Sequence[Finding], warn: Tell, *, force: bool) -> None:
    """Raises StatepipeError for what would fail, unless `force`; warns of what may fail."""
    for finding in findings:
        if finding.level == WARN or (force and finding.level == FAIL):
            warn(f"{finding.what}: {finding.reason}")
    if worst(findings) == FAIL and not force:
        reasons = [f"{finding.what}: {finding.reason}" for finding in findings if finding.level == FAIL]
        raise StatepipeError("; ".join(reasons), hint=f"{UNMOVED}; statepipe check shows all, --force overrules")


def _failure(departure: Departure, state: Source, request: MigrateRequest) -> StatepipeError:
    """Return the error of a guest that did not move: what is known of it by the final state and by QEMU's report."""
    cause = departure.cause
    error = cause if isinstance(cause, StatepipeError) else QemuError(f"the migration failed: {cause!r}")
    resolve = f"statepipe resolve --qmp {shlex.quote(request.qmp)}"
    if state is Source.UNDECIDED:
        there = departure.peer.name
        if Event.GO in departure.told:
            what = f"{there} was told to run the guest, and whether it does is not known here"
        else:
            what = f"the guest ran at {there} before it was given away, so its disks may have changed there"
        return QemuError(f"{what}: {error}", hint=how_to_decide(request.qmp))
    if state is Source.DEAD:
        return QemuGone(f"QEMU has ended, and the guest with it: {error}")
    if state is Source.UNANSWERED:
        departure.monitor.hurry()  # its settings are still to be restored, if it answers
        what = "QEMU here does not answer; the guest was not given away, and whether it runs here is not known"
        return QemuSilent(f"{what}: {error}", hint=f"once it answers: {resolve} here")
    if departure.stranded is not None:
        error.advise(f"the guest is here but does not run: {departure.stranded}; then: {resolve} here", first=True)
        return error
    try:
        now = departure.monitor.run_state()
        as_before = now == departure.was
        where = f"the guest is {now} here, as before" if as_before else f"the guest is here; QEMU reports {now}"
    except QemuError as silent:
        where = f"the guest was not given away; its run state here is not known: {silent}"
    error.advise(where, first=True)
    error.advise(_AGAIN[request.plan.address.scheme == SSH])
    return error


_AGAIN = {
    True: "to try again: the same command",
    False: "to try again: start receive there again (with --serve it still waits), then the same command here",
}
"""By whether ssh starts the destination's side."""
