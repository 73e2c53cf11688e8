"""Saves of domains: start one, strike it, and the proof that exactly one of two things holds afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.libvirt.harness import Domain, Libvirt
from tests.qemu.harness import PATIENCE, statepipe_command, wait_for
from tests.qemu.striking import steps_of, striking


def few(steps: Sequence[str], *kept: str) -> list[object]:
    """The steps for a test; it is a long run (`faults`) at those that are not `kept` in the suite."""
    assert set(kept) <= set(steps)
    return [step if step in kept else pytest.param(step, marks=pytest.mark.faults) for step in steps]


class Save:
    """A `statepipe save --domain` that runs, struck by a signal at a step if there is one (striking.py).

    With SIGSTOP it waits there until `go` is called. `under` are words that run a program in another one, as strace.
    `address` is that of an object, in the place of the file.
    """

    def __init__(
        self,
        libvirt: Libvirt,
        domain: Domain,
        *words: object,
        strike: tuple[signal.Signals, str] | None = None,
        file: Path | None = None,
        under: Sequence[str] = (),
        address: str | None = None,
    ) -> None:
        self.libvirt, self.domain = libvirt, domain
        self.file = file or domain.files / "state"
        self.output = address or str(self.file)
        self._record = domain.files / "steps"
        start = statepipe_command() if strike is None else striking(*strike, self._record)
        self._step = None if strike is None else strike[1]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = (*under, *start, "save", "--domain", domain.name, *words, self.output)
        self.process: subprocess.Popen[str] = libvirt.popen(*command, **options)
        self.stdout = self.stderr = ""

    def wait_at_step(self) -> None:
        """Wait until it has reached its step."""

        def has_reached() -> bool:
            assert self.process.poll() is None, f"it ended before {self._step}: {self.process.communicate()}"
            return self._step in self.steps()

        wait_for(f"step {self._step}", has_reached)

    def steps(self) -> list[str]:
        """The steps that it has reached."""
        return steps_of(self._record)

    def go(self) -> None:
        """Let it go on after SIGSTOP."""
        Path(f"{self._record}.go").touch()

    def end(self) -> int:
        """Wait until it and its guardian have ended; its exit status."""
        self.stdout, self.stderr = self.process.communicate(timeout=PATIENCE * 2)
        return self.process.returncode

    def load_words(self) -> list[str]:
        """The words of a load of its file."""
        return [*statepipe_command(), "load", "--domain", self.output]

    def clear(self) -> None:
        """End what is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        with suppress(ValueError):  # it was read to its end
            self.process.communicate()


def injecting(domain: Domain, *faults: str) -> list[str]:
    """The words that run a program some of whose system calls fail or take long, as strace says it: `fsync:error=EIO`.
    `injected` has the calls that did."""
    calls = ",".join(fault.partition(":")[0] for fault in faults)
    words = ["strace", "-f", "-qq", "-o", str(domain.files / "trace"), "--seccomp-bpf", "-e", f"trace={calls}"]
    return [*words, *(word for fault in faults for word in ("-e", f"inject={fault}"))]


def injected(domain: Domain) -> list[str]:
    """The calls that were struck, as strace shows them."""
    lines = (domain.files / "trace").read_text().splitlines()
    return [line for line in lines if "(INJECTED)" in line]


def virsh_of(save: Save) -> int:
    """The process id of its virsh that saves, once there is one."""

    def find() -> int:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"virsh") and b"save" in words and os.fsencode(save.libvirt.folder) in words[-2]:
                    return int(folder.name)
        return 0

    return wait_for("virsh", find)


def children(pid: int, program: str) -> list[int]:
    """The children of a process whose program's name begins so."""
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid=,comm="], capture_output=True, text=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(row[0]) for row in rows if row[1].startswith(program)]


def assert_runs_on(save: Save) -> None:
    """The domain runs on and counts, there is no file, and nothing else is left."""
    save.domain.assert_runs_on()
    assert not save.file.exists(), save.stderr
    assert_nothing_left(save)


def assert_saved(save: Save) -> None:
    """The domain is shut off, and its file is whole: restored from it, the domain counts on. A load verifies all of the
    file before the domain runs."""
    assert save.domain.state() in ("shut off (saved)", "shut off (unknown)", ""), (
        f"{save.domain.state()}: {save.stderr}"
    )
    assert_nothing_left(save)
    save.libvirt.run(*save.load_words(), check=True)
    save.domain.assert_runs_on()


def assert_either(save: Save) -> bool:
    """One of both, and never both nor neither. Return whether it is saved."""
    state = save.domain.state()
    if state.startswith("running"):
        assert_runs_on(save)
        return False
    assert_saved(save)
    return True


def assert_nothing_left(save: Save) -> None:
    """No FIFO, no temporary file."""
    names = [path.name for path in save.file.parent.iterdir() if path.name.startswith(".state")]
    assert names == [], f"{names}: {save.stderr}"
    left = list((save.libvirt.folder / "run").rglob("save-*"))
    assert left == [], f"{left}: {save.stderr}"
