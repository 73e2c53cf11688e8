"""save struck at random moments, again and again: what is there, what is said and what QEMU says always agree."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_unbroken, run_statepipe
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save

Start = Callable[..., Save]

pytestmark = pytest.mark.faults

STRIKES: dict[str, Callable[[Save], object]] = {
    "SIGTERM": lambda save: save.signal(signal.SIGTERM),
    "SIGHUP": lambda save: save.signal(signal.SIGHUP),
    "SIGKILL": lambda save: save.signal(signal.SIGKILL),
    "migrate_cancel": lambda save: save.guest.qmp("migrate_cancel"),
    "SIGKILL to QEMU": lambda save: save.guest.kill(),
}

UNTOLD = {(EXEC_MODE, "migrate_cancel")}
"""A cancel after the last byte reaches no pipe: the file is whole and stays, though QEMU takes its guest back."""


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize("mode", [EXEC_MODE, QMP_MODE])
def test_a_save_struck_at_a_random_moment(
    tmp_path: Path, states: Path, qemu: str, start_save: Start, mode: str, strike: str, seed: int
) -> None:
    chance = random.Random(f"{seed} {strike} {mode} {qemu}")
    with Guest(tmp_path, qemu=qemu, memory=64, fill=12, dirty=4) as guest:
        guest.wait_ticks(2)
        guest.capabilities(return_path=True)
        save = start_save(guest, states / "s", mode)
        assert save.pid
        time.sleep(chance.uniform(0.1, 0.7))
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            STRIKES[strike](save)
        status = save.status()
        assert "Traceback" not in save.stderr()
        assert_agrees(save, status, strike)


def assert_agrees(save: Save, status: int, strike: str) -> None:
    """A file is whole, and is there if and only if that was said; only two deaths leave it without a word."""
    there = save.file.exists()
    if there:
        assert run_statepipe("verify-state", save.file).returncode == 0
    if not strike.startswith("SIGKILL"):
        assert there == (status == 0), save.stderr()
        assert {path.name for path in save.file.parent.iterdir()} <= {"s"}
    assert there or status != 0
    if strike != "SIGKILL to QEMU":
        assert_guest_agrees(save.guest, stopped=there and (save.mode, strike) not in UNTOLD and strike != "SIGKILL")


def assert_guest_agrees(guest: Guest, *, stopped: bool) -> None:
    """The guest that is in the file does not run here, and no other is stopped."""
    if guest.migration()["status"] != "none":
        guest.wait_status()
    state = guest.wait_run_state("running", "postmigrate")
    assert not stopped or state == "postmigrate"
    if state == "postmigrate":
        guest.qmp("cont")
    guest.wait_ticks(2)
    assert_unbroken(guest.ticks())
