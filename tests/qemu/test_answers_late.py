"""A QEMU that answers late, and somebody who wants statepipe to end meanwhile: it says nothing that it does not know.

QEMU is stopped at the very step, so that nothing it is told is done before it goes on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest import parse_ticks
from tests.hurried import hurried
from tests.qemu.harness import Guest, assert_runs_on, assert_unbroken, run_statepipe, wait_for
from tests.qemu.moving import LISTENING, Credentials, Running, assert_moved, mover, receiver

ROOT = Path(__file__).parents[2]


def breaking(*words: object) -> Running:
    return Running(*words, program=[sys.executable, "-m", "tests.qemu.breaking"], cwd=ROOT)


@contextmanager
def two_guests(folder: Path, qemu: str) -> Iterator[tuple[Guest, Guest]]:
    """One that runs, and one that waits for it; both go on again in the end, however it was."""
    with (
        Guest(folder, qemu=qemu, dirty=2) as source,
        Guest(folder, qemu=qemu, image=source.image, incoming="defer", args=["-S"]) as target,
    ):
        source.wait_ticks(2)
        try:
            yield source, target
        finally:
            for guest in (source, target):
                if not guest.ended():
                    os.kill(guest.pid, signal.SIGCONT)


def is_stopped(guest: Guest) -> bool:
    return Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def receiving_until(step: str, target: Guest, credentials: Credentials) -> tuple[Running, int]:
    """A receive whose QEMU is stopped at the step."""
    words = ("receive", f"{step}={target.pid}", credentials.folder / "destination", "tls://127.0.0.1:0", target.socket)
    running = breaking(*words)
    try:
        return running, int(running.wait_said(LISTENING.pattern)[1])
    except BaseException:
        running.__exit__()
        raise


def test_a_signal_while_the_guest_is_told_to_run_changes_nothing(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """It says what it waits for, and stays until QEMU has answered; then the guest runs, there alone."""
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiving_until("STARTING", target, credentials)
        with receiving, mover(credentials, source, port) as moving:
            wait_for("stopped QEMU", lambda: is_stopped(target))
            receiving.send(signal.SIGTERM)
            said = receiving.wait_said("was told to run the guest and has not answered")
            assert "whether the guest runs here is not known" in said.string
            moving.wait_said("was told to run the guest and has not confirmed that it runs")
            assert not receiving.ended() and not moving.ended() and not target.ticks()
            os.kill(target.pid, signal.SIGCONT)
            assert moving.wait() == 0, moving.said
            assert receiving.wait() == 0, receiving.said
        assert_moved(source, target)


def test_a_qemu_that_answers_nothing_is_ended_before_that_is_said(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiving_until("INCOMING", target, credentials)
        with receiving, mover(credentials, source, port) as moving:
            wait_for("stopped QEMU", lambda: is_stopped(target))
            receiving.send(signal.SIGTERM)
            assert receiving.wait() == 128 + signal.SIGTERM, receiving.said
            assert target.ended() and not target.ticks()
            assert "the QEMU here has ended, and its guest never ran" in receiving.said[-2]
            assert moving.wait() == 5, moving.said
            assert "the guest is running here, as before" in moving.said[-2]
        assert_runs_on(source)


def test_who_is_to_end_after_go_does_not_say_where_the_guest_runs(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """What it tells people to do makes no second guest of one that starts late."""
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiving_until("STARTING", target, credentials)
        soon = hurried("migration.coordinator.OVERDUE_ON_STOPPING=4", "migration.coordinator.PARTING=2")
        with receiving, mover(credentials, source, port, program=soon) as moving:
            wait_for("stopped QEMU", lambda: is_stopped(target))
            moving.wait_said("was told to run the guest and has not confirmed")
            moving.send(signal.SIGTERM)
            assert moving.wait() == 6, moving.said
            assert "whether it does is not known here" in moving.said[-3]
            assert "see that it has ended, and only then" in moving.said[-2]
            os.kill(target.pid, signal.SIGCONT)
            assert receiving.wait() == 0, receiving.said
        assert_moved(source, target)


def test_a_source_that_answers_nothing_keeps_nobody_for_ever(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """The destination hears at once that all is off; of the guest here nothing is said that was not seen."""
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiver(credentials, "--qmp", target.socket)
        creds = credentials.folder / "source"
        words = ("migrate", f"PROMISED={source.pid}", creds, f"tls://127.0.0.1:{port}", source.socket)
        with receiving, breaking(*words) as moving:
            wait_for("stopped QEMU", lambda: is_stopped(source))
            moving.send(signal.SIGTERM)
            moving.wait_said("QEMU here was told to cancel the migration and has not answered")
            assert receiving.wait() == 5, receiving.said
            assert target.ended()
            assert moving.wait() == 6, moving.said
            assert "the guest was not given away, and whether it runs here is not known" in moving.said[-2]
            os.kill(source.pid, signal.SIGCONT)
            done = run_statepipe("resolve", "--qmp", source.socket, "here")
            assert done.returncode == 0, done.stderr
            assert_runs_on(source)


def test_who_was_killed_while_the_guest_is_told_to_run_has_a_guardian_that_waits(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """It says that the guest runs once QEMU has said so, and nothing of the guest before."""
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiving_until("STARTING", target, credentials)
        with receiving, mover(credentials, source, port, "--retry", "3") as moving:
            wait_for("stopped QEMU", lambda: is_stopped(target))
            receiving.wait_said("was told to run the guest and has not answered")
            receiving.send(signal.SIGKILL)
            assert moving.wait() == 6, moving.said
            assert "whether it does is not known here" in moving.said[-3]
            receiving.wait_said("guardian: warning: no greeting at .*: another client may be connected")
            os.kill(target.pid, signal.SIGCONT)
            receiving.wait_said("ended unexpectedly: the guest runs here")
            assert receiving.wait() == -signal.SIGKILL
        assert_moved(source, target)


def test_of_a_qemu_that_dies_once_it_was_told_to_run_nobody_says_that_its_guest_never_ran(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """Its disks may have been written: so the source's guest stands still until a person has looked."""
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiving_until("STARTING", target, credentials)
        with receiving, mover(credentials, source, port) as moving:
            wait_for("stopped QEMU", lambda: is_stopped(target))
            receiving.wait_said("was told to run the guest and has not answered")
            target.kill()
            assert receiving.wait() == 6, receiving.said
            assert "has ended: whether the guest ran here is not known" in receiving.said[-2]
            assert moving.wait() == 6, moving.said
            assert source.run_state() == "postmigrate"
        done = run_statepipe("resolve", "--qmp", source.socket, "here")
        assert done.returncode == 0, done.stderr
        assert_runs_on(source)


def test_a_qemu_that_dies_once_its_guest_was_given_away_takes_nothing_from_it(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with two_guests(tmp_path, qemu72) as (source, target):
        receiving, port = receiving_until("STARTING", target, credentials)
        with receiving, mover(credentials, source, port, "--quit-source") as moving:
            wait_for("stopped QEMU", lambda: is_stopped(target))
            silent = source.serial()
            source.kill()
            os.kill(target.pid, signal.SIGCONT)
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
            assert "the guest runs at" in moving.said[-2]
        target.wait_ticks(3)
        assert_unbroken(parse_ticks(silent + target.serial()))


def test_a_guest_that_is_still_on_its_way_is_run_by_nobody_s_word(tmp_path: Path, qemu72: str) -> None:
    with Guest(tmp_path, qemu=qemu72, incoming="defer") as target:
        target.qmp("migrate-incoming", uri=f"unix:{target.socket}.stream")
        done = run_statepipe("resolve", "--qmp", target.socket, "here")
        assert done.returncode == 6 and "the guest has not arrived completely" in done.stderr
        assert target.run_state() == "inmigrate"
