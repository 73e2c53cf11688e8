"""A migration at whose points something breaks: one guest runs on, or both stand still and `resolve` says what to type.

Points lie along the stream, by the bytes that have crossed the network, and at each step of the protocol, as soon as it
is written down and some milliseconds later. Whatever is killed is killed with SIGKILL. Never do two guests tick, and
never is one lost while a QEMU that held it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest import parse_ticks
from tests.net.relay import Faults, Relay, relay
from tests.qemu.harness import Guest, assert_unbroken, run_statepipe
from tests.qemu.moving import Credentials, Running, mover, receiver

RETRY = ("--retry", "3")
"""Seconds without a link: so soon is a lost one given up here."""

SIZE = 12 << 20
"""Bytes that a guest of 128 MB sends, about; it dirties 2 MB at a time."""


class Move:
    """A guest on its way through a relay, and what breaks it."""

    def __init__(
        self, disks: Path, source: Guest, target: Guest, rail: Relay, moving: Running, receiving: Running
    ) -> None:
        self.disks, self.source, self.target, self.rail = disks, source, target, rail
        self.moving, self.receiving = moving, receiving

    def kill_source_statepipe(self) -> None:
        self.moving.send(signal.SIGKILL)

    def kill_target_statepipe(self) -> None:
        self.receiving.send(signal.SIGKILL)

    def kill_target_qemu(self) -> None:
        self.target.kill()
        self.target.wait()  # until then it may look alive

    def kill_source_qemu(self) -> None:
        self.source.kill()
        self.source.wait()

    def black_hole(self) -> None:
        self.rail.faults.clear.clear()

    def interrupt(self) -> None:
        self.moving.send(signal.SIGINT)

    def fail_a_stage(self) -> None:
        """The disk that `tee` writes to is full: it fails the whole."""
        fill(self.disks / "copy")

    def fill_the_disk(self) -> None:
        """That of both journals."""
        fill(self.disks / "journals")


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(1 << 16)):
            continue


FAULTS = [
    Move.kill_source_statepipe,
    Move.kill_target_statepipe,
    Move.kill_target_qemu,
    Move.black_hole,
    Move.interrupt,
    Move.fail_a_stage,
    Move.fill_the_disk,
]

Point = tuple[str | int, float]
"""A state of the source, or a number of bytes; and seconds after it."""


def at(point: Point, rail: Relay, steps: int, fault: Callable[[], None], over: threading.Event) -> threading.Thread:
    """Break something once the point is reached. `steps` is where the source tells its steps."""
    where, later = point

    def wait() -> None:
        with os.fdopen(steps, "rb") as lines:
            if isinstance(where, int):
                while rail.bytes < where and not over.wait(0.001):
                    continue
            else:
                for line in lines:
                    if json.loads(line).get("step", {}).get("state") == where:
                        break
                else:
                    return  # it went another way
            over.wait(later)
            fault()
            for _ in lines:
                continue

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def disks(tmp_path: Path, small_disk: Callable[[int], Path]) -> Path:
    """A folder with two small disks: one that holds a copy of the stream, one for journals."""
    folder = tmp_path / "disks"
    folder.mkdir()
    (folder / "copy").symlink_to(small_disk(96 << 20))
    (folder / "journals").symlink_to(small_disk(64 << 10))
    return folder


@contextlib.contextmanager
def move(
    disks: Path, qemu: str, credentials: Credentials, point: Point, fault: Callable[[Move], None]
) -> Iterator[Move]:
    """A migration that is over, however it ended."""
    folder = disks.parent
    reading, writing = os.pipe()
    over = threading.Event()
    with (
        Guest(folder, qemu=qemu, dirty=2) as source,
        Guest(folder, qemu=qemu, image=source.image, incoming="defer", args=["-S"]) as target,
        contextlib.ExitStack() as stack,
    ):
        source.wait_ticks(3)
        receiving, port = receiver(
            credentials, *RETRY, "--journal", disks / "journals" / "target", "--qmp", target.socket
        )
        stack.enter_context(receiving)
        rail = stack.enter_context(relay(port, Faults()))
        words = ("--downtime-limit", "2000", "--status-fd", writing, "--journal", disks / "journals" / "source")
        words = (*RETRY, *words, f"tee:{disks}/copy/stream")
        moving = stack.enter_context(mover(credentials, source, rail.port, *words, pass_fds=[writing]))
        os.close(writing)
        it = Move(disks, source, target, rail, moving, receiving)
        thread = at(point, rail, reading, lambda: fault(it), over)
        stack.callback(thread.join)
        stack.callback(over.set)
        moving.wait()
        receiving.wait()
        yield it


def judge(it: Move) -> str:
    """Exactly one guest ticks, on; or both stand still, and `resolve` tells what settles it. What it was.

    The statepipes are over, and with them their guardians, which hold their standard error: nothing more happens.
    """
    states = {name: None if guest.ended() else guest.run_state() for name, guest in guests(it).items()}
    if it.target.ended() and it.target.ticks():  # killed after it had moved: a crash like any other
        assert states == {"source": "postmigrate", "target": None}
        return "moved, then killed"
    running = [name for name, state in states.items() if state == "running"]
    assert len(running) < 2, states
    outcome = running[0] if running else settle(it, states)
    here = it.target if outcome == "target" else it.source
    here.wait_ticks(3)
    silent = guests(it)["source" if here is it.target else "target"].serial()
    here.wait_ticks(3)
    assert guests(it)["source" if here is it.target else "target"].serial() == silent, "two guests tick"
    assert_unbroken(parse_ticks(it.source.serial() + it.target.serial()))
    return outcome if running else "resolved"


def guests(it: Move) -> dict[str, Guest]:
    return {"source": it.source, "target": it.target}


def settle(it: Move, states: dict[str, str | None]) -> str:
    """Both stand still: a person is told what to type, and it works. Which of them runs the guest then."""
    holders = [name for name, state in states.items() if state in ("postmigrate", "paused", "prelaunch")]
    assert holders, f"the guest is lost: {states}, {it.moving.said}, {it.receiving.said}"
    holder = guests(it)[holders[0]]
    looked = run_statepipe("resolve", "--qmp", holder.socket)
    assert looked.returncode == 0 and f"resolve --qmp {holder.socket} here" in looked.stdout, looked
    done = run_statepipe("resolve", "--qmp", holder.socket, "here")
    assert done.returncode == 0, done.stderr
    return holders[0]


TABLE = "STATEPIPE_FAULTS_TABLE"
"""Names the file that the outcomes are written to; `make faults` shows it."""

STEPS = ("PROMISED", "HANDING", "COMMITTED", "MOVED")


SAMPLE: list[tuple[Point, Callable[[Move], None]]] = [
    *(((SIZE // 2, 0.0), fault) for fault in (Move.kill_source_statepipe, Move.kill_target_qemu, Move.interrupt)),
    *((("HANDING", 0.0), fault) for fault in (Move.kill_source_statepipe, Move.kill_target_qemu, Move.black_hole)),
    *((("COMMITTED", 0.0), fault) for fault in (Move.kill_source_statepipe, Move.kill_target_statepipe)),
    ((SIZE // 2, 0.0), Move.fail_a_stage),
    ((SIZE // 4, 0.0), Move.fill_the_disk),
]
"""What takes least time and has most to say: a black hole takes twelve seconds to be sure of."""


@pytest.mark.parametrize(("point", "fault"), SAMPLE, ids=lambda each: getattr(each, "__name__", None))
def test_one_guest_runs_on(
    disks: Path, qemu72: str, credentials: Credentials, point: Point, fault: Callable[[Move], None]
) -> None:
    with move(disks, qemu72, credentials, point, fault) as it:
        judge(it)


POINTS: list[Point] = [
    *((SIZE * number // 30, 0.0) for number in range(1, 31)),
    *((step, later / 1000) for step in STEPS for later in (0, 1, 2, 4, 8, 16, 32, 64)),
]
"""Sixty-two."""


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[0]}+{point[1] * 1000:g}ms")
def test_at_every_point(
    disks: Path, qemu72: str, credentials: Credentials, point: Point, fault: Callable[[Move], None]
) -> None:
    with move(disks, qemu72, credentials, point, fault) as it:
        note(point, fault, judge(it))


def note(point: Point, fault: Callable[[Move], None], outcome: str) -> None:
    """A row for the table that stands at the end of a run of these tests."""
    if path := os.environ.get(TABLE):
        with open(path, "a") as table:
            table.write(f"{point[0]:>10} {point[1] * 1000:4.0f} ms  {fault.__name__:24} {outcome}\n")
