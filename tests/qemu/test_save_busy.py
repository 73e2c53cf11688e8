"""A guest that changes its memory faster than the file takes it: its save ends, or is told to have no end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_continues, assert_runs_on, run_statepipe
from tests.qemu.loading import MEMORY
from tests.qemu.moving import Credentials, Running, child_of, mover, receiver, waiting
from tests.qemu.saving import inject

SLOW = "throttle:20M"
"""For a guest that has filled 8 MB and changes 16 MB in each of its ticks."""


def busy(folder: Path, qemu: str) -> Guest:
    return Guest(folder, qemu=qemu, memory=MEMORY, fill=8, dirty=16)


def test_a_save_without_an_end_is_told_with_figures_and_given_up_in_time(
    tmp_path: Path, states: Path, qemu72: str
) -> None:
    with busy(tmp_path, qemu72) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        done = run_statepipe("save", "--qmp", guest.socket, "--timeout", "8", "--auto-converge", SLOW, states / "s")
        assert done.returncode == 1, done.stderr
        assert re.search(r"warning: round \d+, .* sent: the guest changes .* of memory per second, but ", done.stderr)
        assert "error: the guest's memory was not sent within 8 s\n" in done.stderr
        assert re.search(r"hint: QEMU reports that the migration .*; the guest is running here; --offline", done.stderr)
        assert guest.settings() == before
        assert_runs_on(guest)
        assert not list(states.iterdir())


@pytest.mark.parametrize("words", [("--offline",), ("--timeout", "3", "--on-timeout", "suspend")])
def test_a_guest_that_was_stopped_to_be_saved_runs_when_it_is_loaded(
    tmp_path: Path, states: Path, qemu72: str, words: tuple[str, ...]
) -> None:
    with busy(tmp_path, qemu72) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, *words, SLOW, states / "s")
        assert done.returncode == 0, done.stderr
        stood = re.search(r"was stopped for (\d+) ms at the end; it is now paused \(postmigrate\)", done.stderr)
        assert stood is not None and int(stood[1]) >= 500, done.stderr  # 16 MB of the last round, or all 24
        text, image = guest.serial(), guest.image
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, image=image, incoming="defer") as other:
        done = run_statepipe("load", "--qmp", other.socket, states / "s")
        assert done.returncode == 0 and "the guest is running" in done.stderr, done.stderr
        other.wait_ticks(3)
        assert_continues(text, other.serial())


def test_a_guest_that_was_stopped_for_a_save_that_fails_goes_on(
    tmp_path: Path, small_disk: Callable[[int], Path], qemu72: str
) -> None:
    with busy(tmp_path, qemu72) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, "--offline", small_disk(2 << 20) / "s")
        assert done.returncode == 1 and "the guest is running" in done.stderr, done.stderr
        assert_runs_on(guest)


STOPPED_AS_IT_STOPS = """
import os, signal
from statepipe.cli.main import entry
from statepipe.qemu.monitor import Monitor

ask = Monitor.execute

def asked(monitor, command, **arguments):
    answer = ask(monitor, command, **arguments)
    if command == "stop":
        os.kill(os.getpid(), signal.SIGINT)
    return answer

Monitor.execute = asked
entry()
"""
"""statepipe, which a person stops at the very moment at which QEMU has stopped the guest."""


def test_a_guest_goes_on_where_a_person_gives_up_as_it_is_stopped(tmp_path: Path, states: Path, qemu72: str) -> None:
    with busy(tmp_path, qemu72) as guest:
        guest.wait_ticks(2)
        words = ["save", "--qmp", str(guest.socket), "--offline", str(states / "s")]
        done = subprocess.run([sys.executable, "-c", STOPPED_AS_IT_STOPS, *words], capture_output=True, text=True)
        assert done.returncode == 128 + signal.SIGINT, done.stderr
        assert_runs_on(guest)
        assert not list(states.iterdir())


def test_the_downtime_of_a_guest_that_was_stopped_first_is_all_of_the_time(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(2)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, "--offline", "throttle:5M") as moving:
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        took, stood = map(float, re.search(r": ([\d.]+) s, it was stopped for (\d+) ms", moving.said[-2]).groups())  # type: ignore[union-attr]
        assert stood >= 1000 * (took - 0.2) and took > 1


ACTS = "save: warning: statepipe ended unexpectedly:"
"""What the guardian says before all else."""


@pytest.mark.parametrize("words", [(), ("--offline",), ("--live",)])
def test_a_guest_whose_save_is_killed_is_as_before(
    tmp_path: Path, states: Path, qemu: str, words: tuple[str, ...]
) -> None:
    with busy(tmp_path, qemu) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        with Running("save", "--qmp", guest.socket, *words, "throttle:2M", states / "s") as saving:
            guest.wait_transferred(1 << 20)
            saving.send(signal.SIGKILL)
            saving.wait_said(f"{ACTS} the guest here is running")
        assert guest.settings() == before
        assert_runs_on(guest)
        assert not list(states.iterdir())


def test_a_guest_that_was_stopped_for_a_save_killed_at_its_end_runs_on(tmp_path: Path, states: Path, qemu: str) -> None:
    """QEMU has sent all of it and waits for our word; before 8.1 it then calls it postmigrate, though that failed."""
    with busy(tmp_path, qemu) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        killed = inject("fsync:signal=KILL:when=1").split()
        with Running("save", "--qmp", guest.socket, "--offline", states / "s", wrapper=killed) as saving:
            saving.wait_said(f"{ACTS} the guest here is running")
        assert guest.settings() == before
        assert_runs_on(guest)
        assert not list(states.iterdir())


def test_a_guest_that_another_client_took_meanwhile_is_not_run_again(tmp_path: Path, states: Path, qemu72: str) -> None:
    """It may run elsewhere, before the guardian of the save that was killed can look."""
    with busy(tmp_path, qemu72) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        with Running("save", "--qmp", guest.socket, "--offline", "throttle:2M", states / "s") as saving:
            guest.wait_transferred(1 << 20)
            guardian = child_of(saving.pid, "python")
            os.kill(guardian, signal.SIGSTOP)
            try:
                saving.send(signal.SIGKILL)
                guest.wait_status("failed")
                guest.capabilities(return_path=False)
                guest.qmp("migrate", uri="exec:cat >/dev/null")
                guest.wait_status("completed")
            finally:
                os.kill(guardian, signal.SIGCONT)
            saving.wait_said(
                "warning: statepipe ended unexpectedly: QEMU has sent all of the guest and keeps it stopped"
            )
            saving.wait_said("hint: if it runs elsewhere now: statepipe resolve")
        assert guest.settings() == before
        assert guest.run_state() == "postmigrate"


def test_a_qemu_that_answers_too_late_is_left_to_the_guardian(tmp_path: Path, states: Path, qemu72: str) -> None:
    """statepipe itself ends at once where it is told to."""
    with busy(tmp_path, qemu72) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        with Running("save", "--qmp", guest.socket, "--offline", "throttle:2M", states / "s") as saving:
            guest.wait_transferred(1 << 20)
            os.kill(guest.pid, signal.SIGSTOP)
            try:
                saving.send(signal.SIGTERM)
                saving.wait_said(r"guardian \(process \d+\) restores the rest once QEMU answers")
            finally:
                os.kill(guest.pid, signal.SIGCONT)
            saving.wait_said("save: warning: statepipe left the rest to its guardian: the guest here is running")
        assert guest.settings() == before
        assert_runs_on(guest)
        assert not list(states.iterdir())


def test_a_guest_whose_live_save_fails_runs_on(
    tmp_path: Path, small_disk: Callable[[int], Path], states: Path, qemu: str
) -> None:
    """QEMU before 8.1 would call it running, and it would stand still at its next write."""
    with busy(tmp_path, qemu) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        with Running("save", "--qmp", guest.socket, "--live", "throttle:2M", states / "s") as saving:
            guest.wait_transferred(1 << 20)
            saving.send(signal.SIGINT)
            assert saving.wait() == 130, saving.said
        assert_runs_on(guest)
        done = run_statepipe("save", "--qmp", guest.socket, "--live", small_disk(1 << 20) / "s")
        assert done.returncode == 1 and "No space left on device" in done.stderr
        assert "the guest is running" in done.stderr
        assert guest.settings() == before
        assert_runs_on(guest)
        assert not list(states.iterdir())


def test_a_live_save_that_may_not_be_broken_off_has_no_time_to_end_by(
    tmp_path: Path, states: Path, qemu72: str
) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest:
        done = run_statepipe("save", "--qmp", guest.socket, "--live", "--timeout", "60", states / "s")
        assert done.returncode == 6 and "hint: use QEMU 8.1 or later, or save without --live" in done.stderr
        assert_runs_on(guest)
