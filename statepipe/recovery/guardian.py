"""The guardian: a process beside statepipe that sets a migration or a save right where statepipe itself was killed.

It is a program of its own, started anew and not forked: statepipe has threads by then, and a fork would have their
locks as they were and nobody to open them. It hears each step before anything is done about it, and ends with
statepipe. If its socket ends without a last word, statepipe was killed, or broke off over what nobody had foreseen:
then the tables' rule (recovery/handover.py, RECOVERY) says what is safe. It reaches QEMU by a connection of its own; a
QEMU that statepipe started has a second monitor for it. What it says it did, QEMU or its process was seen to do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, Self, TypeVar

from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, QemuSilent, StatepipeError
from statepipe.pipeline.signals import ENDING
from statepipe.processes import Process
from statepipe.qemu.guest import demand_cont
from statepipe.qemu.migration import resume_stopped
from statepipe.qemu.monitor import FINAL, Monitor
from statepipe.qemu.reach import parse_monitor
from statepipe.qemu.runstates import LIVE, RUNNING, SENT
from statepipe.qemu.settings import restore
from statepipe.qemu.snapshot import read_out, read_unasked
from statepipe.recovery.handover import Action, Destination, Source, recovery
from statepipe.recovery.resolve import how_if_sent, how_to_decide
from statepipe.telling import Tell
from statepipe.wakeups import polled

NOTE_LIMIT = 64 << 10
"""Bytes of one note: a state, or the settings that QEMU had."""

NOTED = ("state", "qmp", "runs", "was", "before", "pid", "over", "stopped", "socket")
"""What it has to know. Whatever else a journal tells, as the other host's words on its guest, may be of any size."""

FDS = 4
"""Descriptors with one note, at the most."""

LOOK = 1.0
"""Seconds between two looks at a migration that may tell of no event."""

KILLED = 10_000
"""Milliseconds in which a process that was killed ends, unless it waits for a disk."""

T = TypeVar("T")

Known = Mapping[str, Any]

Command = Sequence[str]
"""The program that calls `guard`, and its words; the number of the socket comes after them."""

LastWord = Callable[[Callable[[], str]], object]
"""Calls what sets things right, and tells what came of it, or what was raised: there is nobody above to tell."""


class Guardian:
    """Started on entering, by the command. Raises StatepipeError if that cannot be started."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._settled = self._left = False

    def __enter__(self) -> Self:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        fd = theirs.fileno()
        try:
            self._process = Process([*self._command, str(fd)], {0: nothing, 1: nothing, 2: 2, fd: fd})
        except BaseException:
            self._ours.close()
            raise
        finally:
            theirs.close()
            os.close(nothing)
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether it has, before its time."""
        return self._process.has_ended()

    def note(self, facts: Known, fds: Mapping[str, int] | None = None) -> None:
        """Let it know; a later word on a thing takes the place of an earlier one. Whether it lives is no matter.

        Of `fds` it gets duplicates, under their names. Raises StatepipeError for a note of more than NOTE_LIMIT bytes,
        of which it would read a part, and then could set nothing right.
        """
        known = {name: facts[name] for name in NOTED if name in facts} | {"fds": list(fds or ())}
        text = json.dumps(known).encode()
        if len(text) > NOTE_LIMIT:
            what = f"QEMU's migration settings take {len(text)} bytes, and the guardian keeps at most {NOTE_LIMIT}"
            hint = "empty the longest value in query-migrate-parameters, and try again"
            raise StatepipeError(what, hint=hint)
        with suppress(OSError):
            socket.send_fds(self._ours, [text], list((fds or {}).values()))

    def settle(self) -> None:
        """The tables have come to an end of theirs, whichever: only who is killed now needs it still."""
        self._settled = True

    def leave(self) -> None:
        """It is to act when we have ended, and nobody waits for it: QEMU does not answer."""
        self._left = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What broke off in the midst has left QEMU as it was, as if we had been killed: then it acts, and we wait."""
        if self._settled or error is None:
            self.note({"over": True})
        self._ours.close()
        in_haste = isinstance(error, InterruptedBySignal) and not self._settled
        if not (self._left or in_haste):  # it may take as long as QEMU does
            self._process.reap()


def guard(fd: int, side: str, last_word: LastWord, tell: Tell) -> None:
    """The guardian's whole life, in its own program: `fd` is its socket, `side` one of RECOVERIES.

    Should it have to act, `last_word` has all to say, and `tell` hears meanwhile what is waited for.
    """
    for number in ENDING:  # it is out of reach of what ends statepipe, and ends with it all the same
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=fd) as ours:
        known = _listen(ours)
    if "state" in known and "over" not in known:
        last_word(lambda: RECOVERIES[side](known, tell))


def _listen(ours: socket.socket) -> dict[str, Any]:
    """All that was said until the end, and in `states` each state; what came with it stands under its name."""
    known: dict[str, Any] = {"states": []}
    while True:
        text, fds, _, _ = socket.recv_fds(ours, NOTE_LIMIT, FDS)
        if not text:
            return known
        note = json.loads(text)
        known["states"] += [note["state"]] if "state" in note else []
        known.update(note | dict(zip(note.pop("fds"), fds, strict=True)))


# --- what is safe


def recover_source(known: Known, tell: Tell) -> str:
    """Before GO the destination never runs: the guest runs on here. `known`: states, state, qmp, pidfd, runs, was,
    before.

    Raises StatepipeError.
    """
    state = Source[known["state"]]
    actions = recovery(state)
    if state in (
        Source.DOUBTED,
        Source.COMMITTED,
        Source.UNDECIDED,
    ):  # where GO was written down, it may have been sent
        what = "the guest may run or have run on the other host, and whether it does is not known here"
        raise QemuError(what, hint=how_to_decide(known["qmp"]))
    if not actions:
        return f"{state.value}; nothing is done about it"
    return _unless_ended(known, lambda: _take_back(known, tell))


HANDED = frozenset(state.name for state in (Source.HANDING, Source.ACCEPTED, Source.HANDED, Source.ORPHANED))
"""States in which QEMU was told to send the last bytes: before them nothing of ours has sent all of a guest."""


def _take_back(known: Known, tell: Tell) -> str:
    """The stream has ended with statepipe, and the migration with it, unless QEMU waits to be told to go on."""
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


def _patient(known: Known, work: Callable[[], T]) -> T:
    """A QEMU that says nothing is asked again, as long as it lives: each time says so, and takes its time.

    Raises QemuGone once it has ended: another QEMU may listen at its socket by now, with a guest of its own.
    """
    while True:
        _demand_alive(known)
        with suppress(QemuSilent):
            return work()


def _has_ended(known: Known) -> bool:
    """Whether its process was seen to have; not so where it is not known."""
    return "pidfd" in known and bool(polled(known["pidfd"]).poll(0))


def _demand_alive(known: Known) -> None:
    """Raises QemuGone."""
    if _has_ended(known):
        raise QemuGone("QEMU here has ended")


@contextmanager
def _reached(known: Known, tell: Tell) -> Iterator[Monitor]:
    """Its monitor: what answers at its socket while its process lives is that process. Raises QemuError.

    Where its process is not known, the socket must be the one that it listened at: another QEMU makes one of its own.
    """
    with closing(Monitor(known["qmp"], tell=tell)) as monitor:
        _demand_alive(known)
        if "pidfd" not in known and (known.get("socket") is None or known["socket"] != socket_of(known["qmp"])):
            what = f"which QEMU listens at {known['qmp']} is not known, so nothing was changed there"
            hint = "at QEMU's monitor, see whether the guest runs (info status); if it is yours, let it run (cont)"
            raise QemuError(what, hint=hint)
        yield monitor


def socket_of(qmp: str) -> list[int] | None:
    """What tells a listening unix socket from a later one of the same name; None for another address, or if it is
    gone: device, inode, and when it was made or given its mode (nanoseconds)."""
    place = parse_monitor(qmp)
    if not isinstance(place, str):
        return None
    try:
        found = os.stat(place)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_ctime_ns] if stat.S_ISSOCK(found.st_mode) else None


def _unless_ended(known: Known, work: Callable[[], str]) -> str:
    """What it comes to, with a QEMU that may have been killed with statepipe. Raises StatepipeError."""
    try:
        return _patient(known, work)
    except QemuError:
        if _has_ended(known):
            return "QEMU here has ended, and its guest with it"
        raise


def recover_sender(known: Known, tell: Tell) -> str:
    """The guest of a stream that was sent in one phase, to a file or another QEMU, runs on if it was stopped for that.

    Not where QEMU has sent all of it: whoever has it may run it, and that may be another client's doing since. `known`:
    qmp, pidfd, runs, before, and if it is so `stopped`; `snapshot`, the stream of one that must not be broken off.
    Raises StatepipeError.
    """
    return _unless_ended(known, lambda: _let_go_on(known, tell))


def _let_go_on(known: Known, tell: Tell) -> str:
    if "snapshot" in known:
        read_unasked(known["snapshot"])
    with _reached(known, tell) as monitor:
        if "snapshot" in known:
            read_out(known["snapshot"], monitor, tell)
        if (status := monitor.migration()["status"]) != "none":
            if status not in FINAL:  # ours, where QEMU sends without us, or another client's
                tell(f"QEMU continues its migration; process {os.getpid()} waits for it to end")
            monitor.migration_outcome(LOOK)
        monitor.wait_until_running()
        try:
            if known["runs"] and known.get("stopped"):
                resume_stopped(monitor)
        finally:
            restore(monitor, known["before"])
        if monitor.has_sent():
            raise _sent(known)
        return f"the guest here is {monitor.run_state()}, QEMU's migration settings are as before"


class GuestSent(QemuError):
    """Nothing is left to be set right: another QEMU, or a file, may have the guest by now, and a person decides."""


def _sent(known: Known) -> GuestSent:
    return GuestSent(f"QEMU has sent all of the guest and holds it still ({SENT})", hint=how_if_sent(known["qmp"]))


def recover_destination(known: Known, tell: Tell) -> str:
    """Before GO the guest must never run here, after it nowhere else. `known`: state, pid, pidfd, spare, qmp, runs.

    Raises StatepipeError.
    """
    state = Destination[known["state"]]
    actions = recovery(state)
    if Action.END in actions or Action.END_OURS in actions:
        return _end(known)
    if Action.START in actions:
        return _start(known, tell) if known["runs"] else "the guest is here and does not run, as before"
    return f"{state.value}; nothing is done about it"


def _end(known: Known) -> str:
    with suppress(ProcessLookupError):  # it was quicker
        signal.pidfd_send_signal(known["pidfd"], signal.SIGKILL)
    if polled(known["pidfd"]).poll(KILLED):
        return "the QEMU that waited here for the guest is ended"
    return (
        f"the QEMU that waited here for the guest (process {known['pid']}) was killed and has not ended yet; "
        "its guest never ran"
    )


def _start(known: Known, tell: Tell) -> str:
    """What statepipe told QEMU, and perhaps did not live to see answered."""

    def run(monitor: Monitor) -> str:
        monitor.resume()
        state = monitor.run_state()
        return "the guest runs here" if state == RUNNING else f"the guest is {state} here"

    try:
        with closing(_patient(known, lambda: _monitor(known, tell))) as monitor:
            return _patient(known, lambda: run(monitor))  # however late its disk is: it would run it then in any case
    except QemuError as error:
        if _has_ended(known):
            what = "QEMU here has ended after it was told to run the guest: whether the guest ran here is not known"
            raise QemuError(what) from error
        raise


def _monitor(known: Known, tell: Tell) -> Monitor:
    if "spare" in known:
        return Monitor(socket.socket(fileno=os.dup(known["spare"])), known["pid"], tell)
    return Monitor(known["qmp"], tell=tell)


RECOVERIES: Mapping[str, Callable[[Known, Tell], str]] = {
    "source": recover_source,
    "destination": recover_destination,
    "sender": recover_sender,
}
"""By the side that statepipe was."""
