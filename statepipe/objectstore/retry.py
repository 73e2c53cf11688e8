"""Try again what may succeed then: a request to a store that was overloaded, or whose answer did not come."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from statepipe.objectstore.failures import Transient
from statepipe.telling import Tell
from statepipe.threads import End
from statepipe.typed import TypeVar

T = TypeVar("T")

FIRST, LONGEST = 0.2, 8.0
"""Seconds before the second attempt at most, which double until LONGEST. Each is drawn at random from the upper half,
so that parts which failed together do not come back together."""

TOLD = 10.0
"""Seconds between two messages about failed attempts."""


class Tries:
    """Makes attempts for `seconds` after the first that failed, or until `stop` is told. Any thread may call it.

    `tell` hears of failed attempts that are made again, now and then; `again` counts them.
    """

    def __init__(self, seconds: float, tell: Tell, stop: End) -> None:
        self.again = 0
        self._seconds, self._tell, self._stop = seconds, tell, stop
        self._told = time.monotonic()

    def __call__(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns. Raises what it raises; Transient once the time is over."""
        until, pause = None, FIRST
        while True:
            try:
                return attempt()
            except Transient as error:
                now = time.monotonic()
                until = now + self._seconds if until is None else until
                if now >= until or self._stop.come:
                    raise
                self._count(error, now, until)
            self._stop.wait(min(pause * random.uniform(0.5, 1), max(until - time.monotonic(), 0)))
            pause = min(2 * pause, LONGEST)

    def _count(self, error: Transient, now: float, until: float) -> None:
        self.again += 1
        if now - self._told >= TOLD:
            self._told = now
            self._tell(f"{error}; trying again for {max(until - now, 1):.0f} s")
