"""Which level pays: zstd's level for the next frame, from where the pipe was waiting. No clock, no thread, no bytes.

A stream is as fast as the slowest of three: the source, the cores at that level, and the sink, which takes plain bytes
at its own rate times the ratio. Of each end is known how much it moved and how long it kept us waiting: if it was
waited for nearly all the time, the one divided by the other is its rate; if not, it could do more, and the estimate
grows, at first carefully and then by leaps. Of each level is known what it did to these data on this machine: the
shape of the curve was measured once (KNOWN), two factors fit it to the frames of the last moments, and neighbours
are tried now and then to correct its shape. The level is the one with the largest of the three-fold minimum; of those
as good, the one nearest to 1, as cores are not spent where no time is won.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log

KNOWN = {
    -7: (921, 2.005, 1),
    -6: (1012, 2.041, 1),
    -5: (988, 2.078, 1),
    -4: (935, 2.130, 1),
    -3: (901, 2.158, 1),
    -2: (860, 2.266, 1),
    -1: (819, 2.354, 1),
    1: (679, 2.531, 1),
    2: (552, 2.590, 1),
    3: (416, 2.640, 2),
    4: (368, 2.646, 3),
    5: (203, 2.683, 4),
    6: (138, 2.717, 4),
    7: (111, 2.724, 6),
    8: (108, 2.735, 6),
    9: (76, 2.736, 11),
    10: (56, 2.740, 11),
    11: (54, 2.743, 11),
    12: (60, 2.743, 11),
    13: (21, 2.745, 17),
    14: (16, 2.746, 17),
    15: (18, 2.744, 17),
    16: (10, 2.790, 17),
    17: (9, 2.820, 17),
    18: (8, 2.852, 18),
    19: (6, 2.856, 18),
}
"""Level: plain MB a second on one core, ratio, MiB of a context; frames of 1 MiB of a Linux guest's stream, zstd 1.5.7.
Higher levels differ by their window, of which 1 MiB has no use."""

HOME = 1
"""Random bytes pass here at 4.5 GB a second and text is still entropy-coded, which negative levels do not do."""

MEMORY = 256
"""MiB of contexts at most, unless a highest level was asked for: 14 cores at level 19, 23 at 12, 42 at 8."""

WINDOW = 0.1
"""Seconds over which the waits are added up: some frames of a quick sink, one of a slow one."""

_BOTTLENECK = 0.8
"""The part of a window that must have gone in waiting for one end for its rate to be known."""

_IDLE = 0.2
"""An end that was waited for less than that may well be several times as quick as we thought."""

_CAREFUL, _FIRST_STEP, _LARGEST_STEP = 1.1, 1.25, 4.0
"""How an estimate grows from window to window: a little while the end is waited for in part; by steps, each the square
of the last, while it is idle: six of them make 300-fold."""

_SHARE = 0.85
"""Of what the workers could do by themselves: the ends' threads run on the same cores."""

_AS_GOOD = 0.99
_WORTH_TRYING = 0.9
_TRY_EACH = 8
_WORTH_REDOING = 1.03

_SMALL = 64 << 10
"""Plain bytes below which a frame, closed early by a flush mark, says nothing of a level."""


_MEMORY_OF = 0.25
"""Core seconds that an average reaches back; within the weights below, or one frame would be all or nothing."""

_LIGHTEST, _HEAVIEST = 0.03, 0.25

_OUTLIER = 5
"""A frame that took so many times what was expected was most likely interrupted."""


def levels(low: int, high: int | None, workers: int) -> tuple[int, ...]:
    """The levels from `low` to `high`; without `high`, as far as the contexts of so many workers stay in MEMORY."""
    if high is not None:
        return tuple(level for level in KNOWN if low <= level <= high)
    return tuple(level for level in KNOWN if low <= level and (level == low or KNOWN[level][2] * workers <= MEMORY))


class _Curve:
    """What each level does to the data: plain bytes a second on one core, and ratio."""

    def __init__(self, ladder: tuple[int, ...]) -> None:
        self._rates = {level: KNOWN[level][0] * 1e6 for level in ladder}
        self._gains = {level: log(KNOWN[level][1]) for level in ladder}
        self._home_gain = log(KNOWN[HOME][1])
        self._slowness = 1.0
        self._left = exp(-self._home_gain)

    def rate(self, level: int) -> float:
        return self._rates[level] / self._slowness

    def ratio(self, level: int) -> float:
        return exp(-log(self._left) * self._gains[level] / self._home_gain)

    def learn(self, level: int, plain: int, packed: int, seconds: float) -> None:
        """A frame's outcome: mostly what the data are like, a little what the level is like."""
        expected = plain / self._rates[level]
        slowness = seconds / expected
        surprise = max(-1.0, min(1.0, log(max(slowness, 1e-6) / self._slowness)))
        self._rates[level] *= exp(-0.05 * surprise)
        weight = max(_LIGHTEST, min(_HEAVIEST, expected / _MEMORY_OF))
        self._slowness += weight * (min(slowness, _OUTLIER * self._slowness) - self._slowness)
        left = min(1.0, packed / plain) ** (self._home_gain / self._gains[level])
        self._left += weight * (left - self._left)

    def compare(self, level: int, packed: int, other: int, other_packed: int, plain: int) -> None:
        """The same frame at two levels: the one that tells of the shape of the curve, whatever the data."""
        gain, other_gain = log(plain / packed), log(plain / other_packed)
        if gain > 0.05:
            factor = max(0.5, min(2.0, other_gain / gain))
            self._gains[other] += 0.1 * (self._gains[level] * factor - self._gains[other])


class _End:
    """How fast the source or the sink can go, in bytes a second, by how long it kept us waiting."""

    def __init__(self) -> None:
        self.rate = inf
        self.is_bottleneck = False
        self._bytes = 0
        self._waited = 0.0
        self._step = _LARGEST_STEP

    def add(self, size: int, seconds: float) -> None:
        self._bytes += size
        self._waited += seconds

    def close_window(self, elapsed: float) -> None:
        if self._bytes:
            self._estimate(elapsed)
        self._bytes, self._waited = 0, 0.0

    def _estimate(self, elapsed: float) -> None:
        measured = self._bytes / self._waited if self._waited > 0 else inf
        self.is_bottleneck = self._waited > _BOTTLENECK * elapsed
        if self.is_bottleneck:
            self.rate = measured if self.rate == inf else 0.3 * min(self.rate, 4 * measured) + 0.7 * measured
            self._step = max(_FIRST_STEP, self._step**0.5)
            return
        is_idle = self._waited < _IDLE * elapsed
        self.rate = min(measured, max(self.rate, self._bytes / elapsed) * (self._step if is_idle else _CAREFUL))
        if is_idle:
            self._step = min(_LARGEST_STEP, self._step**2)


@dataclass(frozen=True, slots=True)
class Choice:
    """The level for a frame, and one to try beside it: the smaller outcome is to be used."""

    level: int
    beside: int | None = None


class Controller:
    """Chooses levels out of `ladder`, for frames that `workers` threads compress. Not safe for threads by itself."""

    def __init__(self, ladder: tuple[int, ...], workers: int) -> None:
        self._ladder = ladder
        self._workers = workers
        self._curve = _Curve(ladder)
        self._source, self._sink = _End(), _End()
        self._since: float | None = None
        self._frames = 0
        self._values: dict[int, float] = {}
        self.level = min(ladder, key=_distance_from_home)

    @property
    def waits_for(self) -> str:
        """What holds the stream up: sink, source or cores."""
        return "sink" if self._sink.is_bottleneck else "source" if self._source.is_bottleneck else "cores"

    def choose(self) -> Choice:
        """For the next frame."""
        self._frames += 1
        other = self._neighbour() if self._frames % _TRY_EACH == 0 else None
        if other is None:
            return Choice(self.level)
        if self._has_time_for_both(other):
            return Choice(self.level, other)
        if self._values.get(other, 0) >= _WORTH_TRYING * self._values.get(self.level, inf):
            return Choice(other)
        return Choice(self.level)

    def _neighbour(self) -> int | None:
        """The next level up or down, in turns, that no other makes pointless."""
        up = self._frames // _TRY_EACH % 2 == 0
        rate, ratio = self._curve.rate, self._curve.ratio
        if up:
            better = [level for level in self._ladder if level > self.level and ratio(level) > ratio(self.level)]
            return max(better, key=rate, default=None)
        enough = _WORTH_TRYING * rate(self.level)  # a level long in use may only seem to be quicker than its neighbours
        quicker = [level for level in self._ladder if level < self.level and rate(level) > enough]
        return max(quicker, key=ratio, default=None)

    def _has_time_for_both(self, other: int) -> bool:
        """While the sink is waited for, with cores to spare."""
        both = self._workers / (1 / self._curve.rate(self.level) + 1 / self._curve.rate(other))
        return both > 2 * self._sink.rate * self._curve.ratio(self.level)

    def compressed(self, level: int, plain: int, packed: int, seconds: float) -> None:
        """A worker took so many seconds to make `plain` bytes into `packed`."""
        if plain >= _SMALL:
            self._curve.learn(level, plain, packed, seconds)

    def compared(self, level: int, packed: int, other: int, other_packed: int, plain: int) -> None:
        """The same frame came to so many bytes at one level, and at the other."""
        if plain >= _SMALL:
            self._curve.compare(level, packed, other, other_packed, plain)

    def is_outdated(self, level: int, plain: int, packed: int) -> bool:
        """Whether a frame that waits for the sink should be made again: it was made for a quicker one."""
        if not self._sink.is_bottleneck or level >= self.level or packed > 0.97 * plain:
            return False
        saves = self._curve.ratio(self.level) > _WORTH_REDOING * self._curve.ratio(level)
        return saves and plain / self._curve.rate(self.level) < packed / self._sink.rate

    def came(self, size: int, seconds: float) -> None:
        """The source gave `size` plain bytes after that many seconds."""
        self._source.add(size, seconds)

    def went(self, now: float, size: int, seconds: float) -> None:
        """The sink came back `now`, having taken `size` packed bytes for that many seconds."""
        self._sink.add(size, seconds)
        if self._since is None:
            self._since = now - seconds
        if now - self._since >= WINDOW:
            self._source.close_window(now - self._since)
            self._sink.close_window(now - self._since)
            self._since = now
            self._decide()

    def _decide(self) -> None:
        self._values = {level: self._value(level) for level in self._ladder}
        enough = _AS_GOOD * max(self._values.values())
        self.level = min((level for level in self._ladder if self._values[level] >= enough), key=_distance_from_home)

    def _value(self, level: int) -> float:
        """Plain bytes a second through the whole pipe."""
        cores = _SHARE * self._workers * self._curve.rate(level)
        return min(cores, self._sink.rate * self._curve.ratio(level), self._source.rate)


def _distance_from_home(level: int) -> tuple[bool, int]:
    """Levels from 1 upward come before the negative ones."""
    return level < HOME, abs(level - HOME)
