"""load --domain that is killed or stopped at each of its steps: the domain does not run unless libvirt has all of its
state, and nothing of libvirt waits for a statepipe that is gone."""

from __future__ import annotations

import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.libvirt.harness import Libvirt
from tests.libvirt.saving import few
from tests.libvirt.states import Kept, keep
from tests.qemu.harness import PATIENCE, wait_for
from tests.qemu.striking import steps_of, striking

EARLY = (
    "before Target.demand_idle",
    "before Guardian.__enter__",
    "after Guardian.__enter__",
    "before Guardian.note OFFERED",
    "after Guardian.note OFFERED",
    "after Offer._place",
    "after Offer.__enter__",
    "before _restore",
    "after AtWork",
    "before Offer._hand",
    "before Offer._serve",
    "after Offer._serve",
    "after Offer._hand",
)
"""Steps before the stream's end was written, in their order."""

STOPPED = ("after Guardian.__enter__", "after AtWork", "after Offer._hand")
"""Steps at which a signal ends it."""

LATE = (
    "before Guardian.note HANDED",
    "after Guardian.note HANDED",
    "before Offer.commit",
    "after Offer.commit",
    "before AtWork.has_ended",
    "after AtWork.has_ended",
    "before _report",
)
"""Steps after that."""


class Load:
    """A load that is struck by a signal at a step."""

    def __init__(self, kept: Kept, number: signal.Signals, step: str) -> None:
        self.record = kept.domain.files / "steps"
        self.record.unlink(missing_ok=True)
        words = [*striking(number, step, self.record), "load", "--domain", kept.state]
        done = kept.libvirt.run(*words, check=False)
        self.status, self.stderr = done.returncode, done.stderr


def assert_nothing_waits(kept: Kept) -> None:
    """No virsh waits for libvirt, which waits for nothing; a later load works."""
    wanted = f"--file={kept.libvirt.folder}/".encode()

    def waits() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has just ended
                if any(word.startswith(wanted) for word in path.read_bytes().split(b"\0")):
                    return True
        return False

    wait_for("end of virsh", lambda: not waits())
    kept.assert_did_not_run()
    kept.load(check=True)
    kept.assert_goes_on()


def test_the_steps_are_reached(kept: Kept) -> None:
    """All that are struck below, in this order."""
    load = Load(kept, signal.SIGKILL, "nowhere")
    assert load.status == 0, load.stderr
    wanted = [*EARLY, *LATE]
    assert [step for step in steps_of(load.record) if step in wanted] == wanted
    kept.assert_goes_on()


@pytest.mark.parametrize(
    "step",
    few(
        EARLY,
        "before Guardian.__enter__",
        "after Guardian.note OFFERED",
        "after AtWork",
        "before Offer._serve",
        "after Offer._hand",
    ),
)
def test_killed_before_the_end_nothing_runs(kept: Kept, step: str) -> None:
    load = Load(kept, signal.SIGKILL, step)
    assert load.status == -signal.SIGKILL, load.stderr
    if step in EARLY[EARLY.index("after Guardian.note OFFERED") :]:
        assert "libvirt was not given all of the state, and the domain vm1 is shut off" in load.stderr
    assert_nothing_waits(kept)


@pytest.mark.parametrize(
    "step", few(("before Offer._serve", "after Offer._serve", "after Offer._hand"), "after Offer._serve")
)
def test_killed_between_two_opens_nothing_runs(newer: Libvirt, step: str) -> None:
    """libvirt 12.9 has closed the image once, and opens it again, at the second of these steps."""
    kept = keep(newer, newer.domain(memory=32, fill=2, dirty=1))
    load = Load(kept, signal.SIGKILL, step)
    assert load.status == -signal.SIGKILL, load.stderr
    assert ("after Offer._hand" in steps_of(load.record)) is (step == "after Offer._hand")
    assert "libvirt was not given all of the state, and the domain vm1 is shut off" in load.stderr
    assert_nothing_waits(kept)


@pytest.mark.parametrize("step", few(LATE, "after Guardian.note HANDED", "after Offer.commit", "before _report"))
def test_killed_after_that_the_domain_runs(kept: Kept, step: str) -> None:
    load = Load(kept, signal.SIGKILL, step)
    assert load.status == -signal.SIGKILL, load.stderr
    assert "the domain vm1 is running" in load.stderr
    kept.assert_goes_on()


@pytest.mark.parametrize(
    ("number", "step"),
    [
        *((signal.SIGTERM, step) for step in STOPPED),
        *(
            pytest.param(number, step, marks=pytest.mark.faults if step != "after AtWork" else ())
            for number in (signal.SIGINT, signal.SIGHUP)
            for step in STOPPED
        ),
    ],
)
def test_stopped_before_the_end_nothing_runs(kept: Kept, number: signal.Signals, step: str) -> None:
    load = Load(kept, number, step)
    assert load.status == 128 + number, load.stderr
    assert "unexpectedly" not in load.stderr
    assert_nothing_waits(kept)


def test_stopped_after_that_the_domain_runs_and_the_hint_says_so(kept: Kept) -> None:
    load = Load(kept, signal.SIGTERM, "after AtWork.has_ended")
    assert load.status == 128 + signal.SIGTERM
    assert "the domain vm1 is running (restored)" in load.stderr
    kept.assert_goes_on()


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_it_runs_or_nothing_waits(kept: Kept, seed: int) -> None:
    chance = random.Random(seed)
    with kept.libvirt.popen(*kept.words(), stderr=subprocess.PIPE, text=True) as process:
        try:
            process.wait(chance.uniform(0.1, 1.5))
        except subprocess.TimeoutExpired:
            chance.choice([process.kill, process.terminate])()
        _, said = process.communicate(timeout=PATIENCE)
    if kept.domain.runs():
        kept.assert_goes_on()
    else:
        assert process.returncode, said
        assert_nothing_waits(kept)
