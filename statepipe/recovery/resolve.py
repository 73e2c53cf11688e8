"""resolve: what a person decides whom the two hosts could not reach, or whose statepipe was killed.

Of the two QEMUs that hold the guest, one is to run it. Each is asked by itself: what it is at, and with a word, `here`
or `elsewhere`, told.
"""

from __future__ import annotations

import shlex
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from statepipe.errors import QemuError, QemuSilent
from statepipe.qemu.migration import ProcessWatch, end_qemu, outcome
from statepipe.qemu.monitor import LOOK_AGAIN, Monitor
from statepipe.qemu.runstates import LIVE, SENT
from statepipe.recovery.handover import Destination, Source
from statepipe.recovery.journal import read_journal
from statepipe.telling import Tell

ENDING = 10_000
"""Milliseconds that a QEMU has to end when it is told to."""

HERE, ELSEWHERE = "here", "elsewhere"

_MEANINGS = {
    "running": "its guest runs here",
    "suspended": "its guest is here and sleeps; system_wakeup at QEMU's monitor wakes it",
    "io-error": "its guest is here and stands still, as a disk failed or is full; `here` has it try again",
    "guest-panicked": "its guest is here and has panicked",
    "shutdown": "its guest is here and has shut down",
    SENT: "it has sent all of its guest, to a file or to another host, and holds it still",
    "paused": "its guest is here and stands still",
    "prelaunch": "its guest is here and stands still",
    "finish-migrate": "its guest is on its way and stands still",
    "inmigrate": "it waits for a guest, or for the rest of one",
}


def how_to_decide(qmp: str) -> str:
    """What a person does about a guest that stands still behind `qmp`, and of which nobody knows whether it runs there.

    Of two QEMUs one may be about to run the guest: the other one is told nothing before that one has ended.
    """
    resolve = f"statepipe resolve --qmp {shlex.quote(qmp)}"
    return (
        f"the guest stands still here until you decide; look there first, with statepipe resolve; if it runs there: "
        f"{resolve} elsewhere; if it does not, it may yet: end its QEMU there (statepipe resolve … elsewhere, or kill "
        f"-9 where it does not answer), see that it has ended, and only then: {resolve} here"
    )


def demand_unsent(state: str, qmp: str) -> None:
    """Raises QemuError for a guest that QEMU has sent before, and will not send twice: it may run elsewhere by now."""
    if state == SENT:
        what = f"QEMU has sent this guest before, holds it still ({state}) and sends no guest twice"
        raise QemuError(what, hint=how_if_sent(qmp))


def how_if_sent(qmp: str) -> str:
    """What a person does about a guest that QEMU has sent, behind `qmp`."""
    resolve = f"statepipe resolve --qmp {shlex.quote(qmp)}"
    return f"if it runs elsewhere now: {resolve} elsewhere; only if it does not: {resolve} here"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known: QEMU's run state and what that means, the migration's, and the journal's last step, if given."""

    run_state: str
    meaning: str
    migration: str
    step: str | None


def look(qmp: str, journal: str | None, tell: Tell) -> Finding:
    """Ask one QEMU; `tell` hears what it is waited for. Raises StatepipeError."""
    step = None if journal is None else _last_step(read_journal(journal))
    with closing(Monitor(qmp, tell=tell)) as monitor:
        state = monitor.run_state()
        return Finding(state, _MEANINGS.get(state, "its guest does not run"), monitor.migration()["status"], step)


def _last_step(rows: list[dict[str, Any]]) -> str | None:
    states = [row["state"] for row in rows if "state" in row]
    if not states:
        return None
    side = Source if rows[0].get("side") == "source" else Destination
    known = side.__members__.get(states[-1])
    return f"{states[-1]}: {known.value}" if known else str(states[-1])


def decide(qmp: str, where: str, tell: Tell) -> str:
    """Have the guest run `here`, or end this QEMU, as it runs `elsewhere`; what came of it. Raises StatepipeError."""
    with closing(Monitor(qmp, tell=tell)) as monitor:
        if where == HERE:
            return _run(monitor)
        if (state := monitor.run_state()) in LIVE:
            raise QemuError(
                f"the guest is {state} here",
                hint="if it runs elsewhere as well, stop one of them by hand: both have its disks",
            )
        return _end(monitor, state)


def _end(monitor: Monitor, state: str) -> str:
    """Have it end, and see that it has: until then it may do what it was told before. Raises StatepipeError."""
    pid = monitor.pid
    with closing(ProcessWatch(pid)) as process:
        with suppress(QemuSilent):
            end_qemu(monitor)
        if process.fd is None:
            return f"the QEMU that held the guest ({state}) was told to end; check that its process has ended"
        if not process.has_ended(ENDING):
            hint = f"kill -9 {pid}, and check that it has ended before the guest runs elsewhere"
            raise QemuSilent(f"the QEMU that held the guest ({state}) has not ended", hint=hint)
    return f"the QEMU that held the guest ({state}) has ended"


def _run(monitor: Monitor) -> str:
    if monitor.run_state() == "inmigrate":  # what is on its way here, nobody here can undo
        hint = "only the other QEMU can run it: statepipe resolve --qmp SOCKET here, on that host"
        raise QemuError("the guest has not arrived completely", hint=hint)
    outcome(monitor, LOOK_AGAIN, cancels=True)  # its settings are not ours: it may send no event
    monitor.wait_until_running()
    if monitor.run_state() not in LIVE:
        monitor.resume(sent=True)
    return f"the guest is {monitor.run_state()} here"
