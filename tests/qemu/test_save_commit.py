"""save while the file gets its name: told to stop or killed at each step, what is said and what is there agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_runs_on, wait_for
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save, assert_failed, assert_whole, child_of, inject

Start = Callable[..., Save]

OLDER = b"QEVM, older"
"""Begins as what a save may replace."""

LINK, EXCHANGE = "linkat:signal={}:when=3", "renameat2:signal={}:when=1"
"""The first linkat tries whether a file can be named, the second gives the control socket its name, the third the file.
An older file and the new one exchange their names."""

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
    (states / "s").write_bytes(OLDER)
    assert_failed(
        start_save(answered_guest, states / "s", mode, wrapper=inject("fsync:signal=TERM:when=1")), 143, kept=OLDER
    )
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", [LINK.format("TERM"), EXCHANGE.format("TERM"), FOLDER.format("TERM")])
def test_sigterm_during_the_commit_comes_too_late(
    answered_guest: Guest, states: Path, start_save: Start, mode: str, step: str
) -> None:
    """The file is there and QEMU knows: the status says so too."""
    (states / "s").write_bytes(OLDER)
    save = start_save(answered_guest, states / "s", mode, wrapper=inject(step))
    assert save.status() == 0, save.stderr()
    assert answered_guest.wait_status()["status"] == "completed"
    assert_whole(states / "s")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", ["fsync:signal=KILL:when=1", LINK.format("KILL"), EXCHANGE.format("KILL")])
def test_killed_before_the_naming_the_older_file_stays(
    answered_guest: Guest, states: Path, start_save: Start, mode: str, step: str
) -> None:
    (states / "s").write_bytes(OLDER)
    assert start_save(answered_guest, states / "s", mode, wrapper=inject(step)).status() == 137
    assert (states / "s").read_bytes() == OLDER
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)
    assert start_save(answered_guest, states / "s", mode).status() == 0
    assert_whole(states / "s")


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_appears_during_the_save_is_not_replaced(
    answered_guest: Guest, states: Path, start_save: Start, mode: str
) -> None:
    """Whatever it is: the status is that for a file that was there before, and the guest runs on."""
    save = start_save(answered_guest, states / "s", mode, wrapper=inject("fsync:delay_enter=2s:when=1"))
    answered_guest.wait_run_state("finish-migrate")
    wait_for("the sync", lambda: in_call(child_of(save.pid), FSYNC))
    (states / "s").write_bytes(OLDER)
    said = assert_failed(save, 2, kept=OLDER)
    assert "s exists already, and it was not there at the beginning" in said and "--overwrite" in said
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)


@pytest.mark.parametrize("mode", MODES)
def test_killed_after_the_naming_the_file_is_whole(
    answered_guest: Guest, states: Path, start_save: Start, mode: str
) -> None:
    save = start_save(answered_guest, states / "s", mode, wrapper=inject(FOLDER.format("KILL")))
    assert save.status() == 137
    assert answered_guest.wait_status()["status"] == "failed"
    assert_runs_on(answered_guest)
    assert_whole(states / "s")


def test_a_cancel_during_the_commit_takes_the_file_away_again(
    answered_guest: Guest, states: Path, start_save: Start
) -> None:
    """QEMU closes the socket as if it were gone; its monitor tells that it is not, and its guest runs on."""
    (states / "s").write_bytes(OLDER)
    save = slow_commit(answered_guest, states / "s", QMP_MODE, start_save)
    answered_guest.qmp("migrate_cancel")
    assert "QEMU reports that the migration was cancelled" in assert_failed(save, 6, kept=OLDER)
    assert_runs_on(answered_guest)


@pytest.mark.parametrize("mode", MODES)
def test_a_qemu_killed_during_the_commit_leaves_the_whole_file(
    answered_guest: Guest, states: Path, start_save: Start, mode: str
) -> None:
    """It had sent everything, so the guest may now be in the file alone."""
    save = slow_commit(answered_guest, states / "s", mode, start_save)
    answered_guest.kill()
    assert save.status() == 6
    assert "holds the whole state" in save.stderr()
    assert_whole(states / "s")


def slow_commit(guest: Guest, file: Path, mode: str, start_save: Start) -> Save:
    """A save in the midst of its commit, on a disk that takes two seconds for it."""
    save = start_save(guest, file, mode, wrapper=inject("fsync:delay_enter=2s:when=2"))
    guest.wait_run_state("finish-migrate")
    wait_for("the commit", lambda: in_call(child_of(save.pid), FSYNC))
    return save


FSYNC = 74
"""Its number on x86-64."""


def in_call(pid: int, number: int) -> bool:
    """Whether the main thread is in this system call."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(number)
    return False
