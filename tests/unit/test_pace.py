"""The memory of parts is given out as fast as a slow store takes them."""

from __future__ import annotations

import queue
from typing import Any, cast

import pytest

from statepipe.objectstore import pace
from statepipe.objectstore.pace import EAGER, Pace
from statepipe.objectstore.workers import HEED


class SlowStore:
    """A queue to which a buffer comes each ten seconds, and only when it is waited for. `comes` says whether the next
    one comes while a part is being filled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.comes = 0.0, False
        self.waits: list[float] = []
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)

    def get_nowait(self) -> bytearray:
        raise queue.Empty

    def get(self, timeout: float) -> bytearray:
        if timeout != HEED:
            self.waits.append(timeout)
            if not self.comes:
                self.now += timeout
                raise queue.Empty
        else:
            self.now += 10 - self.now % 10
        return bytearray(1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    return SlowStore(monkeypatch)


@pytest.fixture
def paced(slow: SlowStore) -> Pace:
    """After the second part that was waited for."""
    made = Pace()
    made._free = cast(Any, slow)
    made.take()
    made.keep(0.5)
    assert slow.waits == []  # nothing is known of the store yet
    made.take()
    return made


def test_a_part_is_filled_in_about_the_time_that_the_store_took_for_the_last(slow: SlowStore, paced: Pace) -> None:
    for share in (0.25, 0.5, 0.75, 1.0):
        paced.keep(share)
    assert slow.waits == pytest.approx([2.5 * EAGER] * 4)


def test_a_stream_that_is_slower_is_not_held_up(slow: SlowStore, paced: Pace) -> None:
    slow.now += 9
    paced.keep(0.9)
    assert slow.waits == []


def test_nothing_waits_any_more_once_another_part_has_arrived(slow: SlowStore, paced: Pace) -> None:
    slow.comes = True
    paced.keep(0.25)
    paced.keep(0.5)
    assert len(slow.waits) == 1
    before = slow.now
    assert paced.take() == bytearray(1)  # the one that has come
    paced.keep(0.5)
    assert (slow.now, len(slow.waits)) == (before, 1)
