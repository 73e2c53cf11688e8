"""A guest whose disks end with its QEMU is not saved: nobody could load that state."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qemu.harness import EXEC, Guest, assert_runs_on, run_statepipe, wait_for
from tests.qemu.loading import MEMORY

REASON = "what the guest writes to its disks is lost when its QEMU ends"


@pytest.mark.parametrize("option", ["-snapshot", "snapshot=on"])
def test_a_guest_with_temporary_disks_is_not_saved(tmp_path: Path, states: Path, qemu72: str, option: str) -> None:
    extra = tmp_path / "extra.img"
    extra.write_bytes(bytes(1 << 20))
    args = ["-drive", f"file={extra},format=raw,if=ide,index=1,{option}"] if "=" in option else [option]
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=8, dirty=0, args=args) as guest:
        guest.wait_ticks(2)
        done = run_statepipe("save", "--qmp", guest.socket, states / "s")
        assert done.returncode == 1 and REASON in done.stderr and "block-commit" in done.stderr
        guest.qmp("migrate", uri=f"exec:exec {EXEC} save {states}/s")
        assert guest.wait_status()["status"] == "failed" and REASON in guest.stderr()
        assert_runs_on(guest)
        assert not list(states.iterdir())
        if option == "snapshot=on":
            keep(guest)
            done = run_statepipe("save", "--qmp", guest.socket, states / "s")
            assert done.returncode == 0, done.stderr


def keep(guest: Guest) -> None:
    """Do as the hint says."""
    device = next(row["device"] for row in guest.qmp("query-block") if "vl." in row["inserted"]["file"])
    guest.qmp("block-commit", device=device, job_id="j")
    wait_for("the job", lambda: any(event["event"] == "BLOCK_JOB_READY" for event in guest.events()))
    guest.qmp("block-job-complete", device="j")
    wait_for("its end", lambda: any(event["event"] == "BLOCK_JOB_COMPLETED" for event in guest.events()))
