"""When the guardian acts, and on what it was told. A program that sleeps stands for the QEMU it is to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import sys
from statepipe.commands.guardian import Guardian, recover_destination
from statepipe.errors import StatepipeError
def last_word(act):
    print(act(), file=sys.stderr, flush=True)
pid, *steps = sys.argv[1:]
with Guardian(recover_destination, last_word) as guardian:
    for step in steps:
        if step == "settle":
            guardian.settle()
        elif step == "fail":
            raise StatepipeError("foreseen")
        elif step == "large":
            guardian.note({"side": "destination", "guest": {"name": "x" * 300_000}})
        else:
            guardian.note({"pid": int(pid)})
            guardian.note({"state": step, "runs": True, "peer": "y" * 300_000})
"""

ENDED = "the QEMU that waited here for the guest is ended"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def run(pid: int, *steps: str) -> str:
    """What the guardian said, and the traceback after it."""
    command = [sys.executable, "-c", SCRIPT, str(pid), *steps]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize(
    "steps", [("WAITING", "fail"), ("large", "INCOMING", "fail"), ("WAITING", "ENDED", "fail")], ids=" ".join
)
def test_it_acts_where_statepipe_broke_off(sleeper: subprocess.Popen[bytes], steps: tuple[str, ...]) -> None:
    """However much the other host had to say of its guest."""
    assert run(sleeper.pid, *steps).startswith(f"{ENDED}\n")
    assert sleeper.wait(60) == -9


@pytest.mark.parametrize("steps", [("WAITING",), ("WAITING", "settle", "fail"), ("fail",)], ids=" ".join)
def test_it_does_nothing_where_all_was_settled_or_nothing_begun(
    sleeper: subprocess.Popen[bytes], steps: tuple[str, ...]
) -> None:
    assert ENDED not in run(sleeper.pid, *steps)
    assert sleeper.poll() is None


def test_a_qemu_that_has_ended_already_need_not_be_ended(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert run(sleeper.pid, "WAITING", "fail").startswith(f"{ENDED}\n")
