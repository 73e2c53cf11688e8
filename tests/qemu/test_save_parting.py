"""A background snapshot by exec: that is not saved: the guest of a QEMU that cannot break it off runs on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.qemu.harness import EXEC, Guest, QmpError, assert_runs_on, wait_for
from tests.qemu.saving import child_of


@pytest.mark.parametrize("words", ["--bogus s", "none/s", "throttle:2M s"])
def test_a_guest_runs_on_whose_snapshot_was_not_saved(tmp_path: Path, qemu: str, words: str) -> None:
    """At once, or by a signal in the midst of it. QEMU 8.1 and later break it off by themselves."""
    said = tmp_path / "said"
    with Guest(tmp_path, qemu=qemu, memory=64, fill=8, dirty=8) as guest:
        try:
            guest.capabilities(background_snapshot=True)
        except QmpError as error:
            pytest.skip(f"no background-snapshot here: {error}")
        guest.wait_ticks(2)
        guest.qmp("migrate", uri=f"exec:cd {tmp_path}; exec {EXEC} save {words} 2>{said}")
        if "throttle" in words:
            guest.wait_transferred(1 << 20)
            os.kill(wait_for("save", lambda: child_of(guest.pid)), signal.SIGTERM)
        status = guest.wait_status()["status"]
        assert_runs_on(guest)
        assert ("the rest of it is read" in said.read_text()) == (status == "completed"), said.read_text()
        wait_for("end of save", lambda: "error: " in said.read_text())
        assert not (tmp_path / "s").exists()
