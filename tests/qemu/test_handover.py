"""The two halves of a migration between real QEMUs: one guest, on one side, whatever is done to them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import PeerError, QemuGone, StatepipeError
from statepipe.migration.destination import CAPABILITIES as ARRIVING
from statepipe.migration.destination import Arrival
from statepipe.migration.peer import Peer
from statepipe.migration.source import CAPABILITIES as DEPARTING
from statepipe.migration.source import Departure
from statepipe.pipeline.signals import as_exceptions
from statepipe.qemu.monitor import Monitor
from statepipe.recovery.handover import Destination, Event, Source
from statepipe.recovery.handover import destination as destination_side
from statepipe.recovery.handover import source as source_side
from statepipe.recovery.journal import Journal
from statepipe.session.session import Timing
from tests.guest import parse_ticks, write_image
from tests.net.relay import Relay
from tests.qemu.harness import Guest, assert_unbroken
from tests.qemu.peers import QUICK, two_ends


def prepare(monitor: Monitor, wanted: tuple[str, ...], **parameters: Any) -> None:
    capabilities = [{"capability": name, "state": True} for name in wanted]
    monitor.execute("migrate-set-capabilities", capabilities=capabilities)
    monitor.execute("migrate-set-parameters", **({"max_bandwidth": 0} | parameters))


class Pair:
    """A guest that runs on one QEMU, one that waits for it, and both halves of the migration between them."""

    def __init__(self, source: Guest, target: Guest, ends: tuple[Peer, Peer, Relay]) -> None:
        self.source, self.target = source, target
        self.network = ends[2]
        self.steps: list[str] = []
        self.faults: dict[str, Callable[[Pair], None]] = {}
        self.watching: list[Callable[[str], object]] = []  # hear of each step of the source, after its fault
        self.monitors = [Monitor(guest.socket) for guest in (source, target)]
        prepare(self.monitors[0], DEPARTING, downtime_limit=2000)
        prepare(self.monitors[1], ARRIVING)
        departing, arriving = source_side(), destination_side()
        departing.hear(Event.ANSWER)  # the hosts have agreed
        for event in (Event.OFFER, Event.BEGIN):
            arriving.hear(event)
        journal = Journal(None, {}, (self._note,))
        self.departure = Departure(self.monitors[0], ends[0], [], journal, side=departing, was="running")
        there = Journal(None, {}, (self._note_there,))
        self.arrival = Arrival(self.monitors[1], ends[1], [], there, self._end, side=arriving, runs=True)

    def _note(self, facts: dict[str, Any]) -> None:
        if "state" in facts:
            self.steps.append(facts["state"])
            self.at(facts["state"])
            for hear in self.watching:
                hear(facts["state"])

    def _note_there(self, facts: dict[str, Any]) -> None:
        if "state" in facts:
            self.at(f"there: {facts['state']}")

    def at(self, state: str) -> None:
        """The fault that a test wants at this step of the source, once."""
        if fault := self.faults.pop(state, None):
            fault(self)

    def _end(self) -> None:
        self.target.kill()

    def run(self) -> tuple[Source, Destination]:
        there: list[Destination] = []
        self.departure.peer.tell({"event": "ASK"})
        thread = threading.Thread(target=lambda: there.append(self.arrival.run()))
        thread.start()
        here = self.departure.run()
        thread.join(60)
        assert not thread.is_alive()
        return here, there[0]


@pytest.fixture
def pair(tmp_path: Path, qemu72: str) -> Iterator[Pair]:
    with paired(tmp_path, qemu72, "-S") as both:
        yield both


@contextmanager
def paired(folder: Path, qemu: str, *flags: str, image: Path | None = None, timing: Timing = QUICK) -> Iterator[Pair]:
    """Two QEMUs; `flags` are those of the one that waits, `image` is its disk if they do not share one."""
    with (
        two_ends(timing) as ends,
        Guest(folder, qemu=qemu, dirty=2) as source,
        Guest(folder, qemu=qemu, image=image or source.image, incoming="defer", args=flags) as target,
    ):
        source.wait_ticks(3)
        both = Pair(source, target, ends)
        try:
            yield both
        finally:
            for monitor in both.monitors:
                monitor.close()


def test_the_guest_goes_on_over_there(tmp_path: Path, qemu: str) -> None:
    with paired(tmp_path, qemu, "-S") as both:
        assert both.run() == (Source.MOVED, Destination.RUNS)
        assert both.departure.cause is None
        ways = (["HANDING", "HANDED"], ["HANDING", "ACCEPTED"])
        asked = (["PROMISED"], ["ASKED"])  # the second if QEMU was faster than the answer
        assert both.steps in [["PRECOPY", *word, *way, "COMMITTED", "MOVED"] for word in asked for way in ways]
        assert_one_runs(both, both.target, both.source)


def test_a_guest_that_another_migration_has_given_away_is_not_run_here_again(pair: Pair) -> None:
    """QEMU refuses ours, so what has become of its guest is none of our doing, and not ours to undo."""
    monitor = pair.monitors[0]
    off = [{"capability": name, "state": False} for name in DEPARTING if name != "events"]
    monitor.execute("migrate-set-capabilities", capabilities=off)
    monitor.execute("migrate", uri="exec:cat >/dev/null")
    assert monitor.migration_outcome()["status"] == "completed"
    prepare(monitor, DEPARTING)
    before = pair.source.serial()
    assert pair.run() == (Source.KEPT, Destination.ENDED)
    assert "refused migrate" in str(pair.departure.cause)
    assert monitor.run_state() == "postmigrate" and pair.source.serial() == before


def test_a_qemu_that_was_not_told_to_wait_waits_for_the_word_all_the_same(tmp_path: Path, qemu: str) -> None:
    """Without -S, QEMU would run a guest as soon as it has it: and then the source may still take it back."""
    with paired(tmp_path, qemu) as both:
        seen: list[object] = []
        both.faults["COMMITTED"] = lambda both: seen.extend((both.target.run_state(), both.target.ticks()))
        assert both.run() == (Source.MOVED, Destination.RUNS)
        assert seen == ["paused", []]
        assert_one_runs(both, both.target, both.source)


def test_a_guest_that_somebody_else_has_run_too_early_is_not_said_never_to_have_run(
    tmp_path: Path, qemu72: str
) -> None:
    write_image(tmp_path / "apart.img", 24, 2)  # QEMU locks those that are shared, and refuses
    with paired(tmp_path, qemu72, image=tmp_path / "apart.img") as both:
        both.faults["HANDING"] = lambda both: both.target.qmp("cont")  # which QEMU keeps for when the guest is there
        assert both.run() == (Source.UNDECIDED, Destination.UNSURE)
        assert both.arrival.ran and both.target.wait() is not None
        assert "ran here before the source allowed it" in str(both.departure.cause)
        silent = both.source.serial()
        assert both.source.run_state() == "postmigrate" and both.source.serial() == silent, "a person decides"


def test_the_guest_stands_still_for_three_ways_of_the_network(tmp_path: Path, qemu: str) -> None:
    """Its last bytes go there, ACCEPTED comes back, GO goes there. It runs by the time of RUNNING."""
    with paired(tmp_path, qemu, "-S") as both:
        asked_in_time(both)
        story: list[str] = []
        record(both.departure.peer, "source says", story)
        record(both.arrival.peer, "destination says", story)
        both.watching.append(story.append)
        both.faults["there: RUNS"] = lambda both: story.append(f"there it is {both.target.run_state()}")
        assert both.run() == (Source.MOVED, Destination.RUNS)
        before, still = story[: story.index("HANDING")], story[story.index("HANDING") :]
        assert [words for words in before if " " in words] == ["source says ASK", "destination says READY"]
        assert before[-1] == "PROMISED"
        way = ["destination says ACCEPTED", "source says GO", "there it is running", "destination says RUNNING"]
        assert [words for words in still if " " in words] == way


def record(peer: Peer, who: str, story: list[str]) -> None:
    """Keep what this side tells the other."""
    tell = peer.tell

    def telling(message: dict[str, Any]) -> None:
        story.append(f"{who} {message['event']}")
        tell(message)

    peer.tell = telling  # type: ignore[method-assign]


def assert_one_runs(both: Pair, here: Guest, not_there: Guest) -> None:
    """The guest ticks here and only here, and no tick was lost on the way."""
    here.wait_ticks(3)
    silent = not_there.serial()
    here.wait_ticks(3)
    assert not_there.serial() == silent
    assert_unbroken(parse_ticks(both.source.serial() + both.target.serial()))


def test_that_the_guest_runs_there_is_heard_once_the_link_is_back(
    tmp_path: Path, qemu72: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It broke off at the one moment when only the destination knows, for longer than it waits in every other end."""
    monkeypatch.setattr("statepipe.migration.coordinator.PARTING", 0.1)
    with paired(tmp_path, qemu72, "-S", timing=Timing(tick=0.2, limit=5, retry=60)) as both:

        def break_off(both: Pair) -> None:
            both.network.faults.clear.clear()
            both.network.cut()
            threading.Timer(2, both.network.faults.clear.set).start()

        both.faults["there: RUNS"] = break_off
        assert both.run() == (Source.MOVED, Destination.RUNS), both.departure.cause


def test_a_signal_once_all_is_decided_takes_no_word_of_it_away(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fall_silent = pair.departure.peer.fall_silent

    def signalled() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        fall_silent()

    monkeypatch.setattr(pair.departure.peer, "fall_silent", signalled)
    pair.faults["PRECOPY"] = cancel
    with as_exceptions():
        assert pair.run() == (Source.KEPT, Destination.ENDED)
    assert pair.departure.signal is not None and "a test wants it undone" in str(pair.departure.cause)
    assert_one_runs(pair, pair.source, pair.target)


STEPS = ("PRECOPY", "PROMISED", "ASKED", "HANDING", "HANDED", "ACCEPTED", "COMMITTED")


def asked_in_time(both: Pair) -> None:
    """READY is here before QEMU stops the guest: until then it sends so slowly that it cannot."""
    both.monitors[0].execute("migrate-set-parameters", max_bandwidth=1 << 20)

    def quickly(step: str) -> None:
        if step == "PROMISED":
            with suppress(QemuGone):  # the fault of this step was its end
                both.monitors[0].execute("migrate-set-parameters", max_bandwidth=0)

    both.watching.append(quickly)


def asked_late(both: Pair) -> None:
    """READY is late: QEMU has stopped the guest before."""
    stopped, tell = threading.Event(), both.arrival.peer.tell

    def late(message: dict[str, Any]) -> None:
        assert message.get("event") != "READY" or stopped.wait(60)
        tell(message)

    both.arrival.peer.tell = late  # type: ignore[method-assign]
    both.watching.append(lambda step: stopped.set() if step == "ASKED" else None)


def cancel(both: Pair) -> None:
    both.departure.put(Event.CANCEL, StatepipeError("a test wants it undone"))


def cut_link(both: Pair) -> None:
    """A black hole, for longer than either side waits."""
    both.network.faults.clear.clear()


def kill_source(both: Pair) -> None:
    both.source.kill()


def kill_target(both: Pair) -> None:
    both.target.kill()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", [cancel, cut_link, kill_target, kill_source])
def test_a_fault_at_a_step(pair: Pair, step: str, fault: Callable[[Pair], None]) -> None:
    """The fault comes when the step is written down and before anything is done about it."""
    pair.faults[step] = fault
    if step == "PROMISED":
        asked_in_time(pair)
    elif step == "ASKED":
        asked_late(pair)
    here, there = pair.run()
    if pair.faults:  # it went by the other of HANDED and ACCEPTED
        assert here is Source.MOVED and step in ("HANDED", "ACCEPTED")
    judge(pair, fault, here, there, gave_away="COMMITTED" in pair.steps)


def never_says(peer: Peer, event: str) -> None:
    """A destination that is there, and takes the stream, and never says this of what it was asked."""
    tell = peer.tell
    peer.tell = lambda message: None if message.get("event") == event else tell(message)  # type: ignore[method-assign]


@pytest.mark.parametrize("unsaid", ["READY", "ACCEPTED"])
def test_a_destination_that_says_nothing_does_not_hold_the_guest_still(pair: Pair, unsaid: str) -> None:
    """The link lives on, and is none the wiser."""
    never_says(pair.arrival.peer, unsaid)
    pair.departure.switchover = 2
    here, there = pair.run()
    assert (here, there) == (Source.KEPT, Destination.ENDED)
    assert str(pair.departure.cause).startswith("the switchover took longer than 2 s: the destination ")
    assert "stands still" not in str(pair.departure.cause)  # when it is told, it runs again
    assert_one_runs(pair, pair.source, pair.target)


@pytest.mark.parametrize("said", [{"event": []}, {"event": "GO"}, {"no": "event"}], ids=str)
def test_a_message_that_is_none_loses_the_other_side(pair: Pair, said: dict[str, Any]) -> None:
    """And whoever listened is not waited for: after GO nobody here knows what becomes of the guest."""
    pair.faults["COMMITTED"] = lambda both: both.arrival.peer.tell(said)
    here, there = pair.run()
    assert (here, there) == (Source.UNDECIDED, Destination.RUNS)
    assert isinstance(pair.departure.cause, PeerError)


def judge(pair: Pair, fault: Callable[[Pair], None], here: Source, there: Destination, *, gave_away: bool) -> None:
    if here is Source.MOVED:
        assert there is Destination.RUNS and gave_away
        assert_one_runs(pair, pair.target, pair.source)
    elif here is Source.KEPT:
        assert there is Destination.ENDED and pair.departure.cause is not None
        assert_one_runs(pair, pair.source, pair.target)
    elif here is Source.UNDECIDED:
        assert fault is cut_link or there is Destination.UNSURE  # it was told, and may have run
        assert pair.source.run_state() == "postmigrate"
    else:
        assert here is Source.DEAD and fault is kill_source and not gave_away
