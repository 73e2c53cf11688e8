"""load --lazy that gets a signal at each of its steps: what it says is true, nothing is lost, nothing is left over."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, Qmp, assert_continues, run_statepipe, wait_for
from tests.qemu.lazily import RESUME, SLOW, Lazy, assert_went_on, pids_with
from tests.qemu.loading import MEMORY, Saved, end_qemu, qemu_command, qemu_pid
from tests.qemu.striking import steps_of, striking

TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL

NEVER_RAN, WAITS, CONTINUED, COMPLETE = "never ran", "waits", "continued", "complete"

EVERY = {
    ("started", TERM, "before OwnMonitor"): NEVER_RAN,
    ("started", INT, "after Child"): NEVER_RAN,
    ("started", HUP, "after Monitor.execute migrate-set-capabilities"): NEVER_RAN,
    ("started", TERM, "after Monitor.execute migrate-incoming"): NEVER_RAN,
    ("started", INT, "before Monitor.execute cont"): NEVER_RAN,
    ("started", TERM, "after Monitor.execute cont"): CONTINUED,
    ("started", HUP, "after Monitor.execute object-del"): CONTINUED,
    ("started", INT, "before Rest.settle"): COMPLETE,
    ("started", TERM, "after Rest.settle"): COMPLETE,
    ("started", KILL, "before Child"): NEVER_RAN,
    ("started", KILL, "after Child"): NEVER_RAN,
    ("started", KILL, "before Monitor.execute stop"): NEVER_RAN,
    ("started", KILL, "after Server.begin"): NEVER_RAN,
    ("started", KILL, "before Keeping.may_run"): NEVER_RAN,
    ("started", KILL, "after Keeping.may_run"): CONTINUED,
    ("started", KILL, "before Monitor.execute cont"): CONTINUED,
    ("started", KILL, "before Rest.settle"): COMPLETE,
    ("started", KILL, "after Rest.settle"): COMPLETE,
    ("waiting", TERM, "before Monitor.execute migrate-incoming"): WAITS,
    ("waiting", TERM, "before Monitor.execute cont"): NEVER_RAN,
    ("waiting", HUP, "after Monitor.execute cont"): CONTINUED,
    ("waiting", TERM, "after Rest.settle"): COMPLETE,
    ("waiting", KILL, "before Monitor.give"): WAITS,
    ("waiting", KILL, "before Monitor.execute stop"): NEVER_RAN,
    ("waiting", KILL, "after Server.begin"): NEVER_RAN,
    ("waiting", KILL, "before Keeping.may_run"): NEVER_RAN,
    ("waiting", KILL, "before Rest.wait"): CONTINUED,
    ("resumed", TERM, "before _agree"): CONTINUED,
    ("resumed", KILL, "after _agree"): CONTINUED,
    ("resumed", KILL, "before Rest.settle"): COMPLETE,
    ("resumed", INT, "before Rest.settle"): COMPLETE,
}
"""What becomes of the guest of a QEMU that is started, of one that waits, and of a load that is continued."""


class Struck:
    """A QEMU, and a statepipe that gets the signal `number` at `step`."""

    def __init__(self, folder: Path, saved: Saved, runtime: Path, number: signal.Signals, step: str) -> None:
        self.folder, self.saved, self._runtime, self._number = folder, saved, runtime, number
        self.record = folder / "steps"
        self._program = striking(number, step, self.record)
        self._stderr = folder / "struck-stderr"
        self.address = ""

    @property
    def said(self) -> str:
        return self._stderr.read_text()

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it."""
        with self._stderr.open("w") as stderr:
            return subprocess.Popen([*self._program, "load", *words], stdin=subprocess.DEVNULL, stderr=stderr)

    def run(self, *words: str) -> str:
        """Run it to its end; what became of the guest."""
        with self.start(*words) as process:
            try:
                status = process.wait(60)
            finally:
                process.kill()
        if self._number is KILL:
            return self._after_kill(status)
        assert "Traceback" not in self.said, self.said
        error = self.said.partition(f"stopped by {self._number.name}")[2]
        if not error:  # it came too late
            assert status == 0 and "all memory is loaded" in self.said, f"{status} {self.said}"
            return self._went_on(COMPLETE) if self.lives() else self._ended(COMPLETE)
        assert status == 128 + self._number, f"{status} {self.said}"
        if not self.ran():
            assert RESUME not in self.said, self.said
            return self._waits() if self.lives() else self._ended(NEVER_RAN)
        if RESUME not in error and "the guest is left as it is" not in error:
            assert "the guest is running, with all of its memory loaded" in error, self.said
            return self._went_on(COMPLETE)
        assert "the guest is running, with " in error or "may be running" in error or "as it is" in error, self.said
        done = run_statepipe(*shlex.split(error.splitlines()[1].rpartition(RESUME)[2]))
        assert done.returncode == 0, self.said + done.stderr
        if "nothing is left to continue" in done.stderr:  # the last pages were in the socket when it ended
            return self._went_on(COMPLETE)
        assert "all memory is loaded" in done.stderr, self.said + done.stderr
        return self._went_on(CONTINUED)

    def _after_kill(self, status: int) -> str:
        """Nobody says anything: a person tries to continue."""
        assert status == -KILL
        address = self.address or str(next(iter(self._runtime.glob("load-*.qmp")), ""))
        done = run_statepipe("load", "--resume", "--qmp", address, self.saved.file)
        if done.returncode == 0:
            return self._went_on(COMPLETE if "nothing is left to continue" in done.stderr else CONTINUED)
        if self.address and "its migration is none" in done.stderr:
            return self._waits()
        wait_for(f"end of QEMU after: {done.stderr}", lambda: not self.lives(), 10)
        return self._ended(NEVER_RAN)

    def lives(self) -> bool:
        """Whether QEMU does."""
        return qemu_pid(self.folder) is not None

    def serial(self) -> str:
        path = self.folder / "serial"
        return path.read_text() if path.exists() else ""

    def ran(self) -> bool:
        """Whether the guest of this QEMU may have: also one that has not printed anything yet."""
        return bool(self.serial()) or (self.lives() and ("the guest is" in self.said or RESUME in self.said))

    def _waits(self) -> str:
        """QEMU has received nothing. If it had, its main loop could be waiting for a page."""
        return WAITS

    def _ended(self, outcome: str) -> str:
        if outcome is NEVER_RAN:
            assert not self.serial()
        wait_for("end of all processes", lambda: not pids_with(str(self._runtime)))
        left = [path.name for path in self._runtime.glob("*") if path.name.startswith(("load-", "resume-"))]
        assert not left or self._number is KILL, left
        return outcome

    def _went_on(self, outcome: str) -> str:
        self.assert_goes_on()
        return outcome

    def assert_goes_on(self) -> None:
        """The guest counts on, and nothing is missing."""
        count = self.serial().count("\n")
        wait_for("2 ticks", lambda: self.serial().count("\n") >= count + 2)
        assert_continues(self.saved.before, self.serial())

    def end(self) -> None:
        end_qemu(self.folder)
        wait_for("end of the keeper", lambda: not pids_with(str(self._runtime)))


class StruckWaiting(Struck):
    """The same for a QEMU that waits."""

    guest: Guest

    def lives(self) -> bool:
        return not self.guest.ended()

    def serial(self) -> str:
        return self.guest.serial()

    def _waits(self) -> str:
        """Or it was told to quit, and may take a while to end."""
        try:
            waits = self.guest.migration()["status"] == "none"
        except OSError:
            waits = False
        if waits:
            return WAITS
        self.guest.wait()
        return self._ended(NEVER_RAN)


@contextmanager
def struck(
    way: str, folder: Path, saved: Saved, runtime: Path, number: signal.Signals, step: str, args: Sequence[str] = ()
) -> Iterator[tuple[Struck, list[str]]]:
    """One of each kind, and the words after `load`; `args` are for QEMU."""
    kind = StruckWaiting if way == "waiting" else Struck
    it = kind(folder, saved, runtime, number, step)
    if isinstance(it, StruckWaiting):
        with Guest(folder, qemu=saved.qemu, memory=MEMORY, image=saved.image, incoming="defer", args=args) as it.guest:
            it.address = it.guest.socket
            yield it, ["--lazy", "--qmp", it.guest.socket, str(saved.file)]
        return
    try:
        words = ["--lazy", str(saved.file), "--", *qemu_command(folder, saved, *args)]
        if way == "resumed":
            with Lazy(folder, saved, "--throttle", SLOW) as lazy:
                words = lazy.here()[1:]
                it.address = words[words.index("--qmp") + 1]
                lazy.signal(KILL)
                lazy.status()
                yield it, words
        else:
            yield it, words
    finally:
        it.end()


@pytest.mark.parametrize(("way", "number", "step"), EVERY)
def test_a_signal_at_a_step(
    tmp_path: Path, runtime: Path, noisy72: Saved, way: str, number: signal.Signals, step: str
) -> None:
    with struck(way, tmp_path, noisy72, runtime, number, step) as (it, words):
        assert it.run(*words) == EVERY[way, number, step], it.said
        assert step in steps_of(it.record)


@contextmanager
def late_keeper(
    way: str, folder: Path, saved: Saved, runtime: Path, step: str = "before Keeping.may_run"
) -> Iterator[tuple[Struck, int, Path]]:
    """A load that was killed there, its keeper, which was stopped before that, and one more monitor of its QEMU."""
    other = folder / "third.qmp"
    args = ["-qmp", f"unix:{other},server=on,wait=off"]
    with struck(way, folder, saved, runtime, signal.SIGSTOP, step, args) as (it, words):
        process = it.start(*words)
        try:
            wait_for(step, lambda: step in steps_of(it.record))
            (keeper,) = pids_with(str(runtime), "keeper.py")
            os.kill(keeper, signal.SIGSTOP)
        finally:
            process.kill()
            process.wait()
        try:
            yield it, keeper, other
        finally:
            os.kill(keeper, signal.SIGCONT)
        wait_for("end of the keeper", lambda: not pids_with(str(runtime), "keeper.py"))


@pytest.mark.parametrize("way", ["started", "waiting"])
def test_a_keeper_that_comes_late_ends_no_guest_that_runs_again(
    tmp_path: Path, runtime: Path, noisy72: Saved, way: str
) -> None:
    """It was stopped when statepipe was killed; somebody continues the load before it looks."""
    with late_keeper(way, tmp_path, noisy72, runtime) as (it, _, other):
        done = run_statepipe("load", "--resume", "--qmp", other, noisy72.file)
        assert done.returncode == 0 and "all memory is loaded" in done.stderr, done.stderr
        it.assert_goes_on()


@pytest.mark.parametrize("step", ["before Monitor", "after Monitor"])
@pytest.mark.parametrize("way", ["started", "waiting"])
def test_a_keeper_that_comes_late_ends_a_guest_that_has_not_run(
    tmp_path: Path, runtime: Path, noisy72: Saved, way: str, step: str
) -> None:
    """QEMU waits for a new connection already; a --resume that has not continued the load says what became of it."""
    record = tmp_path / "steps of resume"
    with late_keeper(way, tmp_path, noisy72, runtime) as (it, keeper, other):
        with closing(Qmp(other, 60)) as monitor:
            wait_for("end of the connection", lambda: monitor.execute("query-migrate")["status"] == "postcopy-paused")
        words = [*striking(signal.SIGSTOP, step, record), "load", "--resume", "--qmp", str(other), str(noisy72.file)]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as resume:
            try:
                wait_for(step, lambda: step in steps_of(record))
                os.kill(keeper, signal.SIGCONT)
                wait_for("end of QEMU", lambda: not it.lives())
                Path(f"{record}.go").touch()
                said = resume.communicate(timeout=60)[1]
            finally:
                resume.kill()
        assert resume.returncode == 6 and "the QEMU that listened at this socket has ended" in said, said
        assert "load the state again" in said and not it.serial(), said


def test_a_keeper_that_was_stopped_does_not_hold_up_the_end(tmp_path: Path, runtime: Path, noisy72: Saved) -> None:
    with Lazy(tmp_path, noisy72, "--detach", "--throttle", SLOW) as lazy:
        lazy.here()
        (keeper,) = pids_with(str(runtime), "keeper.py")
        os.kill(keeper, signal.SIGSTOP)
        try:
            assert run_statepipe("rate", lazy.pid, "unlimited").returncode == 0
            assert lazy.status() == 0
            assert not pids_with(str(runtime), "keeper.py")
        finally:
            for pid in pids_with(str(runtime), "keeper.py"):
                os.kill(pid, signal.SIGCONT)
        assert_went_on(noisy72, lazy)


@pytest.mark.faults
@pytest.mark.parametrize("number", [TERM, INT, HUP, KILL])
@pytest.mark.parametrize("way", ["started", "waiting", "resumed"])
def test_a_signal_at_each_step(tmp_path: Path, runtime: Path, noisy: Saved, way: str, number: signal.Signals) -> None:
    """The steps are those of a load that is not disturbed."""
    first = tmp_path / "first"
    first.mkdir()
    with struck(way, first, noisy, runtime, TERM, "after Rest.settle") as (it, words):
        assert it.run(*words) == COMPLETE
        steps = steps_of(it.record)
    assert len(steps) > 20
    trouble = []
    for at, step in enumerate(steps):
        folder = tmp_path / str(at)
        folder.mkdir()
        for path in runtime.glob("*"):
            path.unlink()
        try:
            with struck(way, folder, noisy, runtime, number, step) as (it, words):
                outcome = it.run(*words)
            print(f"{way} {number.name} {step}: {outcome}", flush=True)
        except AssertionError as error:
            print(f"{way} {number.name} {step}: FAILED {error}", flush=True)
            trouble.append(f"{step}: {error}")
    assert not trouble, "\n".join(trouble)
