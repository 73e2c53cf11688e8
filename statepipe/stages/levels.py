"""Choose zstd's level for the next frame from the places where the pipe waited. No clock, no thread, no bytes.

A stream is as fast as the slowest of three: the source, the cores at that level, and the sink, whose rate in plain
bytes is its own rate times the ratio.

Of the source and the sink, the bytes and the waiting time are known. If we waited for one nearly all the time, bytes
divided by time is its rate. If not, it could do more, and the estimate grows, slowly at first and then by large steps.

Of each level, the speed and ratio are estimated: the shape of the curve was measured once (KNOWN), two factors fit it
to the latest frames, and neighbouring levels are tried now and then to correct the shape.

The chosen level has the highest rate through all three; of equally good levels, it is the one nearest to 1, so that no
CPU time is spent without a gain.
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
Higher levels have larger windows, which frames of 1 MiB cannot use."""

HOME = 1
"""Random bytes pass at 4.5 GB a second, and text is still entropy-coded, unlike at negative levels."""

MEMORY = 256
"""The limit for contexts in MiB, unless a highest level was given: 14 cores at level 19, 23 at 12, 42 at 8."""

WINDOW = 0.1
"""Seconds over which waits are added up: some frames of a fast sink, one of a slow one."""

_BOTTLENECK = 0.8
"""The part of a window spent waiting for one end from which its rate is known."""

_IDLE = 0.2
"""An end that we waited for less than that may be several times as fast as estimated."""

_CAREFUL, _FIRST_STEP, _LARGEST_STEP = 1.1, 1.25, 4.0
"""The growth of an estimate from window to window: little while we wait for the end in part; in steps, each the square
of the one before, while it is idle: six of them give 300-fold."""

_SHARE = 0.85
"""Part of the cores that the workers get: the threads of source and sink use the same cores."""

_AS_GOOD = 0.99
_WORTH_TRYING = 0.9
_TRY_EACH = 8
_WORTH_REDOING = 1.03

_SMALL = 64 << 10
"""Plain bytes below which a frame, ended early by a flush mark, says nothing about a level."""

_MEMORY_OF = 0.25
"""Core seconds that an average covers; the weights below limit the influence of one frame."""

_LIGHTEST, _HEAVIEST = 0.03, 0.25

_OUTLIER = 5
"""A frame that took so many times longer than expected was probably interrupted."""


def levels(low: int, high: int | None, workers: int) -> tuple[int, ...]:
    """Return the levels from `low` to `high`; without `high`, as far as the contexts of all workers fit in MEMORY."""
    if high is not None:
        return tuple(level for level in KNOWN if low <= level <= high)
    return tuple(level for level in KNOWN if low <= level and (level == low or KNOWN[level][2] * workers <= MEMORY))


class _Curve:
    """The estimates for each level: plain bytes a second on one core, and ratio."""

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
        """Learn from a frame: mostly about the data, a little about the level."""
        expected = plain / self._rates[level]
        slowness = seconds / expected
        surprise = max(-1.0, min(1.0, log(max(slowness, 1e-6) / self._slowness)))
        self._rates[level] *= exp(-0.05 * surprise)
        weight = max(_LIGHTEST, min(_HEAVIEST, expected / _MEMORY_OF))
        self._slowness += weight * (min(slowness, _OUTLIER * self._slowness) - self._slowness)
        left = min(1.0, packed / plain) ** (self._home_gain / self._gains[level])
        self._left += weight * (left - self._left)

    def compare(self, level: int, packed: int, other: int, other_packed: int, plain: int) -> None:
        """Learn from one frame at two levels: it shows the shape of the curve, whatever the data."""
        gain, other_gain = log(plain / packed), log(plain / other_packed)
        if gain > 0.05:
            factor = max(0.5, min(2.0, other_gain / gain))
            self._gains[other] += 0.1 * (self._gains[level] * factor - self._gains[other])


class _End:
    """The estimated rate of the source or the sink in bytes a second, from the time that we waited for it."""

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
        size, waited = self._bytes, self._waited
        self._bytes, self._waited = 0, 0.0
        if not size:
            return
        measured = size / waited if waited > 0 else inf
        self.is_bottleneck = waited > _BOTTLENECK * elapsed
        if self.is_bottleneck:
            self.rate = measured if self.rate == inf else 0.3 * min(self.rate, 4 * measured) + 0.7 * measured
            self._step = max(_FIRST_STEP, self._step**0.5)
            return
        is_idle = waited < _IDLE * elapsed
        self.rate = min(measured, max(self.rate, size / elapsed) * (self._step if is_idle else _CAREFUL))
        if is_idle:
            self._step = min(_LARGEST_STEP, self._step**2)


@dataclass(frozen=True, slots=True)
class Choice:
    """The level for a frame, and perhaps another to compress it at too: the smaller result is used."""

    level: int
    beside: int | None = None


class Controller:
    """Chooses levels from `ladder`, for frames that `workers` threads compress. Not thread-safe."""

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
        """Return the slowest part: sink, source or cores."""
        return "sink" if self._sink.is_bottleneck else "source" if self._source.is_bottleneck else "cores"

    def choose(self) -> Choice:
        """Return the level for the next frame."""
        self._frames += 1
        other = self._neighbour() if self._frames % _TRY_EACH == 0 else None
        if other is None:
            return Choice(self.level)
        both = self._workers / (1 / self._curve.rate(self.level) + 1 / self._curve.rate(other))
        if both > 2 * self._sink.rate * self._curve.ratio(self.level):  # the sink is slow, so there is time for both
            return Choice(self.level, other)
        if self._values.get(other, 0) >= _WORTH_TRYING * self._values.get(self.level, inf):
            return Choice(other)
        return Choice(self.level)

    def _neighbour(self) -> int | None:
        """Return a level above or below in turns: the fastest with a better ratio, or the best that is faster."""
        up = self._frames // _TRY_EACH % 2 == 0
        rate, ratio = self._curve.rate, self._curve.ratio
        if up:
            better = [level for level in self._ladder if level > self.level and ratio(level) > ratio(self.level)]
            return max(better, key=rate, default=None)
        enough = _WORTH_TRYING * rate(self.level)  # one long in use may only seem faster than its neighbours
        quicker = [level for level in self._ladder if level < self.level and rate(level) > enough]
        return max(quicker, key=ratio, default=None)

    def compressed(self, level: int, plain: int, packed: int, seconds: float) -> None:
        """Report that a worker compressed `plain` bytes to `packed` bytes in `seconds`."""
        if plain >= _SMALL:
            self._curve.learn(level, plain, packed, seconds)

    def compared(self, level: int, packed: int, other: int, other_packed: int, plain: int) -> None:
        """Report the sizes of one frame at two levels."""
        if plain >= _SMALL:
            self._curve.compare(level, packed, other, other_packed, plain)

    def is_outdated(self, level: int, plain: int, packed: int) -> bool:
        """Return whether to compress again a frame that waits for the sink: it was made for a faster sink."""
        if not self._sink.is_bottleneck or level >= self.level or packed > 0.97 * plain:
            return False
        saves = self._curve.ratio(self.level) > _WORTH_REDOING * self._curve.ratio(level)
        return saves and plain / self._curve.rate(self.level) < packed / self._sink.rate

    def came(self, size: int, seconds: float) -> None:
        """Report that the source gave `size` plain bytes after `seconds`."""
        self._source.add(size, seconds)

    def went(self, now: float, size: int, seconds: float) -> None:
        """Report that at `now` the sink has taken `size` packed bytes in `seconds`."""
        self._sink.add(size, seconds)
        if self._since is None:
            self._since = now - seconds
        if now - self._since >= WINDOW:
            self._source.close_window(now - self._since)
            self._sink.close_window(now - self._since)
            self._since = now
            self._values = {level: self._value(level) for level in self._ladder}
            enough = _AS_GOOD * max(self._values.values())
            good = (level for level in self._ladder if self._values[level] >= enough)
            self.level = min(good, key=_distance_from_home)

    def _value(self, level: int) -> float:
        """Return the plain bytes a second through the whole pipe."""
        cores = _SHARE * self._workers * self._curve.rate(level)
        return min(cores, self._sink.rate * self._curve.ratio(level), self._source.rate)


def _distance_from_home(level: int) -> tuple[bool, int]:
    """The sort key of equally good levels: those from 1 upward come before the negative ones."""
    return level < HOME, abs(level - HOME)
