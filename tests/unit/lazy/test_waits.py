"""How long requests waited."""

from __future__ import annotations

from statepipe.lazy.waits import LAST, Waits


def test_the_longest_is_of_all_and_the_median_of_the_latest() -> None:
    waits = Waits()
    assert (waits.count, waits.median, waits.longest) == (0, 0.0, 0.0)
    waits.add(9.0)
    for number in range(LAST):
        waits.add(number / LAST)
    assert (waits.count, waits.longest) == (LAST + 1, 9.0)
    assert 0.49 < waits.median < 0.51
