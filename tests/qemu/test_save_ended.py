"""save when the stream ends before its end: cancelled, QEMU ended or killed. A cut stream is a plain end of file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm
from tests.qemu.harness import Guest, assert_runs_on, statepipe_command
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save, assert_failed, reach, slow_down

Start = Callable[..., Save]

SHARES = [0.1, 0.5, 0.9]
MODES = [EXEC_MODE, QMP_MODE]


@pytest.mark.parametrize("return_path", [True, False], ids=["return path", "one way"])
@pytest.mark.parametrize("share", SHARES)
def test_a_cancelled_exec_save_leaves_no_file(
    calm_guest: Guest, states: Path, start_save: Start, share: float, return_path: bool
) -> None:
    calm_guest.capabilities(return_path=return_path)
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", EXEC_MODE)
    reach(calm_guest, save, share)
    calm_guest.qmp("migrate_cancel")
    assert "stops before its end, in the ram phase" in (said := assert_failed(save, 3))
    assert re.search(r"[KM]iB, .* pages, round 1\)", said)
    assert calm_guest.wait_status()["status"] == "cancelled"
    assert_runs_on(calm_guest)


@pytest.mark.parametrize("share", SHARES)
def test_a_cancelled_qmp_save_leaves_no_file(
    tmp_path: Path, qemu: str, states: Path, start_save: Start, share: float
) -> None:
    with Guest(tmp_path, qemu=qemu, dirty=0) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        guest.qmp("migrate-set-parameters", downtime_limit=1)
        save = start_save(guest, states / "s", QMP_MODE)
        reach(guest, save, share)
        guest.qmp("migrate_cancel")
        said = assert_failed(save, 3)
        assert "stops before its end, in the ram phase" in said
        # Where its write fails first, QEMU 7.2 says so and forgets that it was cancelled; 11 tells both.
        reason = r"(was cancelled(: .*Input/output error)?|failed: .*Broken pipe)"
        assert re.search(f"hint: QEMU reports that the migration {reason}; the guest is running", said), said
        assert_runs_on(guest)
        guest.qmp("migrate-set-parameters", downtime_limit=before[0]["downtime-limit"])
        assert guest.settings() == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("way", ["quit", "SIGKILL"])
def test_the_end_of_qemu_leaves_no_file(
    calm_guest: Guest, states: Path, start_save: Start, mode: str, share: float, way: str
) -> None:
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", mode)
    reach(calm_guest, save, share)
    if way == "quit":
        calm_guest.qmp("quit")
    else:
        calm_guest.kill()
    said = assert_failed(save, 3, 6)
    assert "stops before its end, in the ram phase" in said
    assert (mode == EXEC_MODE) or "QEMU went away" in said
    calm_guest.wait()


@pytest.mark.parametrize("mode", MODES)
def test_an_older_file_outlives_a_cancelled_save(calm_guest: Guest, states: Path, start_save: Start, mode: str) -> None:
    (states / "s").write_bytes(b"QEVM, older")
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", mode)
    reach(calm_guest, save, 0.5)
    calm_guest.qmp("migrate_cancel")
    assert_failed(save, 3, kept=b"QEVM, older")


@pytest.mark.parametrize("return_path", [True, False], ids=["return path", "one way"])
def test_both_children_killed_leave_a_qemu_that_runs_on(
    calm_guest: Guest, states: Path, start_save: Start, return_path: bool
) -> None:
    """statepipe and the shell around it, as `exec:` without `exec` has them."""
    calm_guest.capabilities(return_path=return_path)
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", EXEC_MODE)
    reach(calm_guest, save, 0.5)
    shell = int(Path(f"/proc/{save.pid}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (shell, save.pid):
        os.kill(pid, signal.SIGKILL)
    assert calm_guest.wait_status()["status"] == "failed"
    assert_runs_on(calm_guest)
    assert list(states.iterdir()) == []
    save.disown()


def test_qemu_that_dies_with_its_save_leaves_no_file(calm_guest: Guest, states: Path, start_save: Start) -> None:
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", EXEC_MODE)
    reach(calm_guest, save, 0.5)
    save.signal(signal.SIGKILL)
    calm_guest.kill()
    assert save.status() == 137
    assert list(states.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"QEVM", b"QEVM\0\0\0\3", b"not a stream at all"], ids=repr)
def test_a_source_that_is_no_stream_leaves_the_older_file(states: Path, content: bytes) -> None:
    (states / "s").write_bytes(b"QEVM, older")
    done = warm.run([*statepipe_command(), "save", states / "s"], input=content, capture_output=True, timeout=30)
    assert done.returncode == 3
    assert done.stdout == b""
    assert done.stderr.startswith(b"statepipe: save: error: ")
    assert [path.read_bytes() for path in states.iterdir()] == [b"QEVM, older"]


def test_a_stream_cut_anywhere_near_its_end_is_refused(guest: Guest, states: Path, start_save: Start) -> None:
    """The device state, the end mark and the vmdesc: the part that QEMU itself would load without a word."""
    save = start_save(guest, states / "s", EXEC_MODE)
    assert save.status() == 0
    plain = subprocess.run(["zstd", "-dcq", states / "s"], check=True, capture_output=True).stdout
    for missing in (1, 2, 4096, 100_000, 110_000, 130_000):
        command = [*statepipe_command(), "save", states / "cut"]
        done = warm.run(command, input=plain[:-missing], capture_output=True, timeout=30)
        assert done.returncode == 3, (missing, done.stderr)
        assert not (states / "cut").exists()


def test_bytes_after_the_end_are_refused(guest: Guest, states: Path, start_save: Start) -> None:
    save = start_save(guest, states / "s", EXEC_MODE)
    assert save.status() == 0
    plain = subprocess.run(["zstd", "-dcq", states / "s"], check=True, capture_output=True).stdout
    command = [*statepipe_command(), "save", states / "longer"]
    done = warm.run(command, input=plain + b"\0", capture_output=True, timeout=30)
    assert (done.returncode, (states / "longer").exists()) == (3, False)
    assert b"continues after the end" in done.stderr


def test_cancels_with_a_return_path_never_hang_qemu(
    tmp_path: Path, states: Path, newer: str, start_save: Start
) -> None:
    """QEMU 10 stops its monitor and guest for good, one cancel in three, unless its return path's reader is woken."""
    with Guest(tmp_path, qemu=newer, memory=64, fill=12, dirty=4) as guest:
        guest.wait_ticks(1)
        guest.capabilities(return_path=True)
        for _ in range(4):
            save = start_save(guest, states / "s", EXEC_MODE)
            guest.wait_transferred(2 << 20)
            guest.qmp("migrate_cancel")
            assert_failed(save, 3)
            assert guest.wait_status()["status"] == "cancelled"
            assert_runs_on(guest, 1)
