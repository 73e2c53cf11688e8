"""A sink of a given speed: `python -m tests.bench.shaped PLAN` reads standard input, throws it away, and prints
how many bytes that were.

PLAN is `RATE[:SECONDS],…`: MB a second (0: no limit), one after another, the last without an end.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

TICK = 0.01
"""Seconds of its rate that are read at once."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A rate in bytes a second, and for how long."""

    rate: float
    seconds: float


def parse(plan: str) -> list[Leg]:
    """The legs of a plan."""
    parts = [each.partition(":") for each in plan.split(",")]
    return [Leg(float(rate) * 1e6, float(seconds or "inf")) for rate, _, seconds in parts]


def drain(fd: int, plan: list[Leg]) -> int:
    """Read to the end, no faster than the plan. Returns the number of bytes."""
    start, taken, total = time.monotonic(), 0, 0
    while True:
        if plan[1:] and time.monotonic() - start >= plan[0].seconds:
            start, taken, plan = start + plan[0].seconds, 0, plan[1:]
        rate = plan[0].rate
        early = taken / rate - (time.monotonic() - start) if rate else 0.0
        if early > 0:
            time.sleep(min(early, TICK))
            continue
        size = len(os.read(fd, max(4096, min(1 << 20, int(rate * TICK) or 1 << 20))))
        if not size:
            return total
        taken, total = taken + size, total + size


if __name__ == "__main__":
    print(drain(0, parse(sys.argv[1])))
