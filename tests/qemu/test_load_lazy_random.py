"""load --lazy that is paused, slowed and killed at random: the guest counts on, and no page of its memory is wrong."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.qemu.harness import Qmp, run_statepipe, statepipe_command, wait_for
from tests.qemu.lazily import Lazy, assert_went_on
from tests.qemu.loading import MEMORY, Saved, end_qemu, loaded

CHANGES = (range(0, 256), range(2560, 3072))
"""Pages that the guest writes to: those of its stack and of its devices, and 2 MB in which each tick leaves its number.
The sums that it prints are over all others that it uses."""

PAGE = 4096


def unchanging(memory: bytes) -> bytes:
    """Memory without these pages."""
    pages = (number for number in range(len(memory) // PAGE) if not any(number in each for each in CHANGES))
    return b"".join(memory[number * PAGE : (number + 1) * PAGE] for number in pages)


@contextmanager
def monitored(folder: Path, saved: Saved, sockets: Path, *options: str) -> Iterator[tuple[Lazy, Path]]:
    """A lazy load, and a monitor of its QEMU."""
    path = sockets / "qmp"
    path.unlink(missing_ok=True)
    with Lazy(folder, saved, *options, args=["-qmp", f"unix:{path},server=on,wait=off"]) as lazy:
        yield lazy, path


def memory_at(path: Path, file: Path) -> bytes:
    """All memory of the guest with this monitor, which is stopped for it."""
    monitor = Qmp(path, 60)
    try:
        monitor.execute("stop")
        monitor.execute("pmemsave", val=0, size=MEMORY << 20, filename=str(file))
        monitor.execute("cont")
    finally:
        monitor.close()
    return file.read_bytes()


def ordinary_memory(folder: Path, saved: Saved) -> bytes:
    """What an ordinary load gives."""
    folder.mkdir()
    with loaded(folder, saved, args=["-S"]) as guest:
        wait_for("the guest", lambda: "is loaded and verified" in guest.stderr())
        guest.qmp("pmemsave", val=0, size=MEMORY << 20, filename=str(folder / "memory"))
    return unchanging((folder / "memory").read_bytes())


def pause_at_random(lazy: Lazy, chance: random.Random) -> None:
    """Until all memory is loaded; each pause is some milliseconds, at a moment that nothing tells."""
    while "all memory is loaded" not in lazy.stderr():
        time.sleep(chance.uniform(0, 0.1))
        if chance.random() < 0.2:
            run_statepipe("rate", str(lazy.pid), chance.choice(["3M", "20M", "200M", "unlimited"]))
            continue
        lazy.signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0, 0.1))
        lazy.signal(signal.SIGCONT)


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.faults)])
def test_loads_in_a_row_with_random_pauses(tmp_path: Path, qmp_folder: Path, noisy: Saved, rounds: int) -> None:
    expected = ordinary_memory(tmp_path / "ordinary", noisy)
    for number in range(rounds):
        chance = random.Random(f"{number} {noisy.qemu}")
        folder = tmp_path / str(number)
        folder.mkdir()
        with monitored(folder, noisy, qmp_folder, "--throttle", chance.choice(["4M", "10M", "50M"])) as (lazy, qmp):
            lazy.here()
            pause_at_random(lazy, chance)
            assert_went_on(noisy, lazy)
            assert unchanging(memory_at(qmp, folder / "memory")) == expected, f"round {number}"
        print(f"round {number}: memory is equal", flush=True)
        (folder / "memory").unlink()


@pytest.mark.parametrize("points", [pytest.param(50, marks=pytest.mark.faults)])
def test_kills_at_random_points(tmp_path: Path, qmp_folder: Path, noisy: Saved, points: int) -> None:
    """Of the first statepipe and of those that continue; before the guest ran, QEMU ends and the load begins again."""
    expected = ordinary_memory(tmp_path / "ordinary", noisy)
    outcomes = {"never ran": 0, "continued": 0}
    for number in range(points):
        chance = random.Random(f"{number} {noisy.qemu}")
        folder = tmp_path / str(number)
        folder.mkdir()
        with monitored(folder, noisy, qmp_folder, "--throttle", chance.choice(["8M", "30M", "100M"])) as (lazy, qmp):
            resume = [*statepipe_command(), "load", "--resume", "--qmp", own_monitor(lazy), str(noisy.file)]
            time.sleep(chance.uniform(0, 1.2))
            lazy.signal(signal.SIGKILL)
            lazy.status()
            while True:
                lazy.restart([*resume, "--throttle", "20M"])
                time.sleep(chance.uniform(0, 1.5))
                if chance.random() < 0.5:
                    break
                lazy.signal(signal.SIGKILL)
                lazy.status()
            status = lazy.status()
            if status == 0 or lazy.ticks():  # or all was loaded before the kill, and is compared as well
                assert_went_on(noisy, lazy)
                assert unchanging(memory_at(qmp, folder / "memory")) == expected, f"point {number}"
                (folder / "memory").unlink()
                outcomes["continued"] += 1
            else:
                end_qemu(folder)  # killed before the keeper began, it leaves a QEMU that waits, paused
                assert not lazy.ticks()
                outcomes["never ran"] += 1
        print(f"point {number}: {outcomes}", flush=True)


def own_monitor(lazy: Lazy) -> str:
    return f"{os.environ['XDG_RUNTIME_DIR']}/statepipe/load-{lazy.pid}.qmp"
