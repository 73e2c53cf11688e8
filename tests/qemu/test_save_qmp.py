"""save --qmp: statepipe drives QEMU, and leaves it as it was found but for what was asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, QmpError, assert_runs_on, run_statepipe
from tests.qemu.moving import Running
from tests.qemu.saving import (
    QMP_MODE,
    Save,
    assert_failed,
    assert_resumes,
    assert_resumes_at_a_past_moment,
    assert_whole,
)

Start = Callable[..., Save]


def test_a_saved_guest_stays_stopped_and_goes_on_elsewhere(tmp_path: Path, states: Path, qemu: str) -> None:
    file = states / "guest.state"
    with Guest(tmp_path, qemu=qemu) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        done = run_statepipe("save", "--qmp", guest.socket, file)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.startswith(f"statepipe: save: {file}: ")
        assert guest.run_state() == "postmigrate"
        assert guest.settings() == before
        assert_whole(file)
        assert_resumes(guest, file, qemu)


def test_then_cont_lets_the_guest_run_on(tmp_path: Path, states: Path, qemu: str) -> None:
    file = states / "guest.state"
    with Guest(tmp_path, qemu=qemu) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, "--then", "cont", file)
        assert done.returncode == 0, done.stderr
        assert "warning: the guest runs on" in done.stderr
        assert_runs_on(guest)
        assert_whole(file)
        assert_resumes_at_a_past_moment(guest, file, qemu)


def test_then_quit_ends_qemu(tmp_path: Path, states: Path, qemu: str) -> None:
    file = states / "guest.state"
    with Guest(tmp_path, qemu=qemu) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, "--then", "quit", file)
        assert done.returncode == 0, done.stderr
        assert guest.wait() == 0
        assert_whole(file)
        assert_resumes(guest, file, qemu)


def test_live_saves_a_guest_that_runs_on(tmp_path: Path, states: Path, qemu: str) -> None:
    file = states / "guest.state"
    with Guest(tmp_path, qemu=qemu) as guest:
        try:
            guest.capabilities(background_snapshot=True)
        except QmpError as error:
            pytest.skip(f"no background-snapshot here: {error}")
        guest.capabilities(background_snapshot=False)
        guest.wait_ticks(2)
        before = guest.settings()
        done = run_statepipe("save", "--qmp", guest.socket, "--live", file)
        assert done.returncode == 0, done.stderr
        assert "warning: the guest runs on from here and writes to its disks: without a snapshot" in done.stderr
        assert done.stderr.index("runs on from here") < done.stderr.index("of state in"), "it is told before"
        assert_runs_on(guest)
        assert guest.settings() == before
        assert_whole(file)
        assert_resumes_at_a_past_moment(guest, file, qemu)
        guest.image.write_bytes(guest.image.read_bytes()[:-1] + b"!")
        done = run_statepipe("load", file, "--", *guest.command)
        assert done.returncode == 1, done.stderr
        assert "changed since the state was saved, as its guest ran on (save --live): " in done.stderr
        assert "hint: old memory" in done.stderr and "a snapshot of them from the moment when that save" in done.stderr


@pytest.mark.parametrize("then", ["stay", "cont"])
def test_a_paused_guest_is_saved(guest: Guest, states: Path, then: str) -> None:
    guest.qmp("stop")
    done = run_statepipe("save", "--qmp", guest.socket, "--then", then, states / "s")
    assert done.returncode == 0, done.stderr
    assert guest.run_state() == {"stay": "postmigrate", "cont": "running"}[then]
    assert_whole(states / "s")
    facts = json.loads(run_statepipe("inspect", "--json", states / "s").stdout)
    assert facts["header"]["run_state_before"] == "paused"
    assert facts["trailer"]["run_state"] == "paused"


def test_the_file_holds_the_very_stream(guest: Guest, states: Path) -> None:
    file, digest = states / "guest.state", guest.folder / "digest"
    words = [f"checksum:sha256,to={digest}", "compress:zstd:3"]
    assert run_statepipe("save", "--qmp", guest.socket, *words, file).returncode == 0
    assert_whole(file)
    plain = subprocess.run(["zstd", "-dcq", file], check=True, capture_output=True).stdout
    assert digest.read_text().split()[0] == hashlib.sha256(plain).hexdigest()


def test_a_guest_can_be_saved_twice(guest: Guest, states: Path) -> None:
    for _ in range(2):
        done = run_statepipe("save", "--qmp", guest.socket, "--then", "cont", states / "s")
        assert done.returncode == 0, done.stderr
        assert_runs_on(guest)
    assert_whole(states / "s")


def test_a_stopped_guest_that_was_saved_is_not_saved_again(guest: Guest, states: Path, start_save: Start) -> None:
    """It may run elsewhere by now; the file of the first time stays."""
    assert start_save(guest, states / "s", QMP_MODE).status() == 0
    first = (states / "s").read_bytes()
    settings = guest.settings()
    said = assert_failed(start_save(guest, states / "s", QMP_MODE), 6, kept=first)
    assert "QEMU has sent this guest before" in said
    assert f"hint: if it runs elsewhere now: statepipe resolve --qmp {guest.socket} elsewhere; " in said
    assert guest.settings() == settings
    moving = run_statepipe("migrate", "--qmp", guest.socket, "exec:cat")
    assert moving.returncode == 6 and "QEMU has sent this guest before" in moving.stderr
    assert guest.settings() == settings and guest.run_state() == "postmigrate"


def test_settings_of_the_users_are_put_back(guest: Guest, states: Path) -> None:
    guest.qmp("migrate-set-parameters", max_bandwidth=50 << 20, downtime_limit=200)
    guest.capabilities(return_path=True, pause_before_switchover=True, xbzrle=True)
    before = guest.settings()
    assert run_statepipe("save", "--qmp", guest.socket, states / "s").returncode == 0
    assert guest.settings() == before
    assert_whole(states / "s")


def test_settings_are_put_back_after_a_failure(guest: Guest, states: Path, start_save: Start) -> None:
    guest.qmp("migrate-set-parameters", max_bandwidth=50 << 20)
    guest.capabilities(pause_before_switchover=True)
    before = guest.settings()
    assert_failed(start_save(guest, states / "s", QMP_MODE, before="ulimit -f 8000"), 1)
    assert guest.settings() == before
    assert_runs_on(guest)


def test_a_sandbox_that_forbids_children_is_no_obstacle(tmp_path: Path, states: Path, qemu72: str) -> None:
    """exec: would be the end of QEMU 7.2 there."""
    with Guest(tmp_path, qemu=qemu72, args=["-sandbox", "on,spawn=deny"]) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, "--then", "cont", states / "s")
        assert done.returncode == 0, done.stderr
        assert_runs_on(guest)
        assert_whole(states / "s")


def test_no_monitor_is_said_in_plain_words(states: Path) -> None:
    done = run_statepipe("save", "--qmp", states / "nobody", states / "s")
    assert done.returncode == 6
    assert done.stderr.startswith("statepipe: save: error: no QMP monitor answers at ")
    assert list(states.iterdir()) == []


def test_the_time_left_is_told_from_the_guest_s_memory(tmp_path: Path, calm_guest: Guest, states: Path) -> None:
    """Of 128 MB some 11 were ever touched: so it is no upper bound."""
    reading, writing = os.pipe()
    progress = f"progress:status-fd={writing}"
    command = ("save", "--qmp", calm_guest.socket, "throttle:4M", progress, states / "vm")
    done = run_statepipe(*command, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as lines:
        rows = [json.loads(line) for line in lines]
    assert done.returncode == 0, done.stderr
    told = [stage for row in rows for stage in row.get("stages", ()) if stage["name"] == "progress"]
    first = next(stage for stage in told if stage["eta_from"] == "memory")
    assert first["eta"] < 20  # by the pages alone it would be more than half a minute


def test_a_qemu_that_is_killed_meanwhile_is_qemus_failure(tmp_path: Path, qemu72: str, states: Path) -> None:
    """Its stream is cut short, and why is known here: nobody need look at the file."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as guest:
        with Running("save", "--qmp", guest.socket, "throttle:2M", states / "s") as save:
            guest.wait_transferred(1 << 20)
            guest.kill()
            assert save.wait() == 6, save.said
        assert "error: QEMU went away before all of its guest was sent" in save.said[-3]
        assert "hint: the migration stream stops before its end, in the ram phase" in save.said[-2]
    assert list(states.iterdir()) == []
