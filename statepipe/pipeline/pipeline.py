"""Run a pipeline: a source, stages, a sink, and one verdict.

The main thread pulls and writes; stages place their own threads. Each failure, in a stage, in an end or by a signal,
arrives here as one exception: the source is woken, every stage is closed from the sink to the source, the sink is
undone, and the exception is passed to the caller. Only a return means success.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.pipeline.job import at_work, much_comes
from statepipe.pipeline.signals import held
from statepipe.stage import Adjustable, Buffer, Expecting, Link, Meter, Stage, Telling, cancel, chain, close, links
from statepipe.typed import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from statepipe.pipeline.bypass import Bypass


class Source(Iterator[Buffer], Protocol):
    """Where bytes enter. It has no `close`: its opener, not the chain, closes it when all threads have ended."""

    bytes: int

    def cancel(self) -> None:
        """Wake a blocked read, from any thread."""


class Sink(Protocol):
    """Where bytes leave. An exit without `commit` undoes what can be undone."""

    bytes: int

    def __enter__(self) -> Sink: ...

    def __exit__(self, *error: object) -> object: ...

    def write(self, buffer: Buffer) -> None: ...

    def commit(self) -> None: ...


NamedStage = tuple[str, Stage]

MUCH = 4 << 20
"""Bytes after which a stream is long: to prepare for that takes 2 ms of start-up (ctypes)."""


class Verdict(NamedTuple):
    """The result of a pipeline that succeeded. Sizes in bytes."""

    bytes_in: int
    bytes_out: int


class Pipeline:
    """A source, stages and a sink, to be run once. Any thread may call `status` and `set_rate` meanwhile."""

    def __init__(self, source: Source, stages: Sequence[NamedStage], sink: Sink) -> None:
        self._source, self._stages, self._sink = source, stages, sink
        self._links: list[Link] = []
        self._started = time.monotonic()

    def run(self) -> Verdict:
        """Move the source's bytes through the stages into the sink and commit it. Raises what any of them raises."""
        with self._sink:
            self.pour()
            self._sink.commit()
        return Verdict(self._source.bytes, self._sink.bytes)

    def pour(self) -> None:
        """Do as `run` without the sink's context and commit, for a caller whose commit depends on more."""
        size = getattr(self._source, "expected", None)
        for stage in [stage for _, stage in self._stages] if size is not None else ():
            if isinstance(stage, Expecting):
                stage.expect(size)
            if not isinstance(stage, Meter):  # behind it, the bytes are others
                break
        flow = chain(self._source, self._stages)
        self._links = links(flow)
        try:
            with at_work(self, much=False):
                bypass, is_much = self._bypass(), False
                for buffer in flow:
                    if not is_much and self._source.bytes >= MUCH:
                        is_much = True
                        much_comes()
                    if len(buffer):
                        (bypass or self._sink).write(buffer)
                    if bypass is not None and not bypass.look():
                        bypass = None
        finally:
            try:
                _put_away(flow)
            except (InterruptedBySignal, KeyboardInterrupt):  # in the instant before signals were held
                _put_away(flow)
                raise

    def _bypass(self) -> Bypass | None:
        if not all(isinstance(stage, Meter) for _, stage in self._stages):
            return None
        from statepipe.pipeline.bypass import find_bypass  # imports socket, which a stage that works need not pay

        return find_bypass(self._source, self._links, self._sink)

    def status(self) -> dict[str, Any]:
        """Return the progress for JSON: seconds since the start, bytes in and out, the facts of stages and sink."""
        told = self._sink.facts() if isinstance(self._sink, Telling) else {}
        return {
            "seconds": round(time.monotonic() - self._started, 3),
            "bytes_in": self._source.bytes,
            "bytes_out": self._sink.bytes,
            "stages": [link.facts() for link in self._links],
            **told,
        }

    def set_rate(self, rate: int | None) -> None:
        """Change the rate of its throttles, in bytes a second; None lifts it. Raises StatepipeError without one."""
        if not self.has_throttle:
            raise StatepipeError("there is no throttle in this pipeline", hint="start it with the word throttle:RATE")
        for stage in self._throttles():
            stage.set_rate(rate)

    @property
    def has_throttle(self) -> bool:
        """Whether it has a throttle."""
        return bool(self._throttles())

    def _throttles(self) -> list[Adjustable]:
        stages: list[object] = [stage for _, stage in self._stages]
        return [stage for stage in stages if isinstance(stage, Adjustable)]


def _put_away(flow: Iterator[Buffer]) -> None:
    """Close the chain with signals held: Ctrl-C may end our reader first, and must not interrupt the joins then."""
    with held():
        cancel(flow)
        close(flow)
