"""send and recv with QEMU's own tcp: at the other end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import warm
from tests.qemu.harness import (
    EXEC,
    PATIENCE,
    Guest,
    assert_continues,
    assert_runs_on,
    run_statepipe,
    statepipe_command,
    wait_for,
)


@contextmanager
def receiving(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A recv into a file, and QEMU's word for where it listens."""
    command = [*statepipe_command(), "recv", "--output", str(path), "tcp://127.0.0.1:0"]
    with warm.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stderr is not None
            yield receiver, f"tcp:127.0.0.1:{receiver.stderr.readline().split()[-1]}"
        finally:
            receiver.kill()


@contextmanager
def waiting(tmp_path: Path, qemu: str, guest: Guest, incoming: str = "tcp:127.0.0.1:0") -> Iterator[Guest]:
    """A QEMU that waits for what `guest` is."""
    with Guest(tmp_path, qemu=qemu, image=guest.image, incoming=incoming) as other:
        yield other


def port_of(guest: Guest) -> str:
    return str(guest.migration()["socket-address"][0]["port"])


@pytest.mark.parametrize("return_path", [False, True])
def test_a_guest_into_a_file_and_out_again(
    return_path: bool, calm_guest: Guest, qemu72: str, tmp_path: Path, states: Path
) -> None:
    calm_guest.capabilities(return_path=return_path)
    with receiving(states / "raw") as (receiver, uri):
        calm_guest.qmp("migrate", uri=uri)
        assert calm_guest.wait_status()["status"] == "completed"
        assert receiver.wait(PATIENCE) == 0 and receiver.stderr is not None and not receiver.stderr.read()
    if return_path:  # whoever sends the file on would wait for answers to what is in it
        return
    with waiting(tmp_path, qemu72, calm_guest) as other, (states / "raw").open("rb") as raw:
        done = run_statepipe("send", f"tcp://127.0.0.1:{port_of(other)}", stdin=raw)
        assert (done.returncode, done.stderr) == (0, "")
        wait_for("the guest to go on", other.ticks)
        assert_continues(calm_guest.serial(), other.serial())


def test_a_file_that_cannot_be_made_fails_the_migration(calm_guest: Guest, small_disk: object) -> None:
    calm_guest.capabilities(return_path=True)
    folder = small_disk(2 << 20)  # type: ignore[operator]
    with receiving(folder / "raw") as (receiver, uri):
        calm_guest.qmp("migrate", uri=uri)
        assert calm_guest.wait_status()["status"] == "failed"
        assert receiver.wait(PATIENCE) == 1
    assert not list(folder.iterdir())
    assert_runs_on(calm_guest)


def test_a_cancelled_migration_leaves_no_file(guest: Guest, states: Path) -> None:
    guest.qmp("migrate-set-parameters", max_bandwidth=1 << 20)
    with receiving(states / "raw") as (receiver, uri):
        guest.qmp("migrate", uri=uri)
        guest.wait_transferred(1 << 20)
        guest.qmp("migrate_cancel")
        assert receiver.wait(PATIENCE) in (3, 5)
    assert not list(states.iterdir())
    assert_runs_on(guest)


@pytest.mark.parametrize("return_path", [False, True])
def test_two_qemus_and_two_filters(return_path: bool, calm_guest: Guest, qemu72: str, tmp_path: Path) -> None:
    """As exec: on both sides; with a return path, its answers go back through both."""
    socket = f"unix://{tmp_path}/s"
    with waiting(tmp_path, qemu72, calm_guest, "defer") as other:
        for each in (calm_guest, other):
            each.capabilities(return_path=return_path)
        other.qmp("migrate-incoming", uri=f"exec:exec {EXEC} recv {socket}")
        calm_guest.qmp("migrate", uri=f"exec:exec {EXEC} send --retry 60 {socket}")
        assert calm_guest.wait_status()["status"] == "completed"
        wait_for("the guest to go on", other.ticks)
        assert_continues(calm_guest.serial(), other.serial())
