"""load --lazy that is paused, slowed and killed at random: the guest counts on, and no page of its memory is wrong."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.qemu.harness import Qmp, run_statepipe, statepipe_command, wait_for
from tests.qemu.lazily import Lazy, assert_went_on, marks, pids_with
from tests.qemu.loading import MEMORY, Saved, loaded

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


ENDED, LACKING, COMPLETE = "QEMU ended", "memory lacking", "memory complete"


def seen_after_kill(lazy: Lazy, qmp: Path, runtime: Path) -> str:
    """Which case a kill has made, by QEMU's process, its monitor, and the socket at which the keeper has it listen.

    A QEMU that has lost its connection, and does not listen yet, may still be ended by the keeper: its guest has not
    run then.
    """

    def look() -> str | None:
        if not pids_with(f"{lazy.folder}/pid"):
            return ENDED
        try:
            monitor = Qmp(qmp, 2)
        except TimeoutError:  # its main loop waits for a page
            return LACKING if list(runtime.glob("resume-*")) else None
        except OSError:  # it starts, or ends
            return None
        try:
            status = monitor.execute("query-migrate").get("status")
        except TimeoutError:
            status = "postcopy-paused"
        except OSError:
            return None
        finally:
            monitor.close()
        if status == "postcopy-paused":
            return LACKING if list(runtime.glob("resume-*")) else None
        return COMPLETE if status == "completed" else None

    return wait_for("end of QEMU, or guest in it", look, 20)


def kill_at_random(lazy: Lazy, chance: random.Random, *, resumed: bool = False) -> int:
    """From its first instant to some time after the last page; its status."""
    if resumed or chance.random() < 0.6:
        time.sleep(chance.uniform(0, chance.choice([0.3, 1.5])))
    else:
        lazy.here()
        time.sleep(chance.uniform(0, 0.5))
    lazy.signal(signal.SIGKILL)
    return lazy.status()


def assert_never_ran(lazy: Lazy, runtime: Path, resume: list[str]) -> None:
    """QEMU and its keeper are gone, and nothing can be continued."""
    assert not lazy.ticks()
    wait_for("end of the keeper", lambda: not pids_with(str(runtime)))
    done = run_statepipe(*resume)
    assert done.returncode == 6, done.stderr


def assert_nothing_left(lazy: Lazy, resume: list[str], said: str) -> None:
    """--resume says so; if the load had removed its monitor's socket, it had said that all memory is loaded."""
    is_there = Path(resume[resume.index("--qmp") + 1]).exists()
    done = run_statepipe(*resume)
    assert "nothing is left to continue" in done.stderr, done.stderr
    if is_there:
        assert done.returncode == 0 and "the guest is running" in done.stderr, done.stderr
    else:
        assert done.returncode == 6 and "all memory is loaded" in said, done.stderr + said


def assert_nothing_stays(qmp: Path) -> None:
    """The guest runs, QEMU has its settings of before, and no object of ours."""
    monitor = Qmp(qmp, 60)
    try:
        assert monitor.execute("query-status")["status"] == "running"
        states = {row["capability"]: row["state"] for row in monitor.execute("query-migrate-capabilities")}
        assert not states["postcopy-ram"] and not states["late-block-activate"]
        assert not marks(monitor.execute("qom-list", path="/objects"))
    finally:
        monitor.close()


@pytest.mark.parametrize("points", [3, pytest.param(50, marks=pytest.mark.faults)])
def test_kills_at_random_points(tmp_path: Path, qmp_folder: Path, runtime: Path, noisy: Saved, points: int) -> None:
    """Of the first statepipe and of those that continue: each case is seen, and keeps what it promises."""
    expected = ordinary_memory(tmp_path / "ordinary", noisy)
    outcomes: Counter[str] = Counter()
    for number in range(points):
        chance = random.Random(f"{number} {noisy.qemu}")
        folder = tmp_path / str(number)
        folder.mkdir()
        with monitored(folder, noisy, qmp_folder, "--throttle", chance.choice(["8M", "100M", "1G"])) as (lazy, qmp):
            resume = ["load", "--resume", "--qmp", f"{runtime}/load-{lazy.pid}.qmp", str(noisy.file)]
            kill_at_random(lazy, chance)
            case, status = seen_after_kill(lazy, qmp, runtime), -signal.SIGKILL
            outcomes[case] += 1
            while case is LACKING and status:
                lazy.restart([*statepipe_command(), *resume, "--throttle", "20M"])
                status = kill_at_random(lazy, chance, resumed=True) if chance.random() < 0.5 else lazy.status()
                assert status in (0, -signal.SIGKILL), lazy.stderr()
                if status:
                    case = seen_after_kill(lazy, qmp, runtime)
                    outcomes[f"{case} after a kill of --resume"] += 1
                    assert case is not ENDED, lazy.stderr()
            if case is ENDED:
                assert_never_ran(lazy, runtime, resume)
            else:
                if case is COMPLETE:
                    assert_nothing_left(lazy, resume, lazy.stderr())
                assert_went_on(noisy, lazy)
                assert_nothing_stays(qmp)
                assert unchanging(memory_at(qmp, folder / "memory")) == expected, f"point {number}"
                (folder / "memory").unlink()
        print(f"point {number}: {case}; all: {dict(outcomes)}", flush=True)
