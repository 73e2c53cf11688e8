"""docs/coming-from.md for people who come from Proxmox: its commands with a QEMU that was started as Proxmox does."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import parse_ticks, write_image
from tests.qemu.harness import PATIENCE, assert_unbroken, wait_for
from tests.recipes import ROOT, commands, script

WHERE = "/var/run/qemu-server/101.qmp"


class Daemon:
    """A QEMU with a monitor, a second one towards a qmeventd that is not there, a pid file, and no parent."""

    def __init__(self, folder: Path, sockets: Path, qemu: str) -> None:
        self.folder, self.monitor = folder, sockets / "101.qmp"
        self.pid_file, self.serial_path = folder / "101.pid", folder / "serial.txt"
        image = folder / "101.raw"
        write_image(image, 8, 4)
        words = [qemu, "-name", "web,debug-threads=on", "-no-shutdown", "-daemonize", "-pidfile", self.pid_file]
        words += [
            "-chardev",
            f"socket,id=qmp,path={self.monitor},server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
        ]
        words += ["-chardev", f"socket,id=qmp-event,path={sockets / 'qmeventd'},reconnect=5"]
        words += ["-mon", "chardev=qmp-event,mode=control", "-accel", "tcg", "-m", "64", "-nodefaults"]
        words += ["-display", "none", "-drive", f"file={image},format=raw,if=ide"]
        words += ["-chardev", f"file,id=serial,path={self.serial_path},append=on", "-serial", "chardev:serial"]
        self.command = shlex.join(map(str, words))

    def pid(self) -> int:
        """Its process id, 0 if it has ended."""
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def wait_ticks(self, more: int) -> None:
        """Wait until the guest has printed `more` ticks than now."""
        target = len(self.ticks()) + more
        wait_for(f"tick {target}", lambda: len(self.ticks()) >= target)

    def ticks(self) -> list[tuple[int, int]]:
        """All ticks so far, of each QEMU."""
        text = self.serial_path.read_bytes() if self.serial_path.exists() else b""
        return parse_ticks(text.decode("ascii", "replace"))


@pytest.fixture
def daemon(tmp_path: Path, qmp_folder: Path, qemu72: str) -> Iterator[Daemon]:
    """One that runs, and is ended at the end."""
    found = Daemon(tmp_path, qmp_folder, qemu72)
    try:
        subprocess.run(found.command, shell=True, check=True, timeout=PATIENCE)
        found.wait_ticks(2)
        yield found
    finally:
        if pid := found.pid():
            os.kill(pid, signal.SIGKILL)


def test_a_guest_of_proxmox_s_goes_on(daemon: Daemon) -> None:
    """`qm showcmd` is a script here that prints the command line."""
    (daemon.folder / "qm").write_text(f"#!/bin/sh\ncat <<'END'\n{daemon.command}\nEND\n")
    (daemon.folder / "qm").chmod(0o755)
    first = daemon.pid()
    text = script(commands("Proxmox"), "101.key", {WHERE: daemon.monitor})
    environment = {**os.environ, "PATH": f"{daemon.folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", text], cwd=daemon.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE * 2
    )
    assert done.returncode == 0, done.stderr
    assert daemon.pid() not in (0, first)
    daemon.wait_ticks(3)
    assert_unbroken(daemon.ticks())
