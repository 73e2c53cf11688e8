"""Predict the rounds after the first from how fast the guest's memory changes.

The pages whose content has changed since the beginning are counted now and then, from a sample. This gives the number
of pages that the guest rewrites in a given time: in twice the time hardly more if it writes to the same pages again,
twice as many if it moves on to others. Between two counts, and after the last, the curve is a power of time.

QEMU sends the pages left in a round, then checks which were written meanwhile, and stops the guest when sending those
takes no longer than the downtime limit (migration_iteration_run and ram_save_pending in migration/migration.c and
ram.c).
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

DOWNTIME = 0.3
"""Seconds that the final stage may take: QEMU's default downtime-limit."""

ROUNDS = 50
"""A guest that has not converged after so many rounds writes faster than its link can send."""

FIRST, GROWTH = 0.25, 0.15
"""Seconds to the first count; then the pause, as a part of the time since the beginning: 36 counts in a minute."""

LOOK_BACK = 0.7
"""The curve continues from the count at this part of the time to the last one. With 0.5, it was noticed too late that a
guest had returned to pages that it wrote before, with errors of 20 to 30 %."""

COST = 50
"""A count may take this fraction (1/COST) of the time."""

Count = Callable[[], float | None]
"""Returns how many pages have changed since the beginning, or None if that is unknown."""


class Rewriting:
    """Counts changed pages: call `look` often; `within` is the curve."""

    def __init__(self, count: Count, clock: Callable[[], float]) -> None:
        self._count, self._clock = count, clock
        self._begun = clock()
        self._next = self._begun + FIRST
        self._curve: list[tuple[float, float]] = []

    def look(self, *, now: bool = False) -> None:
        """Count if it is time, or if `now`."""
        before = self._clock()
        if before < self._next and not now:
            return
        if (count := self._count()) is not None:
            self._curve.append((max(before - self._begun, 1e-3), count))
        after = self._clock()
        self._next = after + max(GROWTH * (after - self._begun), COST * (after - before))

    def within(self, seconds: float) -> float:
        """Estimate how many pages are rewritten at least once within so many seconds."""
        earlier = [point for point in self._curve if point[0] <= seconds]
        later = next((point for point in self._curve if point[0] > seconds), None)
        if not earlier:
            return later[1] * seconds / later[0] if later else 0.0
        if later is None:
            later = self._curve[-1]
            earlier = [point for point in self._curve if point[0] <= LOOK_BACK * later[0]]
            earlier = earlier or [(later[0] / 2, later[1] / 2)]
        (t1, n1), (t2, n2) = earlier[-1], later
        exponent = min(max(log(n2 / n1) / log(t2 / t1), 0.0), 1.0) if n1 > 0 and n2 > 0 else 1.0
        return float(n2 * (seconds / t2) ** exponent)


def to_come(pending: float, since: float, rate: float, written: Callable[[float], float]) -> float | None:
    """Return the bytes from now to the end, or None if there is no end at this `rate` (bytes a second).

    `pending` bytes are left of this round, which began `since` seconds ago. `written` returns the bytes that become due
    again within some seconds.
    """
    sent = 0.0
    for _ in range(ROUNDS):
        sent, since = sent + pending, since + pending / rate
        pending, since = written(since), 0.0
        if pending <= DOWNTIME * rate:
            return sent + pending
    return None
