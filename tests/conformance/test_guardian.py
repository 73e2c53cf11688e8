"""When the guardian acts, and on what it was told. A program that sleeps stands for the QEMU it is to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import sys
import os
from statepipe.recovery.guardian import Guardian
from statepipe.errors import StatepipeError
pid, *steps = sys.argv[1:]
with Guardian([sys.executable, "-P", "-m", "statepipe.cli.guarding", "test", "destination"]) as guardian:
    for step in steps:
        if step == "settle":
            guardian.settle()
        elif step == "fail":
            raise ArithmeticError("a bug")
        elif step == "give up":
            raise StatepipeError("foreseen")
        elif step == "leave":
            guardian.leave()
        elif step == "large":
            guardian.note({"side": "destination", "guest": {"name": "x" * 300_000}})
        else:
            process = os.pidfd_open(int(pid))
            guardian.note({"pid": int(pid)}, {"pidfd": process})
            os.close(process)
            guardian.note({"state": step, "runs": True, "peer": "y" * 300_000})
"""

DONE = "the QEMU that waited here for the guest is ended"
ENDED = f"statepipe: test: warning: statepipe ended unexpectedly: {DONE}"
LEFT = f"statepipe: test: warning: statepipe left the rest to its guardian: {DONE}"


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
    "steps",
    [("ANSWERING", "fail"), ("WAITING", "fail"), ("large", "INCOMING", "fail"), ("WAITING", "ENDED", "fail")],
    ids=" ".join,
)
def test_it_acts_where_statepipe_broke_off(sleeper: subprocess.Popen[bytes], steps: tuple[str, ...]) -> None:
    """However much the other host had to say of its guest."""
    assert run(sleeper.pid, *steps).startswith(f"{ENDED}\n")
    assert sleeper.wait(60) == -9


@pytest.mark.parametrize("last", ["give up", "leave"])
def test_what_statepipe_left_to_it_is_not_called_unexpected(sleeper: subprocess.Popen[bytes], last: str) -> None:
    """It has reported a failure that it foresaw, or did not wait for a QEMU that was silent."""
    said = run(sleeper.pid, "WAITING", last, *(["fail"] if last == "leave" else []))
    assert sleeper.wait(60) == -9
    assert LEFT in said.splitlines() and "unexpectedly" not in said


@pytest.mark.parametrize("steps", [("WAITING",), ("WAITING", "settle", "fail"), ("fail",)], ids=" ".join)
def test_it_does_nothing_where_all_was_settled_or_nothing_begun(
    sleeper: subprocess.Popen[bytes], steps: tuple[str, ...]
) -> None:
    assert ENDED not in run(sleeper.pid, *steps)
    assert sleeper.poll() is None


def test_a_qemu_that_has_ended_already_is_said_to_have(sleeper: subprocess.Popen[bytes]) -> None:
    """Its process is not reaped yet, so its number is still its own."""
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert run(sleeper.pid, "WAITING", "fail").startswith(f"{ENDED}\n")


def test_a_qemu_that_is_killed_is_seen_to_have_ended(sleeper: subprocess.Popen[bytes]) -> None:
    """Also where it was stopped."""
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert run(sleeper.pid, "WAITING", "fail").startswith(f"{ENDED}\n")
    assert os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


THREADS = """
import os, sys, threading
from statepipe.recovery.guardian import Guardian
go = threading.Event()
threading.Thread(target=go.wait).start()
with open("/dev/null") as ours:
    os.set_inheritable(ours.fileno(), True)
    with Guardian([sys.executable, "-c", sys.argv[1]]) as guardian:
        guardian.note({"state": "INCOMING", "over": True})
go.set()
"""

ITSELF = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as ours:
    ours.recv(1 << 16)
    fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    print(os.getsid(0) == os.getpid(), len(os.listdir("/proc/self/task")), len(fds), file=sys.stderr)
"""


def test_it_is_a_program_of_its_own_with_nothing_of_ours() -> None:
    """A session of its own, one thread, and three descriptors beside its socket, whatever threads we have."""
    command = [sys.executable, "-P", "-c", THREADS, ITSELF]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.stderr == "True 1 4\n"
