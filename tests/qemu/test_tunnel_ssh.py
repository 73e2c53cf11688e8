"""tunnel ssh://: a far end for each connection, which ssh starts; the order of connections holds."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_continues, run_statepipe, wait_for
from tests.qemu.moving import Running
from tests.qemu.tunnels import everything, prepare, status_of
from tests.sshd import Host, sshd


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@contextlib.contextmanager
def near_end(host: Host, here: Path, there: Path, *words: str) -> Iterator[Running]:
    ssh = ("--ssh", host.ssh, "--remote-command", host.remote)
    with Running("tunnel", *words, *ssh, f"unix://{here}", f"{host.address}{there}") as near:
        wait_for("the near end", here.exists)
        yield near


def ssh_of(near: Running) -> list[int]:
    """Those it has started and that run."""
    lists = Path(f"/proc/{near.pid}/task").glob("*/children")
    return [int(each) for path in lists for each in path.read_text().split()]


def test_multifd_goes_through_and_a_killed_ssh_costs_its_time_alone(tmp_path: Path, qemu72: str, host: Host) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with (
        near_end(host, here, there, "--once") as near,
        Guest(tmp_path, qemu=qemu72, dirty=2) as source,
        Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer") as target,
    ):
        source.wait_ticks(2)
        prepare(source, target, multifd=True)
        source.qmp("migrate-set-parameters", max_bandwidth=2 << 20, multifd_channels=2)
        target.qmp("migrate-set-parameters", multifd_channels=2)
        target.qmp("migrate-incoming", uri=f"unix:{there}")
        source.qmp("migrate", uri=f"unix:{here}")
        wait_for("the stream's own connection and two more", lambda: status_of(near)["links"] == 3)
        killed = ssh_of(near)
        assert len(killed) == 3
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        source.qmp("migrate-set-parameters", max_bandwidth=0)
        assert source.wait_status()["status"] == "completed", near.said
        target.wait_ticks(3)
        assert_continues(source.serial(), target.serial())
        assert near.wait() == 0, near.said


def test_nobody_there_is_the_program_s_failure(tmp_path: Path, host: Host) -> None:
    with near_end(host, tmp_path / "here", tmp_path / "there", "--once") as near:
        with socket.socket(socket.AF_UNIX) as program:
            program.settimeout(60)
            program.connect(str(tmp_path / "here"))
            assert everything(program) == b""
        assert near.wait() == 5
        near.wait_said("cannot connect to unix://.*/there: No such file or directory")  # the far end's own words
        near.wait_said("connection 1 could not be made: statepipe on 127.0.0.1 ended with status 5")


@pytest.mark.parametrize(
    "words", [["unix:///a", "ssh://h"], ["unix:///a", "ssh://h/"], ["ssh://h/a", "unix:///b"], ["-", "tls://h"]]
)
def test_what_leads_nowhere_is_a_usage_error(words: list[str]) -> None:
    assert run_statepipe("tunnel", *words).returncode == 2
