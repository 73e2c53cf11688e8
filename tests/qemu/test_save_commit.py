"""save while the file gets its name: told to stop or killed at each step, what is said and what is there agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_runs_on
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save, assert_failed, assert_whole, inject

Start = Callable[..., Save]

MODES = [EXEC_MODE, QMP_MODE]
FOLDER = "fsync:signal={}:when=3"
"""The file is synced twice, before signals are held back and within; the third is the folder."""


@pytest.fixture
def answered_guest(guest: Guest) -> Guest:
    """With a return path."""
    guest.capabilities(return_path=True)
    return guest


@pytest.mark.parametrize("mode", MODES)
def test_sigterm_before_the_commit_means_no_file(
    answered_guest: Guest, states: Path, start_save: Start, mode: str
) -> None:
    (states / "s").write_bytes(b"older")
    assert_failed(
        start_save(answered_guest, states / "s", mode, wrapper=inject("fsync:signal=TERM:when=1")), 143, kept=b"older"
    )
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ["linkat:signal=TERM:when=1", "rename:signal=TERM:when=1", FOLDER.format("TERM")])
def test_sigterm_during_the_commit_comes_too_late(
    answered_guest: Guest, states: Path, start_save: Start, mode: str, step: str
) -> None:
    """The file is there and QEMU knows: the status says so too."""
    save = start_save(answered_guest, states / "s", mode, wrapper=inject(step))
    assert save.status() == 0, save.stderr()
    assert answered_guest.wait_status()["status"] == "completed"
    assert_whole(states / "s")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ["fsync:signal=KILL:when=1", "linkat:signal=KILL:when=1", "rename:signal=KILL:when=1"])
def test_killed_before_the_rename_the_older_file_stays(
    answered_guest: Guest, states: Path, start_save: Start, mode: str, step: str
) -> None:
    (states / "s").write_bytes(b"older")
    assert start_save(answered_guest, states / "s", mode, wrapper=inject(step)).status() == 137
    assert (states / "s").read_bytes() == b"older"
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)
    assert start_save(answered_guest, states / "s", mode).status() == 0
    assert_whole(states / "s")


@pytest.mark.parametrize("mode", MODES)
def test_killed_after_the_rename_the_file_is_whole(
    answered_guest: Guest, states: Path, start_save: Start, mode: str
) -> None:
    save = start_save(answered_guest, states / "s", mode, wrapper=inject(FOLDER.format("KILL")))
    assert save.status() == 137
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)
    assert_whole(states / "s")
