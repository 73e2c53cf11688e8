"""migrate: a guest goes to another host through a session, in two phases (recovery/handover.py).

Both hosts are looked at first, and nothing moves that would fail. While it moves, every state is in the journal and
with the guardian before anything is done about it. Whatever goes wrong until the destination was told to run, the
guest runs on here with its QEMU's settings as they were.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from statepipe.ends.address import SSH
from statepipe.errors import QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.migration.contact import called
from statepipe.migration.negotiation import CHECK, MIGRATE, Offer, begin
from statepipe.migration.peer import Peer
from statepipe.migration.source import CAPABILITIES, Departure, Limits
from statepipe.pipeline.job import at_work, works_for
from statepipe.qemu.commandline import anew
from statepipe.qemu.compare import FAIL, WARN, Finding, compare, worst
from statepipe.qemu.facts import gather
from statepipe.qemu.migration import ProcessWatch, end_qemu
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.process import demand_equal
from statepipe.qemu.runstates import LIVE, MOVABLE, RUNNING
from statepipe.qemu.settings import adjust, are_restored, put_back
from statepipe.recovery.guardian import Command, Guardian
from statepipe.recovery.handover import Event, Side, Source
from statepipe.recovery.journal import Journal, Listener
from statepipe.recovery.resolve import demand_unsent, how_to_decide
from statepipe.recovery.undoing import facts_of, settle
from statepipe.session.options import ConnectionPlan
from statepipe.telling import Tell

UNMOVED = "nothing was moved"
"""Said of a guest that nothing was done to."""


@dataclass(frozen=True, slots=True)
class MigrateRequest:
    """What was asked for. `plan.words` see the plain stream and `undo` undoes them over there.

    `offline` stops the guest first. `parameters` are QEMU's own (downtime-limit in ms, max-bandwidth in bytes a
    second), `capabilities` those wanted beside ours. `force` overrules what the comparison of the hosts found.
    `remote_qemu` is the QEMU command line that ssh starts over there; without it, the guest's own.
    """

    qmp: str
    plan: ConnectionPlan
    undo: tuple[str, ...] = ()
    offline: bool = False
    quits: bool = False
    force: bool = False
    limits: Limits = field(default_factory=Limits)
    parameters: dict[str, Any] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    journal: str | None = None
    remote_qemu: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A guest that has moved: QEMU's figures, seconds from STOP here to RUNNING there, bytes sent and sent again.

    `state` is the run state that it had here, and the other host says that it has; None where nobody there speaks.
    """

    peer: str
    state: str | None
    figures: dict[str, Any]
    downtime: float
    sent: int
    resent: int


def check(qmp: str, plan: ConnectionPlan, remote: Sequence[str] | None, tell: Tell) -> list[Finding]:
    """Whether the guest behind the monitor would get to the plan's address, into a QEMU that `remote` starts there.

    `tell` hears what is waited for. Raises StatepipeError.
    """
    with closing(Monitor(qmp, tell=tell)) as monitor, called(plan, _far_words(monitor, plan, remote)) as peer:
        offer = Offer(CHECK, gather(monitor))
        findings = compare(offer.facts, offer.make(peer))
        peer.farewell()
        return findings


def migrate(request: MigrateRequest, warn: Tell, guard: Command, listeners: Sequence[Listener]) -> Report:
    """Move the guest; what it came to. Raises StatepipeError, whose hint says where the guest is."""
    with Guardian(guard) as guardian, closing(Monitor(request.qmp, tell=warn)) as monitor:
        monitor.demand_handover()
        works_for(monitor.pid)
        movable(monitor, request.qmp)
        return _move(request, warn, monitor, guardian, listeners)


def _move(
    request: MigrateRequest, warn: Tell, monitor: Monitor, guardian: Guardian, listeners: Sequence[Listener]
) -> Report:
    """Both sides meet, agree, and part. Raises StatepipeError."""
    with (
        _unmoved() as unmoved,
        called(request.plan, _far_words(monitor, request.plan, request.remote_qemu)) as peer,
    ):
        offer, state, side = _agree(request, monitor, peer, warn)
        steps = _Steps()
        where = f"the guest {'runs' if state == RUNNING else f'is {state}'} at {peer.name}"
        facts = {"side": "source", "peer": peer.name, "guest": offer.facts["guest"]}

        noted: Mapping[str, Any] | None = None

        def known(before: Mapping[str, Any]) -> None:  # from now on there is something to undo
            nonlocal noted
            noted = before
            with closing(ProcessWatch(monitor.pid)) as process:
                guardian.note(facts_of(side.state.name, request.qmp, state, before), process.fds)

        with (
            closing(Journal(request.journal, facts, (guardian.note, steps, *listeners))) as journal,
            _told_where_it_went(steps, where),
            _settled(guardian, unmoved, lambda: noted is None or are_restored(monitor, noted)),
            put_back(monitor, adjust(monitor, _capabilities(request), request.parameters, known=known)),
        ):
            departure = Departure(
                monitor, peer, request.plan.words, journal, side=side, was=state, limits=request.limits, say=warn
            )
            unmoved.is_over = True
            _go(departure, request, guardian)
            figures, sent, resent = departure.last_figures(), peer.outgoing.bytes, peer.outgoing.resent
        if request.quits:
            with _told_where_it_went(steps, where):
                end_qemu(monitor)
    return Report(peer.name, state, figures, steps.downtime(departure.stopped), sent, resent)


class _Unmoved:
    """The time before a guest begins to move."""

    is_over = False


@contextmanager
def _unmoved() -> Iterator[_Unmoved]:
    """What goes wrong in this time has not touched the guest, and its hint says so."""
    time_before = _Unmoved()
    try:
        yield time_before
    except StatepipeError as error:
        if not (time_before.is_over or (error.hint or "").startswith(UNMOVED)):
            error.advise(UNMOVED, first=True)
        raise


@contextmanager
def _settled(guardian: Guardian, unmoved: _Unmoved, is_done: Callable[[], bool]) -> Iterator[None]:
    """What goes wrong in that time in a way that was foreseen has been undone, if it is seen to be."""
    try:
        yield
    except StatepipeError as error:
        if not unmoved.is_over:
            settle(guardian, error, is_done)
        raise


def _far_words(monitor: Monitor, plan: ConnectionPlan, remote: Sequence[str] | None) -> list[str]:
    """What ssh starts over there: a receive with the QEMU command line that the user gave (`remote`), or else with this
    guest's own.

    Whoever says what is started there is whoever ssh logs in as. So this QEMU's word counts only where it has the same
    rights as we; raises QemuError where it has not. Its program is the one that it runs, whatever it calls itself.
    """
    if plan.address.scheme != SSH:
        return []
    retry = [] if plan.retry is None else ["--retry", f"{plan.retry:g}"]
    words = ["receive", "--session-stdio", *retry]
    if remote is not None:
        return [*words, "--", *anew(remote)]
    process = demand_equal(monitor.pid)
    return [*words, "--chdir", process.folder, "--", process.program, *anew(process.command)[1:]]


def _agree(request: MigrateRequest, monitor: Monitor, peer: Peer, warn: Tell) -> tuple[Offer, str, Side[Source]]:
    """Compare both hosts, then begin: the offer, the guest's run state, the source from then on.

    Raises StatepipeError.
    """
    state = movable(monitor, request.qmp)
    offer = Offer(MIGRATE, gather(monitor), request.undo, state in LIVE)
    _judge(compare(offer.facts, offer.make(peer)), warn, force=request.force)
    return offer, state, begin(peer)


def movable(monitor: Monitor, qmp: str) -> str:
    """The run state of a guest that can be moved, and that nobody moves already. Raises QemuError."""
    state = monitor.run_state()
    demand_unsent(state, qmp)
    if state not in MOVABLE:
        raise QemuError(f"there is no guest to move: QEMU says {state}", hint="see: statepipe resolve --help")
    monitor.demand_idle()
    return state


def _judge(findings: Sequence[Finding], warn: Tell, *, force: bool) -> None:
    """Raises StatepipeError for what would fail, unless `force`; tells what may."""
    for finding in findings:
        if finding.level == WARN or (force and finding.level == FAIL):
            warn(f"{finding.what}: {finding.reason}")
    if worst(findings) == FAIL and not force:
        reasons = [f"{finding.what}: {finding.reason}" for finding in findings if finding.level == FAIL]
        raise StatepipeError("; ".join(reasons), hint=f"{UNMOVED}; statepipe check shows all, --force overrules")


def _capabilities(request: MigrateRequest) -> dict[str, bool]:
    """Whatever else is on that one stream cannot serve is off meanwhile; `tunnel` carries QEMU's own sockets."""
    return dict.fromkeys((*CAPABILITIES, *request.capabilities), True)


def _go(departure: Departure, request: MigrateRequest, guardian: Guardian) -> None:
    """Raises StatepipeError unless the guest runs over there."""
    if request.offline:
        departure.stop_guest()
    with at_work(departure):
        state = departure.run()
        guardian.settle()
    if state is not Source.MOVED:
        raise _failure(departure, state, request)


def _failure(departure: Departure, state: Source, request: MigrateRequest) -> StatepipeError:
    """What is known of the guest now that it did not move: by the state that was reached, and by QEMU's own word."""
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
        departure.monitor.hurry()  # its settings are still to be set back, if it will
        what = "QEMU here does not answer; the guest was not given away, and whether it runs here is not known"
        return QemuSilent(f"{what}: {error}", hint=f"once it answers: {resolve} here")
    again = None if departure.stranded is not None else _AGAIN[request.plan.address.scheme == SSH]
    error.advise(_whereabouts(departure, resolve), first=True)
    error.advise(again)
    return error


_AGAIN = {
    True: "to try again: the same command",
    False: "to try again: start receive there anew, unless it has --serve, and then the same command here",
}
"""By whether ssh starts the other side."""


def _whereabouts(departure: Departure, resolve: str) -> str:
    """Where a guest is that was kept, as QEMU says it."""
    if departure.stranded is not None:
        return f"the guest is here but stands still: {departure.stranded}; then: {resolve} here"
    try:
        state = departure.monitor.run_state()
        as_before = state == departure.was
        return f"the guest is {state} here, as before" if as_before else f"the guest is here; QEMU says {state}"
    except QemuError as silent:
        return f"the guest was not given away; how it is here is not known: {silent}"


@contextmanager
def _told_where_it_went(steps: _Steps, where: str) -> Iterator[None]:
    """What fails once the guest has moved, as the QEMU that it left, is no word on it: the hint says where it is."""
    try:
        yield
    except StatepipeError as error:
        if steps.has_moved:
            error.advise(where, first=True)
        raise


class _Steps:
    """A journal's listener that knows when each state was reached."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def __call__(self, facts: dict[str, Any]) -> None:
        if "state" in facts:
            self._at[facts["state"]] = time.monotonic()

    @property
    def has_moved(self) -> bool:
        """Whether the other side has said that it has the guest."""
        return Source.MOVED.name in self._at

    def downtime(self, stopped: float | None) -> float:
        """Seconds from QEMU's word that the guest stands still, or from when it was `stopped` before, to the other
        side's that it runs."""
        asked = self._at[Source.ASKED.name]
        return self._at[Source.MOVED.name] - min(asked, stopped or asked)
