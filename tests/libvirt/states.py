"""State files of domains, as save --domain writes them, and loads that are caught in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.libvirt.harness import Domain, Libvirt, started
from tests.qemu.harness import PATIENCE, statepipe_command, wait_for


@dataclass
class Kept:
    """A domain that was saved, so that it is shut off, and its state file."""

    libvirt: Libvirt
    domain: Domain
    state: Path

    def load(self, *words: object, path: Path | str | None = None, **more: object) -> subprocess.CompletedProcess[str]:
        """Run load --domain on the state, or on the file at `path`."""
        return self.libvirt.statepipe("load", "--domain", *words, path or self.state, **more)

    def words(self, *words: object) -> list[object]:
        """The words of that command."""
        return [*statepipe_command(), "load", "--domain", *words, self.state]

    def assert_goes_on(self) -> None:
        """The domain runs, and counts on from where it was saved."""
        self.domain.assert_runs_on()

    def end(self) -> None:
        """End the domain, if it runs. What it has printed since it was saved is forgotten: it was never saved."""
        self.libvirt.virsh("destroy", self.domain.name, check=False)
        self.domain.serial_path.write_text(self.printed)

    def assert_did_not_run(self) -> None:
        """libvirt has ended the domain, if it had begun it, and the guest has not printed a letter."""
        wait_for("end of the domain", lambda: self.domain.state().startswith("shut off"))
        assert self.domain.serial() == self.printed
        assert list((self.libvirt.folder / "run").rglob("load-*")) == []

    def __post_init__(self) -> None:
        self.printed = self.domain.serial()


@contextmanager
def saved_domain(mode: str, **more: object) -> Iterator[Kept]:
    """A domain of a libvirtd of its own in `mode`, counting, and then saved."""
    with started(mode) as libvirt:
        yield keep(libvirt, libvirt.domain(**more))


def keep(libvirt: Libvirt, domain: Domain, *words: object) -> Kept:
    """Save a domain to a state file."""
    state = domain.files / "state"
    libvirt.statepipe("save", "--domain", domain.name, "--overwrite", *words, state, check=True)
    state.chmod(0o644)  # for other users that load it
    return Kept(libvirt, domain, state)


def described(kept: Kept) -> str:
    """The domain's XML that is in its state."""
    told = kept.libvirt.statepipe("inspect", "--json", kept.state, check=True).stdout
    return str(json.loads(told)["domain"]["xml"])


READING = 40 << 20
"""Bytes that a QEMU has read once it is in the middle of the state of a guest of 256 MiB: what it starts from is less
than half of that."""


class MidLoad(NamedTuple):
    """A load in its middle: statepipe, the domain's QEMU, which is stopped (SIGSTOP), and the folder of the FIFO."""

    process: subprocess.Popen[str]
    qemu: int
    folder: Path

    def go_on(self) -> None:
        """Let QEMU go on."""
        with suppress(ProcessLookupError):
            os.kill(self.qemu, signal.SIGCONT)

    def await_withdrawal(self) -> None:
        """Wait until statepipe or its guardian has removed the FIFO, and then let QEMU go on."""
        wait_for("withdrawal", lambda: not (self.folder / "image").exists())
        self.go_on()

    def virsh(self) -> int:
        """The process of virsh."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"--file={self.folder}/image".encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    return int(folder.name)
        raise AssertionError("no virsh")


@contextmanager
def in_mid_load(kept: Kept, *words: object) -> Iterator[MidLoad]:
    """A load that is caught in its middle; when the context ends, it is over."""
    with kept.libvirt.popen(*kept.words(*words), stderr=subprocess.PIPE, text=True) as process:
        qemu = 0
        try:
            qemu = wait_for("QEMU that reads the state", lambda: _reader(kept.domain))
            (folder,) = (kept.libvirt.folder / "run").rglob("load-*")
            load = MidLoad(process, qemu, folder)
            yield load
            load.go_on()
            process.wait(PATIENCE)
        finally:
            if qemu:
                with suppress(ProcessLookupError):
                    os.kill(qemu, signal.SIGCONT)
            process.kill()


def _reader(domain: Domain) -> int:
    """The domain's QEMU, stopped, once it has read enough; 0 before."""
    with suppress(AssertionError, OSError):  # it has not started, or has just ended
        pid = domain.pid()
        io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        if int(io["rchar"]) > READING:
            os.kill(pid, signal.SIGSTOP)
            return pid
    return 0
