"""save --domain that is killed or stopped at each of its steps: the domain runs on and there is no file, or it is shut
off and the file is whole. Never both, and never neither."""

from __future__ import annotations

import os
import random
import signal
import subprocess

import pytest

from tests.libvirt.harness import Domain, Libvirt
from tests.libvirt.saving import Save, assert_either, assert_runs_on, assert_saved, children, few
from tests.qemu.striking import steps_of

EARLY = (
    "before Guardian.__enter__",
    "after Guardian.__enter__",
    "after Guardian.note ASKED",
    "after Intake.__enter__",
    "after AtWork",
    "after Intake.await_image",
    "after Intake.read_beginning",
    "before save_stream",
    "before FileSink.sync",
    "after FileSink.sync",
    "before Intake.await_question",
    "after Intake.await_question",
    "after Guardian.note NAMING",
    "before FileSink.commit",
)
"""Steps before the file has its name, in their order."""

LATE = ("before sync_names", "after sync_names", "after FileSink.commit", "before answer")
"""Steps from the naming on."""

ANSWERED = ("after answer", "before AtWork.has_ended", "after AtWork.has_ended", "after save_stream")
"""Steps after libvirt was answered."""

STOPPED = ("after AtWork", "before save_stream", "after Guardian.note NAMING")
"""Steps at which a signal ends it."""

OLDER = b"QEVM, older"
"""Begins as what a save may replace."""


def test_the_steps_are_reached(shared: Libvirt, domain: Domain) -> None:
    """All that are struck below, in this order."""
    save = Save(shared, domain, strike=(signal.SIGKILL, "nowhere"))
    assert save.end() == 0, save.stderr
    steps = steps_of(domain.files / "steps")
    wanted = [*EARLY, *LATE, *ANSWERED]
    assert [step for step in steps if step in wanted] == wanted
    assert_saved(save)


@pytest.mark.parametrize(
    "step",
    few(
        EARLY,
        "before Guardian.__enter__",
        "after Guardian.note ASKED",
        "after AtWork",
        "before save_stream",
        "after Intake.await_question",
        "before FileSink.commit",
    ),
)
def test_killed_before_the_file_has_its_name_the_domain_runs_on(shared: Libvirt, domain: Domain, step: str) -> None:
    save = Save(shared, domain, strike=(signal.SIGKILL, step))
    assert save.end() == -signal.SIGKILL, save.stderr
    if step not in EARLY[:2]:
        assert f"ended unexpectedly: there is no file, and the domain {domain.name} runs on" in save.stderr
    assert_runs_on(save)


@pytest.mark.parametrize(
    "step", few([*LATE, *ANSWERED], "before sync_names", "before answer", "after answer", "after save_stream")
)
def test_killed_after_that_the_domain_is_saved(shared: Libvirt, domain: Domain, step: str) -> None:
    save = Save(shared, domain, strike=(signal.SIGKILL, step))
    assert save.end() == -signal.SIGKILL, save.stderr
    assert f"{save.file} holds the whole state, and the domain {domain.name} is shut off" in save.stderr
    assert_saved(save)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        *((signal.SIGTERM, step) for step in STOPPED),
        *(
            pytest.param(number, step, marks=pytest.mark.faults if step != "before save_stream" else ())
            for number in (signal.SIGINT, signal.SIGHUP)
            for step in STOPPED
        ),
    ],
)
def test_stopped_before_that_the_domain_runs_on(
    shared: Libvirt, domain: Domain, number: signal.Signals, step: str
) -> None:
    save = Save(shared, domain, strike=(number, step))
    assert save.end() == 128 + number, save.stderr
    assert f"the domain {domain.name} runs on" in save.stderr
    assert "unexpectedly" not in save.stderr
    assert_runs_on(save)


def test_a_signal_after_that_is_too_late(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, strike=(signal.SIGTERM, "before answer"))
    assert save.end() == 0, save.stderr
    assert_saved(save)


def test_a_file_that_appears_meanwhile_is_not_replaced_and_the_domain_runs_on(shared: Libvirt, domain: Domain) -> None:
    """libvirt has asked by then, and is refused."""
    save = Save(shared, domain, strike=(signal.SIGSTOP, "before FileSink.commit"))
    save.wait_at_step()
    save.file.write_bytes(OLDER)
    save.go()
    assert save.end() == 2, save.stderr
    assert f"{save.file} exists already, and it was not there at the beginning" in save.stderr
    assert f"the domain {domain.name} runs on" in save.stderr
    assert save.file.read_bytes() == OLDER
    save.file.unlink()
    assert_runs_on(save)


@pytest.mark.parametrize(
    "step", few(("before FileSink._keep_older", "after FileSink._keep_older", "before replace"), "before replace")
)
def test_killed_before_the_name_changes_hands_the_older_file_stays(shared: Libvirt, domain: Domain, step: str) -> None:
    (domain.files / "state").write_bytes(OLDER)
    save = Save(shared, domain, strike=(signal.SIGKILL, step))
    assert save.end() == -signal.SIGKILL, save.stderr
    assert save.file.read_bytes() == OLDER
    shared.statepipe("save", "--domain", domain.name, save.file, check=True)  # it removes what is left of the other
    assert_saved(save)


@pytest.mark.parametrize("step", few(("after replace", "after sync_names", "before answer"), "after replace"))
def test_killed_after_that_nothing_of_the_older_file_is_left(shared: Libvirt, domain: Domain, step: str) -> None:
    (domain.files / "state").write_bytes(OLDER)
    save = Save(shared, domain, strike=(signal.SIGKILL, step))
    assert save.end() == -signal.SIGKILL, save.stderr
    assert_saved(save)


@pytest.mark.parametrize(
    "step",
    few(
        ("before Intake.refuse", "after Intake.refuse", "before Job.ask", "after Job.ask"),
        "before Intake.refuse",
        "after Intake.refuse",
    ),
)
def test_killed_while_it_refuses_the_domain_runs_on(shared: Libvirt, domain: Domain, step: str) -> None:
    """The guardian refuses then."""
    save = Save(shared, domain, f"verify:{'0' * 64}", strike=(signal.SIGKILL, step))  # no stream has this digest
    assert save.end() == -signal.SIGKILL, save.stderr
    assert_runs_on(save)


def test_killed_beside_virsh_the_domain_runs_on(shared: Libvirt, domain: Domain) -> None:
    """The job is libvirtd's, and goes on until it asks in vain."""
    save = Save(shared, domain, strike=(signal.SIGSTOP, "after FileSink.sync"))
    save.wait_at_step()
    os.killpg(os.getpgid(children(save.process.pid, "virsh")[0]), signal.SIGKILL)
    save.process.kill()
    save.end()
    assert_runs_on(save)


def test_a_guardian_that_is_killed_does_not_matter(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    os.kill(children(save.process.pid, "python")[0], signal.SIGKILL)
    save.go()
    assert save.end() == 0, save.stderr
    assert_saved(save)


def test_a_guardian_that_is_killed_does_not_matter_after_a_failure(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, strike=(signal.SIGSTOP, "before Intake.await_question"))
    save.wait_at_step()
    os.kill(children(save.process.pid, "python")[0], signal.SIGKILL)
    save.process.terminate()
    save.go()
    assert save.end() == 128 + signal.SIGTERM, save.stderr
    assert f"the domain {domain.name} runs on" in save.stderr
    assert_runs_on(save)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_exactly_one_of_both_holds(shared: Libvirt, domain: Domain, seed: int) -> None:
    chance = random.Random(seed)
    save = Save(shared, domain)
    try:
        save.process.wait(chance.uniform(0.1, 1.2))
    except subprocess.TimeoutExpired:
        chance.choice([save.process.kill, save.process.terminate])()
    save.end()
    assert_either(save)
