"""A signal while something answers late: one guest runs on, nothing false is said, and the printed hints make no two.

Late is a QEMU, its disk, the other statepipe or the network; it answers in the end. Whatever was said of a guest is
held against what the QEMUs themselves tell (sentences.py), and whoever follows the hints does so at the worst moment:
while all is still late.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest import parse_ticks
from tests.qemu import sentences
from tests.qemu.harness import assert_unbroken
from tests.qemu.late import SIDES, Case, Move, play, resolve, run_state, said, under_way
from tests.qemu.moving import Credentials
from tests.qemu.test_migrate_faults import TABLE

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


# --- a person


def follow_the_hints(it: Move) -> None:
    """Do what both have printed, to the letter, with what they have said of the guest taken for true."""
    for side in SIDES:
        for line in list(it.lines[side]):
            if "resolve --qmp" in line.text and " here" in line.text:
                follow(it, side, line.text)


def follow(it: Move, side: str, hint: str) -> None:
    """One hint that knows what to type on this side."""
    guest, other = it.guest(side), it.guest(SIDES[1 - SIDES.index(side)])
    if "if it runs" not in hint:
        resolve(guest, "here")
        return
    does = runs(it, SIDES[1 - SIDES.index(side)])
    if does:
        resolve(guest, "elsewhere")
    elif "end its QEMU there" in hint:
        done = resolve(other, "elsewhere")
        if done is None or "the guest runs here" not in done.stderr:
            it.kill_qemu(SIDES[1 - SIDES.index(side)])  # kill -9, where it does not answer
            resolve(guest, "here")
    elif does is False:
        resolve(guest, "here")


def runs(it: Move, side: str) -> bool | None:
    """Whether the guest runs on that host, as far as a person can tell; None: nobody answers."""
    text = "\n".join(line.text for line in it.lines[side])
    if "never ran" in text or it.guest(side).ended():
        return False
    looked = resolve(it.guest(side), seconds=5.0)
    return None if looked is None or looked.returncode else "its guest runs here" in looked.stdout


# --- what must be so


def judge(it: Move) -> str:
    """One guest ticks on and no tick was missed or doubled, whoever had to say where; what it was."""
    try:
        sentences.check(it)
        settled = settle(it)
        here = it.guest(settled.split()[0])
        here.wait_ticks(3)
        there = it.source if here is it.target else it.target
        silent = there.serial()
        here.wait_ticks(3)
        assert there.serial() == silent, "two guests tick"
        if it.killed:  # what it had run meanwhile is lost with it
            assert_unbroken(it.source.ticks())
        else:
            assert_unbroken(parse_ticks(it.source.serial() + it.target.serial()))
        assert_never_two(it)
    except AssertionError as error:
        raise AssertionError(f"{error}{said(it)}") from error
    return settled


def assert_never_two(it: Move) -> None:
    """At no change that a QEMU told of. There is none where a migration is undone before the guest is stopped: `settle`
    asks both QEMUs in the end."""
    histories = it.look_back()
    for at, _ in [change for history in histories.values() for change in history.changes]:
        assert not all(history.ran(at) for history in histories.values()), f"two guests ran at {at}"


def settle(it: Move) -> str:
    """The side whose guest runs. Where it stands still on both, a person was told so, ends one and runs the other."""
    states = {side: run_state(it.guest(side)) for side in SIDES}
    running = [side for side, state in states.items() if state == "running"]
    assert len(running) < 2, f"two guests: {states}"
    if running:
        return running[0]
    assert states["migrate"] is not None, f"the guest is lost: {states}"
    assert any("statepipe resolve" in line.text for lines in it.lines.values() for line in lines), f"no hint: {states}"
    if states["receive"] is not None:
        ended = resolve(it.target, "elsewhere")
        assert ended is not None and ended.returncode == 0, ended
        it.target.wait()
    done = resolve(it.source, "here")
    assert done is not None and done.returncode == 0, done
    return "migrate (resolved)"


# --- the cases

SINCE: dict[tuple[str, str, str], tuple[str, str] | None] = {
    ("receive", "WAITING", "qemu here"): ("migrate", "HANDED|ACCEPTED"),
    ("receive", "STARTING", "qemu here"): ("receive", "WAITING"),
    ("receive", "STARTING", "disk here"): ("receive", "INCOMING"),
    ("receive", "RUNS", "disk here"): ("receive", "RUNS"),
    ("migrate", "HANDING", "qemu here"): ("migrate", "HANDING"),
    ("migrate", "HANDING", "disk here"): ("migrate", "HANDING"),
    ("migrate", "HANDED", "qemu there"): ("migrate", "HANDING"),
    ("migrate", "HANDED", "disk here"): ("migrate", "HANDING"),
    ("migrate", "COMMITTED", "qemu there"): ("receive", "WAITING"),
    ("migrate", "COMMITTED", "disk there"): ("receive", "INCOMING"),
}
"""From when on it has to be late, to be so in that state. No disk of a QEMU that waits is read before `cont`."""

STATES: dict[str, tuple[tuple[str, ...], ...]] = {
    "receive": (("INCOMING",), ("WAITING",), ("STARTING",), ("RUNS",)),
    "migrate": (("PRECOPY",), ("PROMISED",), ("HANDING",), ("HANDED", "ACCEPTED"), ("CANCELLING",), ("COMMITTED",)),
}

LATE = ("qemu here", "disk here", "qemu there", "disk there", "peer", "link")


def case(
    side: str,
    states: tuple[str, ...],
    late: str,
    number: signal.Signals,
    after: float,
    hold: float,
    *,
    own: bool = False,
) -> Case:
    since = SINCE.get((side, states[0], late)) or (side, "|".join(states))
    before = "receive" if states == ("CANCELLING",) and late != "peer" else None
    if before:
        since = ("migrate", "PRECOPY")
    return Case(side, states, late, since, number, after, hold, before, own)


SAMPLE = [
    case("receive", ("STARTING",), "disk here", TERM, 0.1, 3.0),
    case("receive", ("STARTING",), "qemu here", TERM, 0.1, 3.0),
    case("receive", ("STARTING",), "disk here", INT, 0.1, 3.0, own=True),
    case("receive", ("WAITING",), "qemu here", TERM, 0.0, 8.0),
    case("receive", ("INCOMING",), "qemu here", INT, 0.0, 8.0),
    case("migrate", ("COMMITTED",), "disk there", TERM, 0.1, 8.0),
    case("migrate", ("COMMITTED",), "qemu there", INT, 0.1, 3.0),
    case("migrate", ("COMMITTED",), "peer", TERM, 0.0, 1.5),
    case("migrate", ("COMMITTED",), "disk there", KILL, 0.0, 2.5),
    case("migrate", ("HANDING",), "disk here", TERM, 0.0, 1.5),
    case("migrate", ("PRECOPY",), "qemu here", TERM, 0.1, 1.5),
    case("migrate", ("PROMISED",), "link", TERM, 0.0, 1.5),
]


@pytest.mark.parametrize("each", SAMPLE, ids=lambda each: each.name)
def test_one_guest_runs_on_and_nothing_false_is_said(
    tmp_path: Path, qemu72: str, credentials: Credentials, each: Case
) -> None:
    with under_way(tmp_path, qemu72, credentials, own=each.own) as it:
        play(it, each, follow_the_hints)
        judge(it)


def signal_while_it_starts(it: Move) -> None:
    """To a `receive` whose QEMU was told to run the guest, and says late that it does."""
    it.delay("disk here", "receive")
    assert it.steps["receive"].wait("STARTING")
    it.running["receive"].send(TERM)
    it.running["receive"].wait_said("was told to run the guest and has not answered")
    it.answer()
    it.running["receive"].wait_said("here it is running")
    it.target.wait_ticks(3)
    assert it.running["migrate"].wait() == 0, said(it)


def test_a_signal_that_came_too_late_leaves_the_next_one_to_qemu(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """A `receive` that stays with its QEMU can be ended still, and QEMU with it."""
    with under_way(tmp_path, qemu72, credentials, own=True, how=()) as it:
        signal_while_it_starts(it)
        it.running["receive"].send(TERM)
        assert it.running["receive"].wait() == 0, said(it)
        assert it.target.ended()


def test_a_signal_that_came_too_late_for_a_guest_ends_the_service(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with under_way(tmp_path, qemu72, credentials, own=True, how=("--serve", "2")) as it:
        signal_while_it_starts(it)
        assert it.running["receive"].wait() == 143, said(it)
        it.target.wait_ticks(3)


ROOT = Path(__file__).resolve().parents[2]

CRITICAL = [SAMPLE[0], SAMPLE[5]]
"""Where each Python's own way to end a wait decides."""


OTHERS = [each for each in ("3.11", "3.12", "3.13", "3.14") if each != f"{sys.version_info[0]}.{sys.version_info[1]}"]
"""The Pythons that the other tests do not run under."""


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("each", CRITICAL, ids=lambda each: each.name)
def test_under_every_other_python(
    tmp_path: Path,
    qemu72: str,
    credentials: Credentials,
    monkeypatch: pytest.MonkeyPatch,
    each: Case,
    version: str,
) -> None:
    """With 3.9 to 3.12, a signal that interrupts Thread.join() has the thread taken for one that ended."""
    found = subprocess.run([ROOT / "tools" / "python", version], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no Python {version}: {found.stderr.strip().splitlines()[-1:]}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = [found.stdout.strip(), "-P", "-m", "statepipe"]
    with under_way(tmp_path, qemu72, credentials, program=program) as it:
        play(it, each, follow_the_hints)
        judge(it)


SIGNALS = ((TERM, 0.0, 1.0), (INT, 0.02, 2.5), (TERM, 0.15, 7.0), (KILL, 0.0, 2.5))
"""Which, how long after the state was told, and how long all is late then."""

CASES = [
    *(
        case(side, states, late, *each)
        for side in SIDES
        for states, late, each in itertools.product(STATES[side], LATE, SIGNALS)
    ),
    *(
        case("receive", states, late, *each, own=True)
        for states, late, each in itertools.product(STATES["receive"], ("qemu here", "disk here"), SIGNALS)
    ),
]
"""272."""


@pytest.mark.faults
@pytest.mark.parametrize("each", CASES, ids=lambda each: each.name)
def test_in_every_state(tmp_path: Path, qemu72: str, credentials: Credentials, each: Case) -> None:
    with under_way(tmp_path, qemu72, credentials, own=each.own) as it:
        state = play(it, each, follow_the_hints)
        note(each, state, judge(it))


def note(each: Case, state: str, outcome: str) -> None:
    """A row for the table that stands at the end of a run of these tests."""
    if path := os.environ.get(TABLE):
        with open(path, "a") as table:
            table.write(
                f"{each.side:>10} {each.states[0]:10} {each.late:10} {each.number.name} {each.after * 1000:4.0f} ms "
                f"{each.hold:3.1f} s late  in {state:10} {outcome}\n"
            )
