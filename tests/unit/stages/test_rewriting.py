"""The rounds to come, from counts of changed pages: against a QEMU that is played round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from statepipe.stages.rewriting import DOWNTIME, Rewriting, to_come

RATE = 50e6
STEP = 0.05
"""Seconds that QEMU sends on before it compares with the limit again (MAX_WAIT in ram.c)."""


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def linear(seconds: float) -> float:
    """A guest that writes to ever other pages."""
    return 1200 * seconds


def saturating(seconds: float) -> float:
    """One that writes to the same 6,000."""
    return 6000 * (1 - 0.5**seconds)


def counted(curve: Callable[[float], float], seconds: float) -> Rewriting:
    clock = Clock()
    rewriting = Rewriting(lambda: curve(clock.now - 100), clock)
    for tick in range(int(seconds * 100) + 1):
        clock.now = 100 + tick / 100
        rewriting.look()
    return rewriting


def qemu(first: float, curve: Callable[[float], float]) -> float:
    """Bytes from the beginning to the end, in looks a STEP apart as soon as little is left."""
    sent, pending, since = 0.0, first, 0.0
    while True:
        piece = STEP * RATE
        sent, pending, since = sent + piece, pending - piece, since + STEP
        if pending < DOWNTIME * RATE:
            pending, since = pending + 4096 * curve(since), 0.0
            if pending < DOWNTIME * RATE:
                return sent + pending


@pytest.mark.parametrize("curve", [linear, saturating])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_it_foresees_what_a_qemu_sends(curve: Callable[[float], float], share: float) -> None:
    first = 600e6
    total = qemu(first, curve)
    now = share * first / RATE
    rewriting = counted(curve, now)
    left = to_come(first * (1 - share), now, RATE, lambda seconds: 4096 * rewriting.within(seconds))
    assert left is not None
    assert abs(left - (total - share * first)) <= 0.1 * (total - share * first)


def test_a_guest_that_writes_faster_than_the_link_has_no_end() -> None:
    assert to_come(100e6, 0.0, RATE, lambda seconds: 2 * RATE * seconds) is None


def test_a_guest_that_does_not_write_has_no_further_round() -> None:
    assert to_come(100e6, 5.0, RATE, lambda seconds: 0.0) == pytest.approx(100e6)


def test_between_two_counts_and_beyond_the_last() -> None:
    rewriting = counted(linear, 8)
    errors = [abs(rewriting.within(at) / linear(at) - 1) for at in (0.1, 0.3, 1, 3, 7, 16, 60)]
    assert statistics.median(errors) < 0.01 and max(errors) < 0.05


def test_nothing_is_made_of_what_cannot_be_counted() -> None:
    clock = Clock()
    rewriting = Rewriting(lambda: None, clock)
    clock.now += 10
    rewriting.look()
    assert rewriting.within(5) == 0


def test_counts_become_rare() -> None:
    clock, counts = Clock(), []
    rewriting = Rewriting(lambda: counts.append(clock.now) or 1.0, clock)
    for tick in range(6000):
        clock.now = 100 + tick / 100
        rewriting.look()
    assert 20 < len(counts) < 50
    rewriting.look(now=True)
    assert len(counts) < 51
