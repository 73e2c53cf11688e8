"""Run a pipeline: a source, stages, a sink, and one verdict.

The main thread pulls and writes; stages place their own threads. Whatever goes wrong, in a stage, in an end or by
a signal, arrives here as one exception: the source is woken, every stage closed from the sink to the source, the
sink undone, and the exception goes on to the caller. Returning is the only success.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from statepipe.engine.memory import keep_freed_memory
from statepipe.engine.signals import held
from statepipe.stage import Buffer, Stage, cancel, chain, close


class Source(Iterator[Buffer], Protocol):
    """Where bytes enter. It has no `close`: its opener, not the chain, lets go of it when all threads are done."""

    bytes: int

    def cancel(self) -> None:
        """Wake a blocked read, from any thread."""


class Sink(Protocol):
    """Where bytes leave. Leaving the context without `commit` undoes what can be undone."""

    bytes: int

    def __enter__(self) -> Sink: ...

    def __exit__(self, *error: object) -> object: ...

    def write(self, buffer: Buffer) -> None: ...

    def commit(self) -> None: ...


NamedStage = tuple[str, Stage]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a pipeline that succeeded has done. Sizes in bytes."""

    bytes_in: int
    bytes_out: int


def run(source: Source, stages: Sequence[NamedStage], sink: Sink) -> Verdict:
    """Carry the source's bytes through the stages into the sink and commit it. Raises what any of them raises."""
    with sink:
        pour(source, stages, sink)
        sink.commit()
    return Verdict(source.bytes, sink.bytes)


def pour(source: Source, stages: Sequence[NamedStage], sink: Sink) -> None:
    """`run` without the commit, for a caller whose commit depends on more than the bytes."""
    keep_freed_memory()
    flow = chain(source, stages)
    try:
        for buffer in flow:
            if len(buffer):
                sink.write(buffer)
    finally:
        with held():  # a Ctrl-C ends our reader and us at once: the second news must not find the threads half joined
            cancel(flow)
            close(flow)
