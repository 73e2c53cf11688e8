"""A save under observation, for the tests of save: started by QEMU (exec:) or by us (--qmp), then watched alike."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

from tests import warm
from tests.guest import parse_ticks
from tests.qemu.harness import EXEC, Guest, assert_continues, run_statepipe, statepipe_command, wait_for

EXEC_MODE, QMP_MODE = "exec", "qmp"

STREAM = 9 << 20
"""Bytes, about, of the stream of a guest with 8 MB filled and no dirty region."""

RATE = 8 << 20


class Save:
    """One run of `statepipe save`. The shell around it writes down its pid, its words and its status; where neither
    QEMU nor anything of the test needs a shell, it is started without one.

    `before` is a shell command, `wrapper` a program to run it under, as strace.
    """

    def __init__(self, guest: Guest, file: Path, mode: str, *words: str, before: str = ":", wrapper: str = "") -> None:
        self.guest, self.file, self.mode = guest, file, mode
        self._log = guest.folder / f"save-{len(list(guest.folder.glob('save-*')))}"
        self._log.mkdir()
        options = ["--qmp", guest.socket] if mode == QMP_MODE else []
        command = f"{wrapper} {EXEC} save {shlex.join([*options, *words, str(file)])}"
        (self._log / "inner").write_text(f"echo $$ >{self._log}/pid\n{before}\nexec {command}\n")
        (self._log / "outer").write_text(f"cd {self._log}\nsh inner 2>err\necho $? >code.new\nmv code.new code\n")
        self._itself: warm.Popen | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        if mode == QMP_MODE and before == ":" and not wrapper:
            with open(self._log / "err", "wb") as err:
                words = [*statepipe_command(), "save", *options, *words, str(file)]
                self._itself = warm.Popen(words, cwd=self._log, stdin=subprocess.DEVNULL, stderr=err)
        else:
            self._shell = self._start()

    def _start(self) -> subprocess.Popen[bytes] | None:
        outer = self._log / "outer"
        if self.mode == QMP_MODE:
            return subprocess.Popen(["sh", outer], stdin=subprocess.DEVNULL)
        self.guest.qmp("migrate", uri=f"exec:exec sh {outer}")
        return None

    @property
    def pid(self) -> int:
        """Of statepipe (or its wrapper), once it is there."""
        return self._itself.pid if self._itself else int(wait_for("pid", lambda: self._read("pid").strip()))

    def status(self) -> int:
        """Its exit status, once it has ended; 128 + n for a signal."""
        code = int(wait_for(f"end of statepipe ({self.stderr()!r})", self._code))
        self.reap()
        return code

    def ended(self) -> bool:
        """Whether it has."""
        return bool(self._code())

    def stderr(self) -> str:
        """What it said so far."""
        return self._read("err")

    def _code(self) -> str:
        """The status once it has ended, else nothing."""
        if self._itself is None or (status := self._itself.poll()) is None:
            return self._read("code").strip()
        return str(status if status >= 0 else 128 - status)

    def _read(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._log / name).read_text()
        return ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Whatever happened, it is gone."""
        if not self._code():
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.status()

    def disown(self) -> None:
        """Nobody will write its status down any more."""
        (self._log / "code").write_text("-1")

    def reap(self) -> None:
        """The shell of a save by --qmp is ours to reap."""
        if self._shell is not None:
            self._shell.wait()


def slow_down(guest: Guest, rate: int = RATE) -> None:
    """Bound QEMU's bandwidth, in bytes a second, and have it send all it can before the final stage."""
    guest.qmp("migrate-set-parameters", max_bandwidth=rate, downtime_limit=1)


def reach(guest: Guest, save: Save, share: float) -> None:
    """Wait until `share` of the stream was sent, at a speed that leaves time to act; for a guest without dirty pages.

    save --qmp lifts the bandwidth as it begins, so it is bounded again once the migration is on its way.
    """
    if save.mode == QMP_MODE:
        guest.wait_status("active")
        slow_down(guest)
    guest.wait_transferred(int(STREAM * share))


def assert_whole(file: Path) -> None:
    """The file is there and statepipe itself finds it whole."""
    done = run_statepipe("verify-state", file)
    assert done.returncode == 0, done.stderr
    assert sorted(file.parent.iterdir()) == [file], "something was left beside it"


def assert_failed(save: Save, *statuses: int, kept: bytes | None = None) -> str:
    """It ended with one of the statuses and one error in plain words, and nothing but `kept` is in the folder."""
    assert save.status() in statuses, save.stderr()
    said = save.stderr()
    lines = said.splitlines()
    assert sum(": error: " in line for line in lines) == 1, said
    assert all(line.startswith("statepipe: ") for line in lines), said
    left = {path.name: path.read_bytes() for path in save.file.parent.iterdir()}
    assert left == ({} if kept is None else {save.file.name: kept})
    return said


def assert_resumes(guest: Guest, file: Path, qemu: str) -> None:
    """zstd and a QEMU of its own bring the guest back, and it goes on where `guest`, now stopped, ended."""
    uri = f"exec:exec zstd -dcq {shlex.quote(str(file))}"
    with Guest(guest.folder, qemu=qemu, image=guest.image, incoming=uri) as other:
        other.wait_ticks(3)
        assert_continues(guest.serial(), other.serial())


def assert_resumes_at_a_past_moment(guest: Guest, file: Path, qemu: str) -> None:
    """The same for a guest that ran on after the save: it begins within what `guest` has counted, the same sum.

    `guest` is ended, as it has its disk's lock.
    """
    guest.kill()
    guest.wait()
    uri = f"exec:exec zstd -dcq {shlex.quote(str(file))}"
    with Guest(guest.folder, qemu=qemu, image=guest.image, incoming=uri) as other:
        other.wait_ticks(3)
        text = other.serial()
    ticks = parse_ticks(text)
    assert [n for n, _ in ticks] == list(range(ticks[0][0], ticks[0][0] + len(ticks)))
    assert {total for _, total in ticks} == {total for _, total in guest.ticks()}
    assert ticks[0][0] <= guest.ticks()[-1][0] + 1


def inject(*calls: str) -> str:
    """strace as a wrapper that makes system calls fail."""
    return " ".join(["strace", "-f", "-qq", "-o", "/dev/null", *(f"-e inject={call}" for call in calls)])


def child_of(pid: int) -> int:
    """The only child of a process; 0 when there is none."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return 0
    return int(children[0]) if children else 0
