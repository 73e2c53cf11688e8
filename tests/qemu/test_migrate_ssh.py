"""migrate ssh://: the destination is started over there, with the command line that the guest has here."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import parse_ticks
from tests.qemu.harness import Guest, assert_runs_on, assert_unbroken, run_statepipe, wait_for
from tests.qemu.moving import Running
from tests.sshd import Host, sshd


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def apart(host: Host, guest: Guest, folder: Path) -> str:
    """What starts statepipe where the guest's monitors and its serial line are other files, as on another host."""
    (folder / "there.txt").touch()
    sockets, serial = os.path.dirname(guest.socket), folder / "serial-0.txt"
    script = (
        f"mount -t tmpfs none {sockets} && mount --bind {folder}/there.txt {serial} && exec {host.remote}" + ' "$@"'
    )
    return f"unshare -m sh -c {shlex.quote(script)} -"


def words(host: Host, guest: Guest, folder: Path) -> list[str]:
    return ["--qmp", guest.socket, "--ssh", host.ssh, "--remote-command", apart(host, guest, folder)]


def ticks_there(folder: Path) -> list[tuple[int, int]]:
    return parse_ticks(said_there(folder))


def said_there(folder: Path) -> str:
    """What the guest has printed over there; the line that it was at may have begun here."""
    return (folder / "there.txt").read_text()


class Arrived:
    """The QEMU that was started over there, ended on leaving."""

    def __init__(self, source: Guest) -> None:
        self._source = source

    def __enter__(self) -> Arrived:
        return self

    def pids(self) -> list[int]:
        mine = f"\0file={self._source.image},format=raw,if=ide\0".encode()
        found = []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if mine in command and b"statepipe-monitor" in command and b"receive" not in command:
                found.append(int(entry))
        return found

    def __exit__(self, *error: object) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        wait_for("its end", lambda: not self.pids())


def test_a_guest_moves_and_its_qemu_stays_when_ssh_has_ended(tmp_path: Path, qemu72: str, host: Host) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, Arrived(source) as there:
        source.wait_ticks(3)
        looked = run_statepipe("check", *words(host, source, tmp_path), host.address)
        assert looked.returncode == 0, looked
        assert "the same on both: QEMU's lock on it here is seen from there" in looked.stdout
        assert wait_for("the end of who only looked", lambda: not there.pids())
        with Running("migrate", *words(host, source, tmp_path), "zstd:1", host.address) as moving:
            assert moving.wait() == 0, moving.said
        assert len(there.pids()) == 1 and source.run_state() == "postmigrate"
        wait_for("ticks", lambda: len(ticks_there(tmp_path)) > 3)
        assert_unbroken(parse_ticks(source.serial() + said_there(tmp_path)))


def test_a_killed_ssh_costs_its_time_alone(tmp_path: Path, qemu72: str, host: Host) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=1) as source, Arrived(source) as there:
        source.wait_ticks(3)
        with Running("migrate", *words(host, source, tmp_path), "--rate", "20M", host.address) as moving:
            source.wait_transferred(1 << 20)
            for pid in children(moving.pid):
                os.kill(pid, signal.SIGKILL)
            assert moving.wait() == 0, moving.said
        assert len(there.pids()) == 1 and source.run_state() == "postmigrate"


def children(pid: int) -> list[int]:
    """The ssh processes that a statepipe has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(each) for path in lists for each in path.read_text().split()]
    return [each for each in found if os.path.basename(os.readlink(f"/proc/{each}/exe")) == "ssh"]


def test_a_cancelled_one_leaves_nothing_there(tmp_path: Path, qemu72: str, host: Host) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, Arrived(source) as there:
        source.wait_ticks(3)
        with Running("migrate", *words(host, source, tmp_path), "--rate", "5M", host.address) as moving:
            source.wait_transferred(1 << 20)
            moving.send(signal.SIGINT)
            assert moving.wait() == 130, moving.said
        assert_runs_on(source)
        assert wait_for("the end of QEMU there", lambda: not there.pids())


def test_no_statepipe_there_moves_nothing(tmp_path: Path, qemu72: str, host: Host) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=0) as source:
        source.wait_ticks(2)
        command = ["--qmp", source.socket, "--ssh", host.ssh, "--remote-command", "no-such-statepipe"]
        done = run_statepipe("migrate", *command, host.address)
        assert done.returncode == 5 and "the shell on 127.0.0.1 did not find statepipe" in done.stderr
        assert_runs_on(source)


def test_a_qemu_that_cannot_start_there_says_why_here(tmp_path: Path, qemu72: str, host: Host) -> None:
    """The folder of its pid file is not there."""
    source = Guest(tmp_path, qemu=qemu72, dirty=0)
    folder = Path(source.socket).with_name("folder")
    folder.mkdir()
    source.command += ["-pidfile", f"{folder}/pid"]
    with source, Arrived(source):
        source.wait_ticks(2)
        done = run_statepipe("migrate", *words(host, source, tmp_path), host.address)
        assert done.returncode == 5, done.stderr
        assert "QEMU ended with status 1 before it could take a guest: " in done.stderr
        assert "cannot create PID file" in done.stderr
        assert_runs_on(source)
