"""resolve: a person decides where a guest runs that the two hosts could not agree on, or whose statepipe was killed.

Two QEMUs may have the guest, and one of them is to run it. Each is asked by itself, and told `here` or `elsewhere`.
"""

from __future__ import annotations

import shlex
from contextlib import closing, suppress
from dataclasses import dataclass

from statepipe.errors import QemuError, QemuSilent
from statepipe.qemu.late_pages import comes_late
from statepipe.qemu.migration import ProcessWatch, end_qemu, outcome
from statepipe.qemu.monitor import LOOK_AGAIN, Monitor
from statepipe.qemu.runstates import LIVE, SENT
from statepipe.recovery.handover import Destination, Source
from statepipe.recovery.journal import read_journal
from statepipe.telling import Tell
from statepipe.typed import Any

END_TIME = 10_000
"""Milliseconds in which a QEMU must end after it was told to."""

HERE, ELSEWHERE = "here", "elsewhere"

_MEANINGS = {
    "running": "its guest runs here",
    "suspended": "its guest is here and sleeps; system_wakeup at QEMU's monitor wakes it",
    "io-error": "its guest is here and is stopped, as a disk failed or is full; `here` makes it try again",
    "guest-panicked": "its guest is here and has panicked",
    "shutdown": "its guest is here and has shut down",
    SENT: "it has sent all of its guest, to a file or to another host, and keeps it stopped",
    "paused": "its guest is here and is paused",
    "prelaunch": "its guest is here and does not run",
    "finish-migrate": "its guest is being sent and is stopped",
    "inmigrate": "it waits for a guest, or for the rest of one",
}


def how_to_decide(qmp: str) -> str:
    """Return what a person does about a stopped guest behind `qmp` that may run on the other host.

    One of the two QEMUs may be about to run the guest: the other one is told nothing before that one has ended.
    """
    resolve = f"statepipe resolve --qmp {shlex.quote(qmp)}"
    return (
        f"the guest here stays stopped until you decide; look there first, with statepipe resolve; if it runs there: "
        f"{resolve} elsewhere; if it does not, it may yet: end its QEMU there (statepipe resolve … elsewhere, or kill "
        f"-9 if it does not answer), see that it has ended, and only then: {resolve} here"
    )


def demand_unsent(state: str, qmp: str) -> None:
    """Raises QemuError for a guest that QEMU has sent before: it may run elsewhere, and QEMU sends none twice."""
    if state == SENT:
        what = f"QEMU has sent this guest before, keeps it stopped ({state}) and sends no guest twice"
        raise QemuError(what, hint=how_if_sent(qmp))


def how_if_sent(qmp: str) -> str:
    """Return what a person does about a guest behind `qmp` that QEMU has sent."""
    resolve = f"statepipe resolve --qmp {shlex.quote(qmp)}"
    return f"if it runs elsewhere now: {resolve} elsewhere; only if it does not: {resolve} here"


@dataclass(frozen=True, slots=True)
class Situation:
    """QEMU's run state and what it means, its migration's status, the journal's last step, if one was given, and what
    to do about memory that QEMU lacks."""

    run_state: str
    meaning: str
    migration: str
    step: str | None
    lacking: str | None


def look(qmp: str, journal: str | None, tell: Tell) -> Situation:
    """Ask one QEMU; `tell` hears what is waited for. Raises StatepipeError."""
    step = None if journal is None else last_step(read_journal(journal))
    with closing(Monitor(qmp, tell=tell)) as monitor:
        state = monitor.run_state()
        meaning = _MEANINGS.get(state, "its guest does not run")
        return Situation(state, meaning, monitor.migration()["status"], step, _how_to_complete(monitor, qmp))


def _how_to_complete(monitor: Monitor, qmp: str) -> str | None:
    """Return what a person does about a guest whose memory is not complete; None about any other."""
    if (digest := comes_late(monitor)) is None:
        return None
    if not digest:
        return "each of two QEMUs has a part of the guest (postcopy): end neither, and continue that migration"
    command = f"statepipe load --resume --qmp {shlex.quote(qmp)} FILE"
    state = f"the state whose blake3 begins {digest[:16]}"
    return f"do not end this QEMU; unless a statepipe loads it now (see statepipe ps), continue with {state}: {command}"


def _demand_complete(monitor: Monitor, qmp: str) -> None:
    """Raises QemuError for a guest that lacks memory: it cannot run without, and its disks are newer than its state."""
    if hint := _how_to_complete(monitor, qmp):
        raise QemuError("not all of the guest's memory is here", hint=hint)


def last_step(rows: list[dict[str, Any]]) -> str | None:
    """Return the last state in the rows of a journal, with its meaning if it is known."""
    states = [row["state"] for row in rows if "state" in row]
    if not states:
        return None
    side = Source if rows[0].get("side") == "source" else Destination
    known = side.__members__.get(states[-1])
    return f"{states[-1]}: {known.value}" if known else str(states[-1])


def decide(qmp: str, where: str, tell: Tell) -> str:
    """Let the guest run `here`, or end this QEMU because it runs `elsewhere`; return what came of it.

    A QEMU that is to end is seen to have ended: until then it may do what it was told before. Raises StatepipeError.
    """
    with closing(Monitor(qmp, tell=tell)) as monitor:
        state = monitor.run_state()
        if where == HERE:
            if state == "inmigrate":  # a guest that is on its way here cannot be taken back from here
                hint = "only the other QEMU can run it: statepipe resolve --qmp SOCKET here, on that host"
                raise QemuError("the guest has not arrived completely", hint=hint)
            _demand_complete(monitor, qmp)
            outcome(monitor, LOOK_AGAIN, cancels=True)  # its settings are not ours: it may send no event
            monitor.wait_until_running()
            if monitor.run_state() not in LIVE:
                monitor.resume(sent=True)
            return f"the guest is {monitor.run_state()} here"
        if state in LIVE:
            hint = "if it runs elsewhere as well, stop one of the two by hand: both use its disks"
            raise QemuError(f"the guest is {state} here", hint=hint)
        _demand_complete(monitor, qmp)
        pid, what = monitor.pid, f"the QEMU that held the guest ({state})"
        with closing(ProcessWatch(pid)) as process:
            with suppress(QemuSilent):
                end_qemu(monitor)
            if process.fd is None:
                return f"{what} was told to end; check that its process has ended"
            if not process.has_ended(END_TIME):
                hint = f"kill -9 {pid}, and check that it has ended before the guest runs elsewhere"
                raise QemuSilent(f"{what} has not ended", hint=hint)
        return f"{what} has ended"
