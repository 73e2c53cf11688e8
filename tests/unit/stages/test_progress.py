"""progress: true figures for people and programs, and never in the way of the data."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator

import pytest

from statepipe.stage import FLUSH, Buffer
from statepipe.stages.eta import TAIL
from statepipe.stages.progress import RATE_WINDOW, Flow, Progress, clock_time
from tests import streams
from tests.world import world


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO, buffers: list[bytes], size: int | None = None, name: str = "") -> str:
    assert list(Progress(world(out), size, name)(iter(buffers))) == buffers
    return out.getvalue()


def test_a_log_gets_a_line_at_the_end() -> None:
    said = shown(io.StringIO(), [bytes(1024), FLUSH, bytes(3072)], name="guest")
    assert re.fullmatch(r"progress: guest: 4\.0 KiB in \d\.\d s, .*/s, .*/s on average\n", said)


def test_a_terminal_gets_a_bar() -> None:
    last = shown(Terminal(), [bytes(1024), bytes(3072)], 4096, "guest").split("\r")[-1]
    assert last.startswith("guest: 100%") and "4.0 KiB/4.0 KiB" in last and "iB/s" in last


def test_without_a_size_there_is_no_percentage() -> None:
    said = shown(Terminal(), [bytes(2048)])
    assert "2.0 KiB" in said and "%" not in said


def test_a_size_that_was_too_small_is_none() -> None:
    """More has passed: no end is in sight, and none is told."""
    progress = Progress(world(io.StringIO()), 2048)
    seen = []
    for _ in progress(iter([bytes(1024)] * 4)):
        facts = progress.facts()
        seen.append((facts["eta"] is not None, facts["eta_from"], progress.total()))
    assert seen == [(True, "size", 2048)] * 2 + [(False, None, None)] * 2


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    flow = Flow(clock)
    for _ in range(100):
        clock.now += 0.1
        flow.add(1000)
    for _ in range(100):
        clock.now += 0.1
        flow.add(5000)
    assert flow.rate() == pytest.approx(50_000, rel=0.02)
    assert flow.average() == pytest.approx(30_000, rel=0.02)
    clock.now += 10 * RATE_WINDOW
    assert flow.rate() < 1700


def test_the_time_left_of_a_known_size() -> None:
    clock = Clock()
    progress = Progress(world(clock=clock), 1_000_000)
    flow = progress(ticking(clock, [bytes(1000)] * 500))
    for _ in range(250):
        next(flow)
    facts = progress.facts()
    assert (facts["eta"], facts["eta_from"]) == (pytest.approx(75, rel=0.03), "size")
    list(flow)


def ticking(clock: Clock, buffers: list[bytes]) -> Iterator[Buffer]:
    """A tenth of a second for each."""
    for buffer in buffers:
        clock.now += 0.1
        yield buffer


PAGES = [streams.ordinary(0, "pc.ram"), *map(streams.ordinary, range(1, 64))]


def test_the_time_left_of_a_migration_stream_is_what_is_left_of_its_pages() -> None:
    """Half of the pages have gone, at a steady rate: as much is left again, and the devices."""
    clock = Clock()
    head, half = streams.setup(), streams.ram(*PAGES[:32])
    data = head + half
    progress = Progress(world(clock=clock))
    flow = progress(ticking(clock, [data[at : at + 1000] for at in range(0, len(data), 1000)]))
    list(flow)
    facts = progress.facts()
    ram = facts["ram_bytes"] // 4096
    left = (ram - 32) / 32 * len(data) + TAIL
    assert (facts["phase"], facts["eta_from"], facts["rounds"]) == ("ram", "stream", 1)
    assert facts["eta"] * len(data) / (clock.now - 100) == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize(
    ("name", "came", "went", "told"),
    [
        ("compress", 50, 307, "ratio 0.16"),
        ("decompress", 307, 50, "ratio 0.16"),
        ("compress", 9000, 3000, "ratio 3.00"),
        ("decompress", 3000, 9000, "ratio 3.00"),
        ("compress", 50, 0, ""),
        ("compress", 0, 300, ""),
    ],
)
def test_a_ratio_is_of_plain_bytes_to_packed_ones(name: str, came: int, went: int, told: str) -> None:
    """Also where the packed ones are more; and of nothing there is none."""
    out = io.StringIO()
    stages = [{"name": name, "in": came, "out": went}, {"name": "progress", "in": went, "out": went}]
    list(Progress(world(out)._replace(status=lambda: {"stages": stages}))(iter([b"x"])))
    assert (told in out.getvalue()) if told else ("ratio" not in out.getvalue())


def test_a_stream_that_breaks_is_not_its_business() -> None:
    data = streams.setup() + b"no section begins so"
    assert b"".join(Progress(world())(iter([data[:50], data[50:], b"more"]))) == data + b"more"


def test_it_is_blind_unless_a_migration_stream_passes() -> None:
    plain, guest = Progress(world()), Progress(world())
    assert not plain.blind
    list(plain(iter([b"anything"])))
    list(guest(iter([streams.setup()])))
    assert plain.blind and not guest.blind


def test_what_the_kernel_moved_counts() -> None:
    progress = Progress(world())
    flow = progress(iter([b"abc"]))
    next(flow)
    progress.passed(1000)
    assert list(flow) == [] and progress.passed_bytes == 1003


def test_its_thread_ends_with_it() -> None:
    before = set(threading.enumerate())
    flow = Progress(world())(iter([b"abc", b"def"]))
    next(flow)
    assert len(set(threading.enumerate()) - before) == 1
    del flow
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_nobody_to_look_at_it_does_not_stop_the_data(reader: str) -> None:
    if reader == "full":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    out = open(writing, "w", buffering=1)  # noqa: SIM115 (its close fails)
    try:
        assert list(Progress(world(out))(iter([b"abc", b"def"]))) == [b"abc", b"def"]  # type: ignore[arg-type]
    finally:
        os.dup2(null := os.open(os.devnull, os.O_WRONLY), writing)
        os.close(null)
        out.close()


@pytest.mark.parametrize(("seconds", "text"), [(7.24, "7.2 s"), (65, "1:05"), (7389, "2:03:09")])
def test_times_as_people_read_them(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text
