"""What the tests of load share: a state to load, a load under observation, and the proof that no guest has run."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import warm
from tests.openfiles import open_files
from tests.qemu.harness import EXEC, PATIENCE, Guest, run_statepipe, statepipe_command, wait_for

MEMORY = 64
"""MB; with the 8 MB that are filled a state of 9 MB."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A state, the image of its guest, what that guest had printed, and the QEMU it ran in."""

    file: Path
    image: Path
    before: str
    qemu: str

    def stream(self) -> bytes:
        """QEMU's stream, as zstd gives it back."""
        return subprocess.run(["zstd", "-dcq", self.file], capture_output=True, check=True).stdout

    def damaged(self, folder: Path, data: bytes) -> Saved:
        """The same with a file of these bytes instead."""
        file = folder / "damaged"
        file.write_bytes(data)
        return Saved(file, self.image, self.before, self.qemu)


def save_guest(folder: Path, qemu: str, *, paused: bool = False, args: Sequence[str] = ()) -> Saved:
    """Let a guest count to 3, save it, and end it."""
    file = folder / "state"
    with Guest(folder, qemu=qemu, memory=MEMORY, fill=8, dirty=2, args=args) as guest:
        guest.wait_ticks(3)
        if paused:
            guest.qmp("stop")
        guest.qmp("migrate", uri=f"exec:exec {EXEC} save {file}")
        assert guest.wait_status()["status"] == "completed", guest.stderr()
        return Saved(file, guest.image, guest.serial(), qemu)


def load_uri(saved: Saved, *options: str, before: str = ":", wrapper: str = "", after: str = "") -> str:
    """The value of -incoming; `before` is a shell command, `wrapper` a program to run it under, as strace."""
    return f"exec:{before}; exec {wrapper} {EXEC} load {shlex.join([*options, str(saved.file)])} {after}"


def qemu_command(folder: Path, saved: Saved, *args: object, qemu: str | None = None, memory: int = MEMORY) -> list[str]:
    """A QEMU for the state, without a monitor of its own; it leaves its pid in `folder`."""
    fixed = f"-accel tcg -m {memory} -display none -nodefaults -serial file:{folder}/serial -pidfile {folder}/pid"
    drive = ["-drive", f"file={saved.image},format=raw,if=ide"]
    return [qemu or saved.qemu, *fixed.split(), *drive, *map(str, args)]


def run_qemu(folder: Path, saved: Saved, uri: str, memory: int = MEMORY) -> subprocess.CompletedProcess[str]:
    """A QEMU that loads by exec: and must end by itself, soon."""
    command = [*qemu_command(folder, saved, memory=memory), "-incoming", uri]
    try:
        return warm.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    finally:
        end_qemu(folder)


def run_load(
    folder: Path,
    saved: Saved,
    *options: object,
    args: Sequence[object] = (),
    qemu: str | None = None,
    memory: int = MEMORY,
) -> subprocess.CompletedProcess[str]:
    """`statepipe load FILE -- QEMU…` that must end by itself, as it fails."""
    command = qemu_command(folder, saved, *args, qemu=qemu, memory=memory)
    try:
        return run_statepipe("load", *options, saved.file, "--", *command)
    finally:
        end_qemu(folder)


@contextmanager
def loaded(
    folder: Path,
    saved: Saved,
    *options: str,
    qemu: str | None = None,
    args: Sequence[str] = (),
    wrapper: Sequence[str] = (),
    memory: int = MEMORY,
) -> Iterator[Guest]:
    """The guest in a QEMU that `statepipe load FILE -- QEMU…` started; the Guest's process is statepipe."""
    wrapper = [*wrapper, *statepipe_command(), "load", *options, str(saved.file), "--"]
    words = ["-pidfile", f"{folder}/pid", *args]
    image, program = saved.image, qemu or saved.qemu
    try:
        with Guest(folder, qemu=program, memory=memory, image=image, wrapper=wrapper, args=words) as guest:
            yield guest
    finally:
        end_qemu(folder)


def qemu_pid(folder: Path) -> int | None:
    """The QEMU of qemu_command, if it lives."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int((folder / "pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return pid if str(folder / "pid").encode() in words else None
    return None


def end_qemu(folder: Path) -> None:
    """Whatever happened, it is gone."""
    if (pid := qemu_pid(folder)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for("end of QEMU", lambda: qemu_pid(folder) is None)


def assert_never_ran(folder: Path) -> None:
    """QEMU is gone, and its guest has printed nothing."""
    try:
        wait_for("end of QEMU", lambda: qemu_pid(folder) is None, 10)
    finally:
        end_qemu(folder)
    serial = folder / "serial"
    assert not serial.exists() or serial.read_bytes() == b""


class Load:
    """A `statepipe load` in progress, its reading of the file slowed by `delay` ms a call."""

    def __init__(self, folder: Path, saved: Saved, *words: object, delay: int = 60, stdout: int | None = None) -> None:
        self._file, self._folder = saved.file, folder
        self._stderr = folder / "load-stderr"
        command = [*slow(saved.file, delay), *statepipe_command(), "load", *map(str, words)]
        with self._stderr.open("w") as stderr:
            self._process = warm.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)

    @property
    def pid(self) -> int:
        """Of statepipe."""
        return self._process.pid

    def reach(self, share: float) -> None:
        """Wait until it has read `share` of the file; with 0, until it has opened it."""
        reach(self.pid, self._file, share)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def status(self, timeout: float = PATIENCE) -> int:
        """Its exit status, negative for a signal, once it has ended."""
        return self._process.wait(timeout)

    def stderr(self) -> str:
        """What it and its QEMU said."""
        return self._stderr.read_text(errors="replace")

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        if error[0] is not None:
            end_qemu(self._folder)


def slow(file: Path, delay: int) -> list[str]:
    """strace that delays each read of the file by `delay` ms; -D leaves statepipe the process that was started."""
    inject = f"inject=read,pread64:delay_enter={delay}000"
    return ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", str(file), "-e", "trace=read,pread64", "-e", inject]


def reach(pid: int, file: Path, share: float) -> None:
    """Wait until process `pid` has read `share` of the file."""
    goal = int(file.stat().st_size * share)

    def look() -> bool:
        position = _position(pid, file)
        return position is not None and position >= goal

    wait_for(f"{share:.0%} of {file.name}", look)


def _position(pid: int, file: Path) -> int | None:
    with contextlib.suppress(OSError):
        for fd, path in open_files(pid).items():
            if path == str(file):
                return int(Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split()[1])
    return None
