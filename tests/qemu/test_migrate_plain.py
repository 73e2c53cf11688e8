"""migrate to where no statepipe is: QEMU's own tcp: and unix:, a program, a file."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_continues, assert_runs_on, run_statepipe, wait_for
from tests.qemu.moving import Running
from tests.qmpserver import qmp_server


def test_a_stage_on_the_way_changes_nothing(tmp_path: Path, qemu72: str) -> None:
    path = tmp_path / "s"
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(3)
        with Guest(tmp_path, qemu=qemu72, image=source.image, incoming=f"unix:{path}") as target:
            done = run_statepipe("migrate", "--qmp", source.socket, "throttle:100M", "checksum", f"unix://{path}")
            assert done.returncode == 0, done.stderr
            target.wait_ticks(3)
            assert_continues(source.serial(), target.serial())


def test_one_that_was_stopped_first_is_said_to_stand_still_there(tmp_path: Path, qemu72: str) -> None:
    """QEMU takes it for one that was paused, and nobody of ours is there to know better."""
    path = tmp_path / "s"
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(3)
        with Guest(tmp_path, qemu=qemu72, image=source.image, incoming=f"unix:{path}") as target:
            done = run_statepipe("migrate", "--qmp", source.socket, "--offline", f"unix://{path}")
            assert done.returncode == 0, done.stderr
            assert f"it is paused at unix://{path}: type cont at its QEMU" in done.stderr
            assert target.run_state() == "paused"
            target.qmp("cont")
            target.wait_ticks(3)
            assert_continues(source.serial(), target.serial())


def test_one_that_is_cancelled_runs_on(tmp_path: Path, qemu72: str) -> None:
    """To somebody who takes the connection and reads nothing."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, socket.create_server(("127.0.0.1", 0)) as server:
        source.wait_ticks(3)
        where = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with Running("migrate", "--qmp", source.socket, where) as moving, server.accept()[0]:
            source.wait_status("active")
            wait_for("the job", lambda: '"active"' in run_statepipe("ps", "--json").stdout)
            assert run_statepipe("rate", str(moving.pid), "50M").returncode == 0
            moving.send(signal.SIGTERM)
            assert moving.wait() == 143, moving.said
        assert_runs_on(source)


KILLED = "statepipe: migrate: warning: statepipe ended unexpectedly:"


@pytest.mark.parametrize("words", [[], ["throttle:unlimited"]], ids=["QEMU sends by itself", "through us"])
def test_a_guest_that_was_stopped_for_it_runs_on_where_we_are_killed(
    tmp_path: Path, qemu72: str, words: list[str]
) -> None:
    """Once QEMU has come to the end of its migration; to somebody who takes the connection and reads nothing."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, socket.create_server(("127.0.0.1", 0)) as server:
        source.wait_ticks(3)
        before, where = source.settings(), f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with Running("migrate", "--qmp", source.socket, "--offline", *words, where) as moving:
            with server.accept()[0]:
                source.wait_status("active")
                moving.kill()
                if not words:
                    moving.wait_said("QEMU continues its migration; process [0-9]+ waits for it to end$")
            assert moving.wait() == -signal.SIGKILL
            moving.wait_said(f"{KILLED} the guest here is running, QEMU's migration settings are as before$")
        assert_runs_on(source)
        assert source.settings() == before


def test_a_guest_that_goes_on_its_way_where_we_are_killed_runs_there_alone(tmp_path: Path, qemu72: str) -> None:
    port = free_port()
    with (
        Guest(tmp_path, qemu=qemu72, dirty=2) as source,
        Guest(tmp_path, qemu=qemu72, image=source.image, incoming=f"tcp:127.0.0.1:{port}") as target,
    ):
        source.wait_ticks(3)
        where = ("--rate", "2M", f"tcp://127.0.0.1:{port}")
        with Running("migrate", "--qmp", source.socket, *where) as moving:
            source.wait_transferred(1 << 20)
            moving.kill()
            moving.wait_said("QEMU continues its migration")
            source.qmp("migrate-set-parameters", max_bandwidth=0)
            moving.wait_said("QEMU has sent all of the guest and keeps it stopped")
        target.wait_ticks(3)
        assert source.run_state() == "postmigrate"
        assert_continues(source.serial(), target.serial())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("kind", ["tcp", "unix", "exec"])
def test_to_a_qemu_that_waits(tmp_path: Path, qemu: str, kind: str) -> None:
    port, path = free_port(), tmp_path / "s"
    incoming, uri = {
        "tcp": (f"tcp:127.0.0.1:{port}", f"tcp://127.0.0.1:{port}"),
        "unix": (f"unix:{path}", f"unix://{path}"),
        "exec": (f"unix:{path}", f"exec:exec socat - UNIX-CONNECT:{path}"),
    }[kind]
    if kind == "exec" and shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    with Guest(tmp_path, qemu=qemu, dirty=2) as source:
        source.wait_ticks(3)
        with Guest(tmp_path, qemu=qemu, image=source.image, incoming=incoming) as target:
            settings = source.settings()
            done = run_statepipe("migrate", "--qmp", source.socket, uri)
            assert done.returncode == 0, done.stderr
            assert f"the guest has gone to {uri}" in done.stderr
            target.wait_ticks(3)
            assert source.run_state() == "postmigrate" and source.settings() == settings
            assert_continues(source.serial(), target.serial())


@pytest.mark.parametrize(
    ("uri", "status"),
    [("tcp://127.0.0.1:1", 5), ("exec:exit 3", 1), ("exec:cat >/dev/null", 6), ("exec:no-such-program", 1)],
)
def test_where_nobody_takes_it_the_guest_runs_on(tmp_path: Path, qemu72: str, uri: str, status: int) -> None:
    """A program that swallows everything says nothing on the return path: that is no yes."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(3)
        done = run_statepipe("migrate", "--qmp", source.socket, uri)
        assert done.returncode == status, done.stderr
        if uri.startswith("exec:cat"):
            assert f"error: {uri} ended, and no QEMU has answered" in done.stderr and "save --qmp" in done.stderr
        assert_runs_on(source)


def test_nobody_is_disturbed_for_a_guest_that_cannot_be_moved(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder, qmp_server(folder) as server:
        server.answers["query-status"] = {"status": "inmigrate"}
        done = run_statepipe("migrate", "--qmp", server.path, f"exec:touch {tmp_path}/disturbed")
    assert done.returncode == 6 and "no guest to move" in done.stderr, done.stderr
    assert not (tmp_path / "disturbed").exists()


def test_into_a_file_is_a_save(tmp_path: Path, qemu72: str) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(3)
        done = run_statepipe("migrate", "--qmp", source.socket, "zstd:3", f"file://{tmp_path}/vm.state")
        assert done.returncode == 0, done.stderr
        assert run_statepipe("verify-state", tmp_path / "vm.state").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["tcp://127.0.0.1:1", "--journal", "x"],
        ["unix:///x", "--tls-creds", "x"],
        ["exec:true", "--timeout", "3"],
        ["file://x"],
        ["file:///x", "--journal", "x"],
        ["throttle:1M", "decompress", "localhost"],
        ["localhost", "--on-timeout", "suspend"],
        ["localhost", "--downtime-limit", "soon"],
        ["localhost", "--status-fd", "x"],
        ["ssh://host/file"],
    ],
)
def test_what_does_not_go_together(words: list[str]) -> None:
    assert run_statepipe("migrate", "--qmp", "/no/such/socket", *words).returncode == 2


def test_a_monitor_must_be_named() -> None:
    assert "required: --qmp" in run_statepipe("migrate", "localhost").stderr


@pytest.mark.parametrize("earlier", [False, True], ids=["the first", "after one that completed"])
def test_a_guest_that_qemu_refuses_to_migrate_runs_on(tmp_path: Path, qemu72: str, earlier: bool) -> None:
    """The status is that of an earlier migration then, or none, and neither is waited for."""
    with Guest(tmp_path, qemu=qemu72, dirty=2, args=["-blockdev", "null-co,node-name=n"]) as source:
        source.wait_ticks(3)
        if earlier:
            source.qmp("migrate", uri="exec:cat >/dev/null")
            source.wait_status("completed")
            source.wait_run_state("postmigrate")
            source.qmp("cont")
        source.qmp("device_add", driver="nvme", drive="n", serial="1")
        done = run_statepipe("migrate", "--offline", "--qmp", source.socket, "exec:exec cat >/dev/null")
        assert done.returncode == 6 and "refused migrate" in done.stderr, done.stderr
        assert "the guest is running here" in done.stderr
        assert_runs_on(source)


def test_another_clients_migration_is_not_ended_by_ours(tmp_path: Path, qemu72: str) -> None:
    """Ours does not begin."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(3)
        source.capabilities(events=True, return_path=True)
        source.qmp("migrate-set-parameters", max_bandwidth=100_000)
        source.qmp("migrate", uri="exec:cat >/dev/null")
        source.wait_status("active")
        done = run_statepipe("migrate", "--qmp", source.socket, "exec:exec cat >/dev/null")
        assert done.returncode == 6, done.stderr
        assert "another client of QEMU's monitor has begun a migration, which is active" in done.stderr
        assert source.migration()["status"] == "active"
