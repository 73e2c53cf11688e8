"""save when it is told to stop, or killed: no file, at once, and the guest runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_runs_on, statepipe_command, wait_for
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save, assert_failed, reach, slow_down

Start = Callable[..., Save]

AT_ONCE = 4.0
"""Seconds; what is promised is 1, on a machine that does nothing else."""

MODES = [EXEC_MODE, QMP_MODE]


@pytest.fixture
def slow_guest(calm_guest: Guest) -> Guest:
    """With a return path, and so little bandwidth that there is time to act."""
    calm_guest.capabilities(return_path=True)
    slow_down(calm_guest)
    return calm_guest


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_sigterm_ends_a_save_at_once(
    slow_guest: Guest, states: Path, start_save: Start, mode: str, share: float
) -> None:
    assert_stops(slow_guest, start_save(slow_guest, states / "s", mode), share, signal.SIGTERM)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
def test_other_signals_end_a_save_at_once(
    slow_guest: Guest, states: Path, start_save: Start, mode: str, number: signal.Signals
) -> None:
    assert_stops(slow_guest, start_save(slow_guest, states / "s", mode), 0.3, number)


def assert_stops(guest: Guest, save: Save, share: float, number: signal.Signals) -> None:
    """Told to stop in the midst of it, it does, leaves no file, and the guest runs on."""
    reach(guest, save, share)
    told = time.monotonic()
    save.signal(number)
    said = assert_failed(save, 128 + number)
    assert time.monotonic() - told < AT_ONCE
    assert f"stopped by {number.name}" in said
    assert guest.wait_status()["status"] == "failed"
    assert_runs_on(guest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_killed_save_leaves_nothing(
    slow_guest: Guest, states: Path, start_save: Start, mode: str, share: float
) -> None:
    (states / "s").write_bytes(b"QEVM, older")
    save = start_save(slow_guest, states / "s", mode)
    reach(slow_guest, save, share)
    save.signal(signal.SIGKILL)
    assert save.status() == 137
    assert slow_guest.wait_status()["status"] == "failed"
    assert_runs_on(slow_guest)
    assert [path.read_bytes() for path in states.iterdir()] == [b"QEVM, older"]


def test_a_killed_save_without_a_return_path_leaves_nothing(calm_guest: Guest, states: Path, start_save: Start) -> None:
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", EXEC_MODE)
    reach(calm_guest, save, 0.5)
    save.signal(signal.SIGKILL)
    assert calm_guest.wait_status()["status"] == "failed"
    assert_runs_on(calm_guest)
    assert list(states.iterdir()) == []


def test_a_save_that_waits_for_its_first_byte_can_be_stopped(states: Path) -> None:
    with subprocess.Popen(
        [*statepipe_command(), "save", states / "s"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_for("its threads", lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(AT_ONCE) == 143
    assert list(states.iterdir()) == []


def test_stopped_by_qmp_the_settings_are_put_back(calm_guest: Guest, states: Path, start_save: Start) -> None:
    calm_guest.qmp("migrate-set-parameters", max_bandwidth=50 << 20, downtime_limit=1)
    calm_guest.capabilities(pause_before_switchover=True)
    before = calm_guest.settings()
    save = start_save(calm_guest, states / "s", QMP_MODE)
    reach(calm_guest, save, 0.3)
    save.signal(signal.SIGTERM)
    assert_failed(save, 143)
    assert calm_guest.settings() == before


def test_a_qemu_that_answers_no_more_does_not_hold_a_save_that_is_told_to_stop(
    calm_guest: Guest, states: Path, start_save: Start
) -> None:
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", QMP_MODE)
    reach(calm_guest, save, 0.3)
    os.kill(calm_guest.pid, signal.SIGSTOP)
    try:
        told = time.monotonic()
        save.signal(signal.SIGTERM)
        assert "QEMU does not answer" in assert_failed(save, 143)
        assert time.monotonic() - told < AT_ONCE
    finally:
        os.kill(calm_guest.pid, signal.SIGCONT)
    assert calm_guest.wait_status()["status"] == "failed"
    assert_runs_on(calm_guest)


def test_a_monitor_that_never_answers_does_not_hold_a_save_that_is_told_to_stop(
    guest: Guest, states: Path, start_save: Start
) -> None:
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        save = start_save(guest, states / "s", QMP_MODE)
        wait_for("its threads", lambda: len(list(Path(f"/proc/{save.pid}/task").iterdir())) > 1)
        save.signal(signal.SIGTERM)
        assert_failed(save, 143)
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert_runs_on(guest)
