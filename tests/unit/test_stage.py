"""ahead and parallel: order, bounds, errors, and the end of every thread. (chain, Link and Over: test_chain.py)"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.ends.fd import FdSource
from statepipe.errors import IntegrityError, InterruptedBySignal
from statepipe.pipeline.signals import as_exceptions
from statepipe.stage import Cancelled, Over, close
from statepipe.threads import ahead, cores, parallel

PATIENCE = 30
"""Seconds after which a wait for another thread is a failure; no test takes them."""


class Source:
    """Counts up for ever; remembers the threads that pulled and closed it, and whether it was cancelled."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.pulled = 0
        self.pulling: set[threading.Thread] = set()
        self.closing: list[threading.Thread] = []
        self.cancelled = threading.Event()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.pulling.add(threading.current_thread())
        if self.pulled == self.stop:
            raise StopIteration
        self.pulled += 1
        return self.pulled

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closing.append(threading.current_thread())


class Blocked(Source):
    """Gives so many, then waits until it is cancelled."""

    def __next__(self) -> int:
        if self.pulled == self.stop:
            assert self.cancelled.wait(PATIENCE), "nobody cancelled the source"
            raise Cancelled
        return super().__next__()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def same(item: int) -> int:
    return item


Place = Callable[[Iterator[int]], Iterator[int]]

PLACES: dict[str, Place] = {
    "ahead by 1": lambda upstream: ahead(upstream, 1),
    "ahead by 5": lambda upstream: ahead(upstream, 5),
    "parallel, 1 worker": lambda upstream: parallel(same, upstream, 1),
    "parallel, 3 workers": lambda upstream: parallel(same, upstream, 3),
    "parallel, a worker a core": lambda upstream: parallel(same, upstream),
    "two of them": lambda upstream: ahead(Over(upstream, parallel(same, upstream, 2)), 2),
}

IN_FLIGHT = {"ahead by 1": 2, "ahead by 5": 6, "parallel, 1 worker": 5, "parallel, 3 workers": 7}

every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


@every_place
def test_everything_arrives_in_order(place: Place) -> None:
    assert list(place(Source(500))) == list(range(1, 501))


@every_place
def test_nothing_arrives_of_nothing(place: Place) -> None:
    assert list(place(Source(0))) == []


@pytest.mark.parametrize("name", IN_FLIGHT)
def test_what_is_in_flight_is_bounded(name: str) -> None:
    """The item in the consumer's hand included, as far as an unhurried consumer ever sees."""
    source = Source(200)
    most = max(source.pulled - taken for taken, _ in enumerate(PLACES[name](source)))
    assert most <= IN_FLIGHT[name]


def test_ahead_is_ahead() -> None:
    """It fills its depth without being asked."""
    reached = threading.Event()

    def source() -> Iterator[int]:
        for number in count():
            if number == 3:
                reached.set()
            yield number

    with closing(ahead(source(), 3)) as flow:
        assert next(flow) == 0
        assert reached.wait(PATIENCE)


@every_place
def test_an_early_close_ends_the_source_in_the_thread_that_pulls_it(place: Place) -> None:
    source = Source()
    with closing(place(source)) as flow:  # type: ignore[type-var]
        assert [next(flow) for _ in range(3)] == [1, 2, 3]
    assert source.cancelled.is_set()
    assert source.pulling == {source.closing[0]} != {threading.current_thread()}


@every_place
def test_an_early_close_wakes_a_blocked_source(place: Place) -> None:
    source = Blocked(1)
    with closing(place(source)) as flow:  # type: ignore[type-var]
        assert next(flow) == 1


@every_place
def test_a_result_does_not_wait_for_a_silent_source(place: Place) -> None:
    source = Blocked(4)
    with closing(place(source)) as flow:  # type: ignore[type-var]
        assert [next(flow) for _ in range(4)] == [1, 2, 3, 4]


@every_place
def test_what_was_never_begun_can_be_closed(place: Place) -> None:
    close(place(Source()))


@every_place
def test_what_is_forgotten_ends_at_collection(place: Place) -> None:
    flow = place(Source())
    next(flow)
    del flow
    gc.collect()


@every_place
def test_an_error_arrives_in_its_place(place: Place) -> None:
    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        raise IntegrityError("broken here")

    flow = place(source())
    assert [next(flow) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(IntegrityError, match="broken here"):
        next(flow)
    assert list(flow) == []


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 30), st.integers(0, 30))
def test_a_function_that_raises_does_so_in_order(workers: int, size: int, bad: int) -> None:
    def function(item: int) -> int:
        if item > bad:
            raise ValueError(item)
        return -item

    taken = []
    try:
        for item in parallel(function, Source(size), workers):
            taken.append(item)
        assert size <= bad
    except ValueError as error:
        assert error.args == (bad + 1,)
    assert taken == [-item for item in range(1, min(size, bad) + 1)]


@pytest.mark.parametrize("workers", range(1, 6))
def test_so_many_workers_work_at_once(workers: int) -> None:
    together = threading.Barrier(workers, timeout=PATIENCE)

    def meet(item: int) -> int:
        together.wait()
        return item

    assert list(parallel(meet, Source(workers * 3), workers)) == list(range(1, workers * 3 + 1))


def test_the_pool_is_as_large_as_the_machine_allows() -> None:
    assert cores() == len(os.sched_getaffinity(0))


def test_a_slow_item_holds_back_the_later_ones_only() -> None:
    late = threading.Event()

    def function(item: int) -> int:
        if item == 2:
            assert late.wait(PATIENCE)
        return item

    with closing(parallel(function, Source(4), 2)) as flow:
        assert next(flow) == 1
        late.set()
        assert list(flow) == [2, 3, 4]


def test_an_error_of_the_close_is_not_lost_at_the_end() -> None:
    def source() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise IntegrityError("at the close")

    with pytest.raises(IntegrityError, match="at the close"):
        list(ahead(source(), 1))


def test_the_first_error_is_the_one_that_counts() -> None:
    class Bad(Source):
        def __next__(self) -> int:
            raise IntegrityError("first")

        def close(self) -> None:
            raise IntegrityError("second")

    with pytest.raises(IntegrityError, match="first"):
        list(ahead(Bad(), 1))


@every_place
def test_signals_are_for_the_main_thread(place: Place) -> None:
    """One that another thread got would not wake the main thread out of its wait."""
    masks: list[set[int]] = []

    def source() -> Iterator[int]:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        yield 1

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert list(place(source())) == [1]
    assert masks[0] >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_signal_as_the_threads_are_started_ends_them() -> None:
    """It waits for the start to be over, and then finds somebody who cares for the thread."""

    class Rude(threading.Thread):
        def start(self) -> None:
            super().start()
            signal.raise_signal(signal.SIGTERM)

    source = Blocked(0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedBySignal), as_exceptions():
        patch.setattr(threading, "Thread", Rude)
        list(parallel(same, source, 2))
    assert not [thread for thread in threading.enumerate() if isinstance(thread, Rude)]


def test_cancel_wakes_a_read_that_would_last_for_ever() -> None:
    """A real pipe whose writer says nothing, behind two placed threads."""
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"), FdSource(reading, "a pipe") as source:
        os.write(writing, b"x")
        with closing(ahead(Over(source, parallel(len, source, 2)), 2)) as flow:
            assert next(flow) == 1
