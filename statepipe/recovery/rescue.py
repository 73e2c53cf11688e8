"""What the guardian does about QEMU if statepipe was killed: what is safe, by how far statepipe had come.

The tables' rule (recovery/handover.py, RECOVERY) says what that is. The guardian has its own connection to QEMU; a QEMU
that statepipe started has a second monitor for it. What is reported, QEMU or its process was seen to do.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress

from statepipe.errors import QemuError, QemuGone, QemuSilent
from statepipe.qemu.guest import demand_cont
from statepipe.qemu.migration import outcome, resume_stopped
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.reach import parse_monitor
from statepipe.qemu.runstates import FINAL, LIVE, RUNNING, SENT
from statepipe.qemu.settings import restore
from statepipe.qemu.snapshot import read_out, read_unasked
from statepipe.recovery.guardian import Decide, Notes, Recover
from statepipe.recovery.handover import RECOVERY, Action, Destination, Source
from statepipe.recovery.resolve import how_if_sent, how_to_decide
from statepipe.telling import Tell
from statepipe.typed import TypeVar
from statepipe.wakeups import polled

LOOK = 1.0
"""Seconds between two looks at a migration that may send no event."""

KILLED = 10_000
"""Milliseconds in which a process that was killed ends, unless it waits for a disk."""

T = TypeVar("T")


def recover_source(known: Notes, tell: Tell) -> str:
    """Cancel a migration before GO, so that the guest runs on here. `known`: states, state, qmp, pid, pidfd, socket,
    runs, was, before. Raises StatepipeError."""
    state = Source[known["state"]]
    if state in (Source.DOUBTED, Source.COMMITTED, Source.UNDECIDED):  # GO may have been sent
        what = "the guest may run or have run on the other host, and whether it does is not known here"
        raise QemuError(what, hint=how_to_decide(known["qmp"]))
    if not RECOVERY[state]:
        return f"{state.value}; nothing is done about it"

    def take_back() -> str:
        # statepipe's end of the stream is closed, so the migration ends, unless QEMU waits for migrate-continue
        with _reached(known, tell) as monitor:
            while (status := monitor.flowing()["status"]) not in ("none", *FINAL):
                if status == "pre-switchover":
                    monitor.execute("migrate_cancel")
                monitor.migration_changed(status, LOOK)
            monitor.wait_until_running()
            try:
                if known["runs"] and (now := monitor.run_state()) not in LIVE:
                    if HANDED.isdisjoint(known["states"]) and monitor.has_sent():
                        raise _sent(known)
                    if now == SENT:
                        demand_cont(monitor, known["was"])
                    monitor.resume(sent=True)
            finally:
                restore(monitor, known["before"])
            return f"the migration is undone, the guest here is {monitor.run_state()}"

    return _unless_ended(known, take_back)


HANDED = frozenset(state.name for state in (Source.HANDING, Source.ACCEPTED, Source.HANDED, Source.ORPHANED))
"""States after QEMU was told to send the last bytes: before them, no migration of ours has sent a whole guest."""


def recover_sender(known: Notes, tell: Tell) -> str:
    """Let the guest of a stream in one phase (to a file or another QEMU) run on, if it was stopped for that.

    A guest that QEMU has sent stays stopped: whoever has it may run it, and another client may have sent it since.
    `known`: qmp, pid, pidfd, socket, runs, before, `stopped` if it was; `snapshot`, the stream of one that must not be
    broken off. Raises StatepipeError.
    """

    def let_run_on() -> str:
        if "snapshot" in known:
            read_unasked(known["snapshot"])
        with _reached(known, tell) as monitor:
            if "snapshot" in known:
                read_out(known["snapshot"], monitor, tell)
            if monitor.migration()["status"] not in ("none", *FINAL):  # ours, or another client's
                tell(f"QEMU continues its migration; process {os.getpid()} waits for it to end")
            outcome(monitor, LOOK)
            monitor.wait_until_running()
            try:
                if known["runs"] and known.get("stopped"):
                    resume_stopped(monitor)
            finally:
                restore(monitor, known["before"])
            if monitor.has_sent():
                raise _sent(known)
            return f"the guest here is {monitor.run_state()}, QEMU's migration settings are as before"

    return _unless_ended(known, let_run_on)


class GuestSent(Decide):
    """Nothing is left to restore: another QEMU, or a file, may have the guest, and a person decides."""


def _sent(known: Notes) -> GuestSent:
    return GuestSent(f"QEMU has sent all of the guest and keeps it stopped ({SENT})", hint=how_if_sent(known["qmp"]))


def recover_destination(known: Notes, tell: Tell) -> str:
    """Before GO, end QEMU, so that the guest never runs here; after GO, run it, as it runs nowhere else. `known`:
    state, pid, pidfd, spare, qmp, runs. Raises StatepipeError."""
    state = Destination[known["state"]]
    actions = RECOVERY[state]
    if Action.END in actions or Action.END_OURS in actions:
        with suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(known["pidfd"], signal.SIGKILL)
        if polled(known["pidfd"]).poll(KILLED):
            return "the QEMU that waited here for the guest is ended"
        return (
            f"the QEMU that waited here for the guest (process {known['pid']}) was killed and has not ended yet; "
            "its guest never ran"
        )
    if Action.START in actions:
        return _start(known, tell) if known["runs"] else "the guest is here and does not run, as before"
    return f"{state.value}; nothing is done about it"


def _start(known: Notes, tell: Tell) -> str:
    """Tell QEMU again what statepipe told it, perhaps without hearing the answer."""

    def reached() -> Monitor:
        if "spare" in known:
            return Monitor(socket.socket(fileno=os.dup(known["spare"])), known["pid"], tell)
        return _connected(known, tell)

    def run(monitor: Monitor) -> str:
        monitor.resume()
        state = monitor.run_state()
        return "the guest runs here" if state == RUNNING else f"the guest is {state} here"

    try:
        with closing(_patient(known, reached)) as monitor:
            return _patient(known, lambda: run(monitor))  # however late its disk: it would run the guest then anyway
    except QemuError as error:
        if _has_ended(known):
            what = "QEMU here has ended after it was told to run the guest: whether the guest ran here is not known"
            raise QemuError(what) from error
        raise


RECOVERIES: Mapping[str, Recover] = {
    "source": recover_source,
    "destination": recover_destination,
    "sender": recover_sender,
}
"""By the side that statepipe was."""


# --- reaching QEMU


def _unless_ended(known: Notes, work: Callable[[], str]) -> str:
    """Return the result of `work`, or that QEMU has ended: it may have been killed with statepipe. Raises
    StatepipeError."""
    try:
        return _patient(known, work)
    except QemuError:
        if _has_ended(known):
            return "QEMU here has ended, and its guest with it"
        raise


def _patient(known: Notes, work: Callable[[], T]) -> T:
    """Repeat `work` for as long as QEMU lives and does not answer; each time it says so.

    Raises QemuGone once QEMU has ended: another QEMU may listen at its socket by now, with its own guest.
    """
    while True:
        _demand_alive(known)
        with suppress(QemuSilent):
            return work()


def _has_ended(known: Notes) -> bool:
    """Whether its process was seen to have ended; False if the process is not known."""
    return "pidfd" in known and bool(polled(known["pidfd"]).poll(0))


def _demand_alive(known: Notes) -> None:
    """Raises QemuGone."""
    if _has_ended(known):
        raise QemuGone("QEMU here has ended")


@contextmanager
def _reached(known: Notes, tell: Tell) -> Iterator[Monitor]:
    """Its monitor, closed on leaving. Raises QemuError as `_connected` does."""
    with closing(_connected(known, tell)) as monitor:
        yield monitor


def _connected(known: Notes, tell: Tell) -> Monitor:
    """Connect to its monitor. Raises QemuError, also if another QEMU may answer there: that has its own guest.

    A QEMU that was started later with the same option takes the socket's name away from one that lives. So the process
    that listens must be the noted one; if that is not known, the socket must be the one at which it listened.
    """
    monitor, pid = Monitor(known["qmp"], tell=tell), known.get("pid", 0)
    try:
        _demand_alive(known)
        if "pidfd" in known and monitor.pid != pid:
            what = f"another process than its QEMU ({pid}) listens at {known['qmp']} now, so nothing was changed there"
            hint = f"at a monitor of process {pid}, see whether the guest runs (info status), and let it run (cont)"
            raise QemuError(what, hint=hint)
        if "pidfd" not in known and (known.get("socket") is None or known["socket"] != socket_of(known["qmp"])):
            what = f"which QEMU listens at {known['qmp']} is not known, so nothing was changed there"
            hint = "at QEMU's monitor, see whether the guest runs (info status); if it is yours, let it run (cont)"
            raise QemuError(what, hint=hint)
    except BaseException:
        monitor.close()
        raise
    return monitor


def socket_of(qmp: str) -> list[int] | None:
    """Return what distinguishes a listening unix socket from a later one of the same name: device, inode, and when it
    was made or given its mode (nanoseconds). None for another address, or if it is gone."""
    place = parse_monitor(qmp)
    if not isinstance(place, str):
        return None
    try:
        found = os.stat(place)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_ctime_ns] if stat.S_ISSOCK(found.st_mode) else None
