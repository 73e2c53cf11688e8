"""save and load --domain whose libvirtd stands still (SIGSTOP), or is killed and started again, at each step.

A libvirtd that stands still is waited for: it loses no guest. Whoever asks statepipe to end meanwhile is answered
within seconds, and the guardian waits on.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.libvirt.harness import Domain, Libvirt
from tests.libvirt.saving import Save, assert_either, assert_runs_on, assert_saved, few
from tests.libvirt.states import Kept
from tests.qemu.harness import PATIENCE, wait_for
from tests.qemu.striking import striking

SAVING = (
    "after Intake.__enter__",
    "after AtWork",
    "after Intake.await_image",
    "before save_stream",
    "after FileSink.sync",
    "after Intake.await_question",
    "after Guardian.note NAMING",
    "before FileSink.commit",
)
"""Steps of a save before libvirt is answered."""

LOADING = ("after Offer.__enter__", "after AtWork", "before Offer._hand", "after Offer._hand")
"""Steps of a load before the stream's end is written."""


@contextmanager
def still(libvirt: Libvirt) -> Iterator[None]:
    """Within it, libvirtd stands still."""
    os.kill(libvirt.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(libvirt.pid, signal.SIGCONT)


def waits(process: subprocess.Popen[str]) -> bool:
    """Whether the main thread of a process waits for a descriptor or for another thread, or the process has ended."""
    try:
        place = Path(f"/proc/{process.pid}/wchan").read_text()
    except OSError:
        return True
    return "poll" in place or "futex" in place or process.poll() is not None


@contextmanager
def loading(kept: Kept, step: str) -> Iterator[subprocess.Popen[str]]:
    """A load that is at a step, and goes on when there is a file of `go_on`."""
    record = kept.domain.files / "load-steps"
    for path in (record, Path(f"{record}.go")):
        path.unlink(missing_ok=True)
    words = [*striking(signal.SIGSTOP, step, record), "load", "--domain", kept.state]
    with kept.libvirt.popen(*words, stderr=subprocess.PIPE, text=True) as load:
        try:
            wait_for(f"step {step}", lambda: record.exists() and step in record.read_text().splitlines())
            yield load
        finally:
            load.kill()


def go_on(kept: Kept) -> None:
    """Let the load go on."""
    (kept.domain.files / "load-steps.go").touch()


# --- it stands still


@pytest.mark.parametrize("step", few((*SAVING, "before answer"), "after AtWork", "before answer"))
def test_a_save_waits_for_it(shared: Libvirt, domain: Domain, step: str) -> None:
    save = Save(shared, domain, strike=(signal.SIGSTOP, step))
    save.wait_at_step()
    with still(shared):
        save.go()
        wait_for("statepipe that waits", lambda: waits(save.process))
        assert save.process.poll() is None
    assert save.end() == 0, save.stderr
    assert_saved(save)


@pytest.mark.parametrize("step", few(SAVING[:-1], "after AtWork", "after Intake.await_question"))
def test_a_save_that_is_stopped_meanwhile_ends_and_the_domain_runs_on(
    shared: Libvirt, domain: Domain, step: str
) -> None:
    """From the naming on, it is too late for that."""
    save = Save(shared, domain, strike=(signal.SIGSTOP, step))
    save.wait_at_step()
    with still(shared):
        save.process.terminate()
        save.go()
        save.process.wait(PATIENCE)  # its guardian has the other end of its messages yet
    assert save.end() == 128 + signal.SIGTERM, save.stderr
    assert "unexpectedly" not in save.stderr and "Traceback" not in save.stderr
    assert "runs on" in save.stderr or step == "after Intake.__enter__", save.stderr
    assert_runs_on(save)


@pytest.mark.parametrize("step", few(LOADING, "after AtWork"))
def test_a_load_waits_for_it(kept: Kept, step: str) -> None:
    with loading(kept, step) as load:
        with still(kept.libvirt):
            go_on(kept)
            wait_for("statepipe that waits", lambda: waits(load))
            assert load.poll() is None
        _, said = load.communicate(timeout=PATIENCE)
    assert load.returncode == 0, said
    kept.assert_goes_on()


@pytest.mark.parametrize("step", few(LOADING, "after Offer._hand"))
def test_a_load_that_is_stopped_meanwhile_ends_and_nothing_runs(kept: Kept, step: str) -> None:
    with loading(kept, step) as load:
        with still(kept.libvirt):
            load.terminate()
            go_on(kept)
            load.wait(PATIENCE * 2)
        _, said = load.communicate(timeout=PATIENCE)
    assert load.returncode == 128 + signal.SIGTERM, said
    assert "unexpectedly" not in said and "Traceback" not in said
    kept.assert_did_not_run()
    kept.load(check=True)
    kept.assert_goes_on()


# --- it is killed, and started again


@pytest.mark.parametrize("step", few((*SAVING, "after answer"), "after AtWork", "after Intake.await_question"))
def test_a_save_whose_libvirtd_is_started_again_ends_in_one_of_two_ways(
    shared: Libvirt, domain: Domain, step: str
) -> None:
    save = Save(shared, domain, strike=(signal.SIGSTOP, step))
    save.wait_at_step()
    shared.end(signal.SIGKILL)
    shared.start()
    save.go()
    status = save.end()
    assert "unexpectedly" not in save.stderr and "Traceback" not in save.stderr
    assert assert_either(save) is (status == 0), save.stderr
    assert status == 0 or "the domain vm1 runs on: running" in save.stderr, save.stderr


@pytest.mark.parametrize(
    "step", few((*LOADING, "before Offer.commit", "after Offer.commit"), "after Offer._hand", "after Offer.commit")
)
def test_a_load_whose_libvirtd_is_started_again_does_not_run_half(kept: Kept, step: str) -> None:
    with loading(kept, step) as load:
        kept.libvirt.end(signal.SIGKILL)
        kept.libvirt.start()
        go_on(kept)
        _, said = load.communicate(timeout=PATIENCE)
    assert "unexpectedly" not in said and "Traceback" not in said
    if kept.domain.runs():
        kept.assert_goes_on()
        return
    assert load.returncode == 6, said
    kept.assert_did_not_run()
    kept.load(check=True)
    kept.assert_goes_on()
