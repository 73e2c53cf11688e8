"""QEMU's own reason for not taking a guest is told where a person waits: at the source, and in the error of a load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qemu.harness import Guest
from tests.qemu.loading import Saved, run_load
from tests.qemu.moving import Credentials, mover, receiver

SIZES = "qemu-system-x86_64: Size mismatch: pc.ram"
"""Why a QEMU with another memory will not have a guest."""


@pytest.mark.parametrize("how", ["stays", "--serve", "--detach"])
def test_the_source_hears_why_the_other_qemu_would_not(
    tmp_path: Path, qemu72: str, credentials: Credentials, how: str
) -> None:
    with Guest(tmp_path, qemu=qemu72, memory=64, fill=8, dirty=2) as source:
        source.wait_ticks(2)
        command = f"{qemu72} -accel tcg -m 128 -display none -nodefaults -serial null".split()
        words = {"stays": [], "--serve": ["--serve", "1"], "--detach": ["--detach"]}[how]
        disk = f"file={source.image},format=raw,if=ide"
        receiving, port = receiver(credentials, *words, "--", *command, "-drive", disk)
        with receiving, mover(credentials, source, port, "--force") as moving:
            assert moving.wait() != 0, (moving.said, receiving.said)
            receiving.wait_said("no guest was taken: .*" + SIZES if how == "--serve" else ": error: .*" + SIZES)
        error = next(line for line in moving.said if ": error: " in line)
        assert SIZES in error, (moving.said, receiving.said)
        assert any(line.startswith(SIZES) for line in receiving.said), receiving.said  # it is passed on as well
        assert source.wait_run_state("running") == "running"


FILE, NOWHERE = (), ("sh", "-c", 'exec "$@" 2>/dev/null', "sh")
"""Where a QEMU's standard error goes, by what it is started with."""


@pytest.mark.parametrize(
    ("version", "wrapper", "why"),
    [
        ("qemu72", FILE, SIZES),
        ("qemu72", NOWHERE, "its standard error is /dev/null, so its messages are lost"),
        ("qemu10", NOWHERE, "load of migration failed: Invalid argument"),
        ("qemu11", NOWHERE, "load of migration failed: Invalid argument"),
    ],
)
def test_the_source_hears_why_a_qemu_of_another_s_would_not(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    credentials: Credentials,
    version: str,
    wrapper: tuple[str, ...],
    why: str,
) -> None:
    """What it says on its standard error, where that is a file; what its monitor tells; or where it would stand."""
    qemu: str = request.getfixturevalue(version)
    with (
        Guest(tmp_path, qemu=qemu, memory=64, fill=8, dirty=2) as source,
        Guest(tmp_path, qemu=qemu, image=source.image, incoming="defer", args=["-S"], wrapper=wrapper) as target,
    ):
        source.wait_ticks(2)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, "--force") as moving:
            assert (moving.wait(), receiving.wait()) == (5, 6), (moving.said, receiving.said)
        for said in (moving.said, receiving.said):
            assert why in next(line for line in said if ": error: " in line), (moving.said, receiving.said)
        assert source.wait_run_state("running") == "running"


def test_a_load_that_qemu_refuses_says_why(tmp_path: Path, state72: Saved) -> None:
    done = run_load(tmp_path, state72, args=["-device", "nothing-of-that-name"])
    assert done.returncode == 6
    error = next(line for line in done.stderr.splitlines() if ": error: " in line)
    assert "QEMU ended with status 1 while loading: " in error and "nothing-of-that-name" in error, done.stderr
