"""What a guest's writing adds to its migration: the rounds after the first, foreseen from how fast its memory changes.

How many pages have other content than at the beginning is counted now and then, from a sample. So it is known how many
a guest rewrites within so many seconds: few more in twice the time if it writes to the same pages again and again,
twice as many if it goes on to others. Between two counts the curve is a power of time, and beyond the last one as well.

QEMU sends what a round left to do, looks at what was written meanwhile, and stops the guest when that takes no longer
than the downtime limit (migration_iteration_run and ram_save_pending in migration/migration.c and ram.c).
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

DOWNTIME = 0.3
"""Seconds that the last stage may take: QEMU's default downtime-limit."""

ROUNDS = 50
"""A guest that has not converged by then writes faster than its link carries."""

FIRST, GROWTH = 0.25, 0.15
"""Seconds to the first count, and from one to the next as a part of those since the beginning: 36 in a minute."""

LOOK_BACK = 0.7
"""The last count and the one at this part of its time tell how it goes on: with 0.5, a guest that has come round to
pages that it wrote before was noticed too late, with errors of 20 to 30 % on the way."""

COST = 50
"""A count may take one part in so many of the time."""

Count = Callable[[], float | None]
"""How many pages have changed since the beginning; None where that cannot be told."""


class Rewriting:
    """Counts changed pages: `look` whenever there is a moment; `within` is the curve."""

    def __init__(self, count: Count, clock: Callable[[], float]) -> None:
        self._count, self._clock = count, clock
        self._begun = clock()
        self._next = self._begun + FIRST
        self._curve: list[tuple[float, float]] = []

    def look(self, *, now: bool = False) -> None:
        """Count, if it is time, or `now`."""
        before = self._clock()
        if before < self._next and not now:
            return
        if (count := self._count()) is not None:
            self._curve.append((max(before - self._begun, 1e-3), count))
        after = self._clock()
        self._next = after + max(GROWTH * (after - self._begun), COST * (after - before))

    def within(self, seconds: float) -> float:
        """About how many pages are rewritten within so many seconds, at least once."""
        earlier = [point for point in self._curve if point[0] <= seconds]
        later = next((point for point in self._curve if point[0] > seconds), None)
        if not earlier:
            return later[1] * seconds / later[0] if later else 0.0
        if later is None:
            later = self._curve[-1]
            earlier = [point for point in self._curve if point[0] <= LOOK_BACK * later[0]] or [
                (later[0] / 2, later[1] / 2)
            ]
        return _power(earlier[-1], later, seconds)


def _power(first: tuple[float, float], second: tuple[float, float], seconds: float) -> float:
    """The power of time through two points, at `seconds`; its exponent from 0 to 1."""
    (t1, n1), (t2, n2) = first, second
    exponent = min(max(log(n2 / n1) / log(t2 / t1), 0.0), 1.0) if n1 > 0 and n2 > 0 else 1.0
    return float(n2 * (seconds / t2) ** exponent)


def to_come(pending: float, since: float, rate: float, written: Callable[[float], float]) -> float | None:
    """Bytes from now to the end: `pending` are left of this round, `since` the seconds since it began.

    `written` gives the bytes that become due again within some seconds. None if no end is in sight at this rate
    (bytes a second).
    """
    sent = 0.0
    for _ in range(ROUNDS):
        sent, since = sent + pending, since + pending / rate
        pending, since = written(since), 0.0
        if pending <= DOWNTIME * rate:
            return sent + pending
    return None
