"""The controller on simulated pipes: sources, cores, a kernel's buffer and a sink whose rate changes; no real time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statepipe.stages.levels import HOME, KNOWN, Controller, levels

MB = 1_000_000
FRAME = 1 << 20
PIPE = 1 << 20
LADDER = tuple(KNOWN)
FIXED = (-7, -5, -3, -1, 1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 17, 19)

Rates = Sequence[tuple[float, float]]
"""From which second on, how many bytes a second."""


@dataclass(frozen=True)
class World:
    """A machine and its data: `speed` and `gain` are factors on what was measured, the latter on the ratio's log."""

    sink: Rates
    workers: int = 2
    speed: float = 1.0
    gain: float = 1.0
    source: float = inf

    def rate(self, level: int) -> float:
        return KNOWN[level][0] * MB * self.speed

    def packed(self, level: int) -> int:
        return max(100, int(FRAME * KNOWN[level][1] ** -self.gain))

    def value(self, level: int, sink: float) -> float:
        """Plain bytes a second through the whole."""
        return min(self.workers * self.rate(level), sink * FRAME / self.packed(level), self.source)


@dataclass
class Pipe:
    """The kernel's buffer before the sink. A write returns when the rest of it has room."""

    rates: Rates
    now: float = 0.0
    held: float = 0.0

    def write(self, at: float, size: int) -> float:
        self._drain(at)
        self.held += size
        while self.held > PIPE:
            rate, until = self._segment()
            needed = (self.held - PIPE) / rate
            if self.now + needed <= until:
                self.held, self.now = PIPE, self.now + needed
            else:
                self._drain(until)
        return self.now

    def empty(self) -> float:
        while self.held > 0:
            rate, until = self._segment()
            self._drain(min(until, self.now + self.held / rate + 1e-9))
        return self.now

    def _drain(self, to: float) -> None:
        while self.now < to:
            rate, until = self._segment()
            stop = min(to, until)
            self.held = max(0.0, self.held - rate * (stop - self.now))
            self.now = stop

    def _segment(self) -> tuple[float, float]:
        rate = [rate for since, rate in self.rates if since <= self.now][-1]
        return rate, min((since for since, _ in self.rates if since > self.now), default=inf)


@dataclass
class Run:
    """What came of a simulated stream: when it had all arrived, and the controller's level whenever it had news."""

    seconds: float
    levels: list[tuple[float, int]] = field(default_factory=list)

    def level_at(self, second: float) -> int:
        return [level for at, level in self.levels if at <= second][-1]


def simulate(world: World, frames: int, ladder: Sequence[int] = LADDER, until: float = inf) -> Run:
    """Frames in order through the pool, each started by the first free worker once it has a place in flight.

    Where there is but one level, no controller is asked: it costs most of the time that this takes.
    """
    controller = Controller(tuple(ladder), world.workers) if len(ladder) > 1 else None
    pipe, run = Pipe(world.sink), Run(0.0)
    free = [0.0] * world.workers
    taken: list[float] = []
    news: list[News] = []
    came = put = 0.0
    level, spent = ladder[0], FRAME / world.rate(ladder[0])
    for number in range(frames):
        wanted = max(came, taken[number - world.workers - 4] if number >= world.workers + 4 else 0.0)
        came = wanted + FRAME / world.source
        start = max(heapq.heappop(free), came)
        if controller:
            heapq.heappush(news, (came, 2 * number, partial(controller.came, FRAME, came - wanted)))
            for at, _, tell in take_until(news, start):
                tell()
                run.levels.append((at, controller.level))
        if start > until:
            break
        if controller:
            level, spent = work(world, controller)
        done = start + spent
        heapq.heappush(free, done)
        taken.append(max(done, put))
        size = world.packed(level)
        before, put = taken[-1], pipe.write(taken[-1], size)
        if controller:
            heapq.heappush(news, (put, 2 * number + 1, partial(controller.went, put, size, put - before)))
    run.seconds = pipe.empty()
    return run


News = tuple[float, int, Callable[[], None]]
"""When it happens, a number of its own, and what tells the controller."""


def take_until(news: list[News], now: float) -> Iterator[News]:
    """What happened up to `now`, in its order, out of a heap."""
    while news and news[0][0] <= now:
        yield heapq.heappop(news)


def work(world: World, controller: Controller) -> tuple[int, float]:
    """One frame as the stage makes it: the level of the frame that goes out, and the seconds it took."""
    choice = controller.choose()
    spent = FRAME / world.rate(choice.level)
    controller.compressed(choice.level, FRAME, world.packed(choice.level), spent)
    if choice.beside is None:
        return choice.level, spent
    more = FRAME / world.rate(choice.beside)
    controller.compressed(choice.beside, FRAME, world.packed(choice.beside), more)
    controller.compared(choice.level, world.packed(choice.level), choice.beside, world.packed(choice.beside), FRAME)
    return min(choice.level, choice.beside, key=world.packed), spent + more


def frames_for(world: World, seconds: float) -> int:
    """So many that the best level takes about `seconds`."""
    average = world.sink[-1][1]
    return max(60, int(seconds * max(world.value(level, average) for level in LADDER) / FRAME))


def best_fixed(world: World, frames: int) -> float:
    """Of the three that pass most by the figures alone: what a start and a pipe cost puts no other before them."""
    best = sorted(FIXED, key=lambda level: world.value(level, world.sink[-1][1]))[-3:]
    return min(simulate(world, frames, (level,)).seconds for level in best)


@settings(deadline=None, max_examples=40)
@given(
    sink=st.floats(0.5, 2000),
    workers=st.integers(1, 16),
    speed=st.floats(0.2, 3),
    gain=st.floats(0.1, 2),
)
@example(sink=1, workers=2, speed=1, gain=1)
@example(sink=20, workers=2, speed=1, gain=1)
@example(sink=200, workers=2, speed=1, gain=1)
@example(sink=1e5, workers=2, speed=1, gain=1)
@example(sink=442, workers=1, speed=2, gain=2)
@example(sink=515, workers=1, speed=2.25, gain=2)
def test_as_quick_as_the_best_fixed_level(sink: float, workers: int, speed: float, gain: float) -> None:
    """Whatever the machine, the data and the sink, within a tenth of it and 0.6 s for the search at the beginning."""
    world = World(((0, sink * MB),), workers, speed, gain)
    frames = min(3000, frames_for(world, 20))
    assert simulate(world, frames).seconds <= 1.1 * best_fixed(world, frames) + 0.6


@settings(deadline=None, max_examples=40)
@given(before=st.sampled_from((1, 3, 20, 80, 200, 1e5)), after=st.sampled_from((1, 3, 20, 80, 200, 1e5)))
@example(before=1e5, after=1)
@example(before=1, after=1e5)
def test_two_seconds_after_a_switch_the_level_is_right(before: float, after: float) -> None:
    """In the middle of a stream the sink becomes quicker or slower by itself."""
    world = World(((0, before * MB), (8, after * MB)))
    run = simulate(world, 20_000, until=10.1)
    best = max(world.value(level, after * MB) for level in LADDER)
    assert world.value(run.level_at(10), after * MB) >= 0.9 * best


@pytest.mark.parametrize("sink", [1, 20, 1e5])
def test_noise_is_not_searched(sink: float) -> None:
    """Where no level makes it smaller, none above the first is used."""
    world = World(((0, sink * MB),), gain=0.0)
    assert simulate(world, 200).levels[-1][1] <= HOME


def test_a_slow_source_is_not_slowed_and_costs_little() -> None:
    world = World(((0, 1e5 * MB),), source=50 * MB)
    run = simulate(world, 400)
    assert run.seconds <= 1.05 * 400 * FRAME / (50 * MB)
    assert run.levels[-1][1] == HOME


def test_what_waits_is_told() -> None:
    controller = Controller(LADDER, 2)
    controller.went(0.2, 1000, 0.2)
    assert controller.waits_for == "sink"
    controller.came(1000, 1.0)
    controller.went(1.2, 1000, 0.0)
    assert controller.waits_for == "source"
    controller.came(1000, 0.0)
    controller.went(2.2, 1000, 0.0)
    assert controller.waits_for == "cores"


def test_a_frame_for_a_quick_sink_is_outdated_at_a_slow_one() -> None:
    controller = Controller(LADDER, 2)
    for second in range(1, 20):
        controller.went(float(second), 500_000, 1.0)
    assert controller.level > 9
    assert controller.is_outdated(1, FRAME, 400_000)
    assert not controller.is_outdated(controller.level, FRAME, 400_000)
    assert not controller.is_outdated(1, FRAME, FRAME)


def test_neighbours_teach_the_curve_of_other_data() -> None:
    """Data that level 12 makes much smaller than 9, against what was measured: found out, and used."""
    controller = Controller((9, 12), 2)
    used = []
    for number in range(400):
        choice = controller.choose()
        used.append(choice.level)
        packed = {9: 300_000, 12: 200_000}
        for level in filter(None, (choice.level, choice.beside)):
            controller.compressed(level, FRAME, packed[level], FRAME / (KNOWN[level][0] * MB))
        if choice.beside:
            controller.compared(choice.level, packed[choice.level], choice.beside, packed[choice.beside], FRAME)
        controller.went(0.2 * (number + 1), packed[choice.level], 0.2)
    assert used[-50:].count(12) > 40


def test_memory_bounds_the_levels_unless_one_was_asked_for() -> None:
    assert levels(-7, None, 2) == LADDER
    assert max(levels(-7, None, 64)) == 6
    assert levels(1, 12, 64) == tuple(range(1, 13))
    assert levels(19, None, 64) == (19,)
