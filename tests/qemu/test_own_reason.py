"""QEMU's own reason for not taking a guest is told where a person waits: at the source, and in the error of a load."""

from __future__ import annotations

from pathlib import Path

from tests.qemu.harness import Guest
from tests.qemu.loading import Saved, run_load
from tests.qemu.moving import Credentials, mover, receiver


def test_the_source_hears_why_the_other_qemu_would_not(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, memory=64, fill=8, dirty=2) as source:
        source.wait_ticks(2)
        command = f"{qemu72} -accel tcg -m 128 -display none -nodefaults -serial null".split()
        receiving, port = receiver(credentials, "--", *command, "-drive", f"file={source.image},format=raw,if=ide")
        with receiving, mover(credentials, source, port, "--force") as moving:
            assert moving.wait() != 0 and receiving.wait() != 0, (moving.said, receiving.said)
        its = [line for line in receiving.said if line.startswith("qemu-system")]
        error = next(line for line in moving.said if ": error: " in line)
        assert its and its[-1] in error, (moving.said, receiving.said)
        assert source.wait_run_state("running") == "running"


def test_a_load_that_qemu_refuses_says_why(tmp_path: Path, state72: Saved) -> None:
    done = run_load(tmp_path, state72, args=["-device", "nothing-of-that-name"])
    assert done.returncode == 6
    error = next(line for line in done.stderr.splitlines() if ": error: " in line)
    assert "QEMU ended with status 1 while loading: " in error and "nothing-of-that-name" in error, done.stderr
