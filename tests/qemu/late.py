"""A guest on its way while something answers late, and a signal comes: what is late, when, and what is seen of it.

Late is a process that stands still (SIGSTOP) and goes on later, or a link that holds its bytes back: a QEMU, the
server of a QEMU's disk, the other statepipe, the network. Nothing is lost by it, and each answer comes in the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.net.relay import Faults, Relay, relay
from tests.qemu.harness import Guest, QmpError, run_statepipe, wait_for
from tests.qemu.moving import Credentials, Running, mover, receiver

RETRY = ("--retry", "3")
"""Seconds without a link: so soon is a lost one given up here."""

BOUND = 60.0
"""Seconds in which both statepipes have ended once nothing is late any more."""

AFTERMATH = 4.0
"""Seconds that the other one has to end as well, before a person acts on what both have said."""

WORD = 2.5
"""Seconds after a signal in which a statepipe that stays has said what it waits for, for certain."""

SIDES = ("migrate", "receive")


@dataclass(frozen=True)
class Case:
    """A signal to one side, `after` seconds after it has told its `state`, while something is late.

    It is late from the moment that the source or the destination tells `since` (at once: None), and answers `hold`
    seconds after the signal. `before` is the side that breaks it off first; with `own`, `receive` starts its QEMU.
    """

    side: str
    states: tuple[str, ...]
    late: str
    since: tuple[str, str] | None = None
    number: signal.Signals = signal.SIGTERM
    after: float = 0.0
    hold: float = 1.5
    before: str | None = None
    own: bool = False

    @property
    def name(self) -> str:
        when = f"{self.after * 1000:g}ms"
        kind = self.number.name.removeprefix("SIG")
        words = [self.side, self.states[0], self.late.replace(" ", "_"), kind, when, f"{self.hold:g}s"]
        return "-".join([*words, *(["own"] if self.own else [])])


class NbdDisk:
    """A qcow2 image that qemu-nbd serves, so that it can answer late. A context manager that never leaves it behind."""

    def __init__(self, folder: Path, name: str) -> None:
        self._image = folder / f"{name}.qcow2"
        self._sockets = Path(tempfile.mkdtemp(prefix="nbd-"))
        self._socket = self._sockets / "nbd"

    def __enter__(self) -> NbdDisk:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self._image, "4M"], check=True)
        words = ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", self._socket, self._image]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            wait_for("qemu-nbd", lambda: self._socket.exists() or self._process.poll() is not None)
            assert self._process.poll() is None, "qemu-nbd has ended"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)
        self._sockets.rmdir()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def words(self) -> list[str]:
        """For QEMU's command line."""
        server = f"file.driver=nbd,file.server.type=unix,file.server.path={self._socket}"
        return ["-drive", f"if=none,id=late,driver=qcow2,{server}"]


class Foreign:
    """A process that is not our child, with what a Guest needs of one."""

    def __init__(self, pid: int) -> None:
        self.pid, self._fd = pid, os.pidfd_open(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return 0 if self._has_ended(0) else None

    def _has_ended(self, seconds: float) -> bool:
        return bool(select.select([self._fd], [], [], seconds)[0])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        assert self._has_ended(seconds), f"process {self.pid} lives"
        return 0

    def close(self) -> None:
        os.close(self._fd)


class Adopted(Guest):
    """A QEMU that `receive` starts, by this one's command line. On entering it has to run."""

    def __init__(self, folder: Path, args: Sequence[str], **more: Any) -> None:
        self._pidfile = folder / "pid"
        quiet = ["sh", "-c", 'exec "$@" 2>"$0"', str(folder / "said")]  # it would hold what we read from
        super().__init__(folder, args=[*args, "-pidfile", str(self._pidfile)], wrapper=quiet, **more)

    def __enter__(self) -> Adopted:
        pid = wait_for("QEMU's process", lambda: self._pidfile.exists() and self._pidfile.read_text().strip())
        self._process = Foreign(int(pid))  # type: ignore[assignment]
        self._qmp = self._connect()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._process.close()  # type: ignore[attr-defined]


@dataclass
class Line:
    """What a statepipe said, when (as time.time()), and what was true then: whether each QEMU had ended."""

    text: str
    at: float
    ended: dict[str, bool]


class Steps:
    """The states that one side tells through --status-fd."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.told: list[tuple[str, float]] = []
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)

    def start(self) -> None:
        """The writing end is the statepipe's by now."""
        os.close(self.writing)
        self._thread.start()

    def _read(self) -> None:
        with os.fdopen(self.reading, "rb") as lines:
            for line in lines:
                step = json.loads(line).get("step", {})
                if "state" in step:
                    self._note(str(step["state"]))
        self._note(None)

    def _note(self, state: str | None) -> None:
        with self._changed:
            if state is None:
                self._over = True
            else:
                self.told.append((state, time.time()))
            self._changed.notify_all()

    def wait(self, *states: str, seconds: float = 60.0) -> bool:
        """Whether one of these was told, before the end of all and in that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._has(states), seconds)
            return self._has(states)

    def _has(self, states: Sequence[str]) -> bool:
        return any(state in states for state, _ in self.told)

    @property
    def last(self) -> str:
        return self.told[-1][0] if self.told else "-"

    def join(self) -> None:
        self._thread.join()


@dataclass
class Move:
    """A migration under way, all that is in it, and all that was said of it."""

    source: Guest
    target: Guest
    disks: dict[str, NbdDisk]
    rail: Relay
    running: dict[str, Running]
    steps: dict[str, Steps]
    lines: dict[str, list[Line]] = field(default_factory=lambda: {side: [] for side in SIDES})
    stopped: list[int] = field(default_factory=list)
    killed: dict[str, float] = field(default_factory=dict)

    def guest(self, side: str) -> Guest:
        return self.source if side == "migrate" else self.target

    # --- what is late

    def delay(self, what: str, side: str) -> None:
        """From now on it does not answer. `what`: of this `side` ("here") or the other one ("there")."""
        kind, _, where = what.partition(" ")
        other = SIDES[1 - SIDES.index(side)]
        whose = other if where == "there" else side
        if kind == "link":
            self.rail.faults.clear.clear()
        else:
            pids = {"qemu": self.guest(whose).pid, "disk": self.disks[whose].pid, "peer": self.running[other].pid}
            self.stop(pids[kind])

    def stop(self, pid: int) -> None:
        self.stopped.append(pid)
        with contextlib.suppress(ProcessLookupError):  # it has ended: no answer of its is late
            os.kill(pid, signal.SIGSTOP)

    def answer(self) -> None:
        """Nothing is late any more."""
        self.rail.faults.clear.set()
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped.clear()

    def kill_qemu(self, side: str) -> None:
        """As a person does whom it does not answer. Returns once it has ended."""
        self.guest(side).kill()
        self.guest(side).wait()
        self.killed[side] = time.time()

    def end(self) -> None:
        """All of it, at once: a guardian that waits for a QEMU would hold what we read from."""
        self.answer()
        for running in self.running.values():
            running.kill()
        for guest in (self.source, self.target):
            guest.kill()

    # --- what is seen

    def hear(self, side: str, text: str) -> None:
        ended = {each: has_ended(self.guest(each).pid) for each in SIDES}
        self.lines[side].append(Line(text, time.time(), ended))

    def wait_ended(self, side: str, seconds: float) -> bool:
        """Whether that statepipe has ended, in that time at the most."""
        try:
            self.running[side].wait_process(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def look_back(self) -> dict[str, History]:
        """What both QEMUs told of their guests."""
        return {side: History(self.guest(side), side == "migrate", self.killed.get(side, math.inf)) for side in SIDES}


class History:
    """When a QEMU's guest ran until it was `killed`, as its events tell, by its clock, which is ours."""

    def __init__(self, guest: Guest, runs: bool, killed: float) -> None:
        self.ran_at_first, self.killed = runs, killed
        self.alive = not guest.ended()
        self.changes: list[tuple[float, bool]] = []
        for event in guest.all_events():
            if event["event"] in ("RESUME", "STOP"):
                at = event["timestamp"]
                self.changes.append((at["seconds"] + at["microseconds"] / 1e6, event["event"] == "RESUME"))

    def ran(self, at: float) -> bool:
        """Whether the guest ran at that moment (time.time())."""
        return at < self.killed and next(
            (runs for when, runs in reversed(self.changes) if when <= at), self.ran_at_first
        )

    @property
    def ever(self) -> bool:
        return self.ran_at_first or any(runs for _, runs in self.changes)

    def __str__(self) -> str:
        changes = ", ".join(f"{'ran' if runs else 'stood'} from {at:.3f}" for at, runs in self.changes)
        return f"{'alive' if self.alive else 'ended'}, {'ran' if self.ran_at_first else 'stood'} at first; {changes}"


@contextlib.contextmanager
def under_way(
    folder: Path,
    qemu: str,
    credentials: Credentials,
    *,
    own: bool = False,
    how: Sequence[str] = ("--detach",),
    **more: Any,
) -> Iterator[Move]:
    """A guest that begins to move. All is put in order at the end, whatever was late.

    With `own`, `receive` starts its QEMU, and `how` says what becomes of that. `more`: how statepipe is run.
    """
    with contextlib.ExitStack() as stack:
        disks = {side: stack.enter_context(NbdDisk(folder, side)) for side in SIDES}
        small: dict[str, Any] = {"qemu": qemu, "memory": 64, "fill": 8, "dirty": 1}
        source = stack.enter_context(Guest(folder, args=disks["migrate"].words, **small))
        small["image"] = source.image
        if own:
            target: Guest = Adopted(folder, disks["receive"].words, **small)
            into = [*how, "--", *target.command]
        else:
            waits = ["-S", *disks["receive"].words]
            target = stack.enter_context(Guest(folder, incoming="defer", args=waits, **small))
            into = ["--qmp", target.socket]
        source.wait_ticks(3)
        steps = {side: Steps() for side in SIDES}
        fds = {side: {"pass_fds": [steps[side].writing]} for side in SIDES}
        arguments = {side: [*RETRY, "--status-fd", steps[side].writing] for side in SIDES}
        receiving, port = receiver(credentials, *arguments["receive"], *into, **fds["receive"], **more)
        stack.enter_context(receiving)
        faults = Faults(bandwidth=2e6 if own else None)
        rail = stack.enter_context(relay(port, faults))
        steps["receive"].start()
        stack.callback(steps["receive"].join)
        limits = ("--downtime-limit", "2000")
        moving = mover(credentials, source, rail.port, *arguments["migrate"], *limits, **fds["migrate"], **more)
        stack.enter_context(moving)
        steps["migrate"].start()
        stack.callback(steps["migrate"].join)
        if own:
            stack.enter_context(target)
            faults.bandwidth = None
        it = Move(source, target, disks, rail, {"migrate": moving, "receive": receiving}, steps)
        stack.callback(it.end)
        for side in SIDES:
            it.running[side].on_line(lambda text, side=side: it.hear(side, text))  # type: ignore[misc]
        yield it


Person = Callable[[Move], None]


def play(it: Move, case: Case, meanwhile: Person) -> str:
    """Do as the case says; `meanwhile` acts while all is still late. The state of the signalled side at the signal."""
    if case.since is None or it.steps[case.since[0]].wait(*case.since[1].split("|")):
        it.delay(case.late, case.side)
    if case.before is not None:
        it.running[case.before].send(signal.SIGTERM)
    it.steps[case.side].wait(*case.states, seconds=10.0)
    threading.Event().wait(case.after)  # the point in time is what the case is about
    state, words = it.steps[case.side].last, len(it.lines[case.side])
    if not it.running[case.side].ended():
        it.running[case.side].send(case.number)
    if it.wait_ended(case.side, case.hold):
        it.wait_ended(SIDES[1 - SIDES.index(case.side)], AFTERMATH)
    elif case.hold >= WORD:
        wait_for("a word on what is late", lambda: it.running[case.side].ended() or len(it.lines[case.side]) > words)
    meanwhile(it)
    it.answer()
    for side in SIDES:
        assert it.wait_ended(side, BOUND), f"{side} has not ended: {said(it)}"
        it.running[side].wait()
    return state


def said(it: Move) -> str:
    """All that both said, for who reads a failure."""
    rows = []
    for side in SIDES:
        steps = " ".join(state for state, _ in it.steps[side].told)
        rows += [f"{side}: {steps}", *(f"    {text}" for text in it.running[side].said if text)]
    return "\n".join(["", *rows])


def resolve(guest: Guest, *words: str, seconds: float = 10.0) -> subprocess.CompletedProcess[str] | None:
    """What a person types; None where it did not answer in that time, and was broken off."""
    try:
        return run_statepipe("resolve", "--qmp", guest.socket, *words, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def has_ended(pid: int) -> bool:
    """Whether a child of ours has, reaped or not; from any thread."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def run_state(guest: Guest) -> str | None:
    """None once it has ended."""
    try:
        return None if guest.ended() else guest.run_state()
    except (ConnectionError, QmpError):
        return None
