"""throttle: never more than the rate and one burst, never much less, and it can be woken."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from statepipe.formats.qemu.stream import QemuStream
from statepipe.stage import FLUSH, Cancelled, Link, Meter, chain
from statepipe.stages.throttle import BURST, Bucket, Throttle
from tests import streams
from tests.world import world

RATES = st.integers(1, 1 << 34)
SLACK = 1.00001  # for the microsecond that a wait is rounded up to


def never() -> float:
    """A clock that stands still: what waits for it waits until it is woken."""
    return 0.0


def passed(bucket: Bucket, start: float, seconds: float, wanted: int) -> int:
    """Bytes that pass from `start` on, for `seconds`, where always `wanted` are there."""
    now, total = start, 0
    for _ in range(2000 + int(seconds * 1000)):
        if now > start + seconds:
            break
        count, delay = bucket.take(wanted, now)
        total += count
        now += delay
    else:
        raise AssertionError(f"only {now - start} s have passed")
    return total


@given(rate=RATES, wanted=st.sampled_from([1 << 10, 256 << 10, 1 << 20, 1 << 24]), seconds=st.floats(0.5, 5))
def test_it_keeps_the_rate(rate: int, wanted: int, seconds: float) -> None:
    wanted = max(wanted, rate // 50)  # few steps
    total = passed(Bucket(rate), 7.0, seconds, wanted)
    assert total <= rate * seconds * SLACK + 1
    assert total >= rate * (seconds - 0.02) * 0.999 - 1


@given(rate=RATES, steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 1 << 30)), max_size=30))
def test_no_window_sees_more_than_the_rate_and_one_burst(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket, now, moments = Bucket(rate), 0.0, []
    for pause, wanted in steps:
        now += pause
        moments.append((now, bucket.take(wanted, now)[0]))
    for first in range(len(moments)):
        total = 0
        for then, count in moments[first:]:
            total += count
            assert total <= rate * (then - moments[first][0] + BURST) * SLACK + 1


def test_time_in_which_nothing_came_is_not_saved_up() -> None:
    bucket = Bucket(1000)
    bucket.take(1, 0.0)
    assert passed(bucket, 3600.0, 0.0, 1 << 20) == 1000 * BURST


def test_a_low_rate_is_smooth() -> None:
    bucket, now, sizes = Bucket(1000), 0.0, []
    while now < 5:
        count, delay = bucket.take(1 << 20, now)
        sizes.append(count)
        now += delay
    assert max(sizes) <= 21 and sum(sizes) in range(4900, 5001)


def test_a_new_rate_does_not_make_old_time_count() -> None:
    bucket = Bucket(10)
    bucket.take(1, 0.0)
    bucket.set_rate(1_000_000, 100.0)
    assert bucket.take(1 << 20, 100.0)[0] == 0


def test_buffers_are_cut_flush_marks_pass_and_nothing_is_lost() -> None:
    ticks = iter(range(1_000_000))
    stage = Throttle(100_000, world(clock=lambda: next(ticks) * 0.01))
    out = list(stage(iter([bytes(range(256)) * 100, FLUSH, b"end"])))
    assert b"".join(out) == bytes(range(256)) * 100 + b"end"
    assert FLUSH in out and max(map(len, out)) <= 100_000 * BURST


def waiting(stage: Throttle, act: Callable[[Link], object]) -> list[object]:
    """What comes of a pull that waits for a clock that stands still, after `act`."""
    flow = chain(iter([b"abc"]), [("throttle", stage)])
    assert isinstance(flow, Link)
    came: list[object] = []

    def pull() -> None:
        try:
            came.extend(bytes(buffer) for buffer in flow)
        except Cancelled as error:
            came.append(type(error))

    thread = threading.Thread(target=pull)
    thread.start()
    act(flow)
    thread.join()
    return came


def test_a_lifted_rate_wakes_the_waiter() -> None:
    stage = Throttle(1, world(clock=never))
    assert waiting(stage, lambda flow: stage.set_rate(None)) == [b"abc"]
    assert stage.facts() == {"rate": None}


def test_cancel_wakes_the_waiter() -> None:
    assert waiting(Throttle(1, world(clock=never)), Link.cancel) == [Cancelled]


def test_it_lets_go_at_the_final_stage_and_for_good() -> None:
    stage = Throttle(None, world(clock=never), until_switchover=True)
    stream = streams.whole()
    whole = QemuStream()
    whole.feed(stream)
    at = whole.switchover or 0
    flow = stage(iter([stream[:at], stream[at:]]))
    assert next(flow) == stream[:at]
    assert not stage.blind
    stage.set_rate(1)  # the clock stands still: what is held now is held for ever
    assert stage.facts() == {"rate": 1}
    assert b"".join(flow) == stream[at:]
    assert stage.facts() == {"rate": None} and stage.blind


def test_what_is_no_migration_stream_keeps_its_rate() -> None:
    said = io.StringIO()
    ticks = iter(range(1000))
    stage = Throttle(1000, world(said, clock=lambda: next(ticks) * 0.01), until_switchover=True)
    out = list(stage(iter([b"no stream " * 10, b"more"])))
    assert b"".join(out) == b"no stream " * 10 + b"more" and len(out) > 3
    assert said.getvalue().count("the stream cannot be followed") == 1
    assert stage.facts() == {"rate": 1000}


def test_without_until_the_kernel_may_move_the_bytes() -> None:
    stage = Throttle(1000, world(clock=never))
    assert isinstance(stage, Meter) and stage.blind
    stage.set_rate(None)
    assert stage.admit(1 << 20) == 1 << 20


def test_what_a_small_pipe_did_not_take_may_pass_at_once() -> None:
    times = iter([0.0, 1.0])
    stage = Throttle(1_000_000, world(clock=lambda: next(times, 1.0)))
    assert stage.admit(1 << 20) == 100_000  # the first look finds no time that has passed
    stage.passed(4096)
    assert stage.admit(1 << 20) == 100_000 - 4096
