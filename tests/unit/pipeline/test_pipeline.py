"""run and pour: one verdict, whatever goes wrong, and nothing left open."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from statepipe.errors import IntegrityError, InterruptedBySignal, StatepipeError
from statepipe.pipeline.pipeline import Pipeline, Verdict
from statepipe.pipeline.signals import as_exceptions
from statepipe.stage import FLUSH, Buffer, Stage
from statepipe.threads import ahead


class Source:
    """Buffers from a list."""

    def __init__(self, *buffers: bytes) -> None:
        self.bytes = 0
        self.cancelled = 0
        self._buffers = iter(buffers)

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Buffer:
        buffer = next(self._buffers)
        self.bytes += len(buffer)
        return buffer

    def cancel(self) -> None:
        self.cancelled += 1


class Sink:
    """Keeps what it gets; remembers how it ended."""

    def __init__(self, limit: int = 1 << 30, refuses: bool = False) -> None:
        self.kept: list[bytes] = []
        self.ended: list[str] = []
        self.limit, self.refuses = limit, refuses

    @property
    def bytes(self) -> int:
        return sum(map(len, self.kept))

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.append("left")

    def write(self, buffer: Buffer) -> None:
        if self.bytes + len(buffer) > self.limit:
            raise StatepipeError("full")
        self.kept.append(bytes(buffer))

    def commit(self) -> None:
        if self.refuses:
            raise StatepipeError("refused")
        self.ended.append("committed")


def failing(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    yield next(upstream)
    raise IntegrityError("broken")


def doubled(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    for buffer in upstream:
        yield bytes(buffer) * 2


def noting(closed: list[str], name: str) -> Stage:
    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        try:
            for buffer in upstream:
                yield bytes(buffer)
        finally:
            closed.append(name)

    return stage


def test_success_is_a_verdict() -> None:
    sink = Sink()
    assert Pipeline(Source(b"abc", b"d"), [("doubled", doubled)], sink).run() == Verdict(4, 8)
    assert (sink.kept, sink.ended) == ([b"abcabc", b"dd"], ["committed", "left"])


def test_no_stage_at_all() -> None:
    sink = Sink()
    assert Pipeline(Source(b"abc"), [], sink).run() == Verdict(3, 3)


def test_flush_marks_are_not_written() -> None:
    sink = Sink()
    Pipeline(Source(b"a", FLUSH, b"b", FLUSH), [], sink).run()
    assert sink.kept == [b"a", b"b"]


def test_pour_commits_nothing() -> None:
    sink = Sink()
    Pipeline(Source(b"a"), [], sink).pour()
    assert (sink.kept, sink.ended) == ([b"a"], [])


@pytest.mark.parametrize("fault", ["stage", "sink", "commit"])
def test_a_failure_anywhere_is_the_outcome(fault: str) -> None:
    source, closed = Source(b"abc", b"def"), []
    sink = Sink(limit=3 if fault == "sink" else 99, refuses=fault == "commit")
    stages = [("one", noting(closed, "one")), ("two", failing if fault == "stage" else noting(closed, "two"))]
    with pytest.raises(StatepipeError):
        Pipeline(source, stages, sink).run()
    assert sink.ended == ["left"]
    assert closed == (["one"] if fault == "stage" else ["two", "one"]) or fault == "commit"
    assert source.cancelled


def test_a_signal_during_the_clean_up_waits_for_its_end() -> None:
    """A reader that goes away and Ctrl-C come together: every stage is closed before the second is heard."""
    closed: list[str] = []

    def rude(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        try:
            for buffer in upstream:
                yield bytes(buffer)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def placed(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from ahead(upstream, 1)

    before = set(threading.enumerate())
    stages = [("one", noting(closed, "one")), ("placed", placed), ("rude", rude), ("two", noting(closed, "two"))]
    with pytest.raises(InterruptedBySignal), as_exceptions():
        Pipeline(Source(b"abc", b"def"), stages, Sink(limit=3)).run()
    assert closed == ["two", "one"]
    assert set(threading.enumerate()) == before


def test_a_signal_while_it_waits_for_another_thread() -> None:
    """The main thread sits in a queue; the signal ends it all the same, and wakes the source."""
    entered = threading.Event()

    class Silent(Source):
        def __init__(self) -> None:
            super().__init__()
            self.woken = threading.Event()

        def __next__(self) -> Buffer:
            entered.set()
            assert self.woken.wait(30)
            raise StopIteration

        def cancel(self) -> None:
            self.woken.set()

    def placed(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        from statepipe.stage import Over

        yield from Over(upstream, ahead(upstream, 1))

    def interrupt() -> None:
        entered.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(InterruptedBySignal) as caught, as_exceptions():
        Pipeline(Silent(), [("placed", placed)], Sink()).run()
    thread.join()
    assert caught.value.exit_code == 143


class Throttle:
    """A stage that is an object: it tells facts and takes a rate."""

    rate: int | None = 7

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from upstream

    def set_rate(self, rate: int | None) -> None:
        self.rate = rate

    def facts(self) -> dict[str, object]:
        return {"rate": self.rate}


def test_a_pipeline_tells_what_passes_where() -> None:
    pipeline = Pipeline(Source(b"abc", b"d"), [("doubled", doubled), ("throttle", Throttle())], Sink())
    assert pipeline.status()["stages"] == []
    pipeline.run()
    status = pipeline.status()
    assert status.pop("seconds") >= 0
    stages = [{"name": "doubled", "in": 4, "out": 8}, {"name": "throttle", "in": 8, "out": 8, "rate": 7}]
    assert status == {"bytes_in": 4, "bytes_out": 8, "stages": stages}


def test_a_new_rate_goes_to_the_stages_that_take_one() -> None:
    throttle = Throttle()
    Pipeline(Source(), [("doubled", doubled), ("throttle", throttle)], Sink()).set_rate(None)
    assert throttle.rate is None


def test_a_pipeline_without_throttle_takes_no_rate() -> None:
    with pytest.raises(StatepipeError, match="no throttle"):
        Pipeline(Source(), [("doubled", doubled)], Sink()).set_rate(5)
