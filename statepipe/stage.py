"""The one idea: a stage is a function from an iterator of buffers to an iterator of buffers.

The iterator's normal end is a clean end of the stream; anything else is an exception, which simply propagates.
Back-pressure is laziness. A test of a stage is `b"".join(stage(iter([...])))`.

A stage that is an object may have more to offer than the call: `Telling` (facts for whoever asks how it goes),
`Adjustable` (a rate that changes while it runs), `Meter` (it need not see the bytes) and `Expecting` (how many will
come). What it returns may have `cancel` and `close`.

Closing goes from the sink to the source, by the thread that pulls. `cancel` is what any thread may call: it wakes
whatever in the chain is blocked, in a read, in a wait for time to pass or for another program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from statepipe.errors import InterruptedBySignal, StatepipeError

Buffer = bytes | bytearray | memoryview
"""Bytes in flight. Never written again once yielded."""

Stage = Callable[[Iterator[Buffer]], Iterator[Buffer]]

SMALL_PIECE = 4096
"""Bytes below which a buffer costs more to keep than it holds, as an object of its own."""

LUMP_SIZE = 64 << 10
"""Bytes after which the next small pieces begin another lump."""


class _Lump(bytearray):
    """Small pieces joined. It grows only where it was begun, before it is handed on."""


def gather(held: list[Buffer], piece: Buffer) -> None:
    """Append a piece to those held; small ones are joined as they come. 3 MB in single bytes took 200 MB."""
    if isinstance(piece, _Lump):
        held.append(memoryview(piece))  # somebody else's, who has handed it on
    elif len(piece) >= SMALL_PIECE:
        held.append(piece)
    elif held and isinstance(held[-1], _Lump) and len(held[-1]) < LUMP_SIZE:
        held[-1] += piece
    else:
        held.append(_Lump(piece))


FLUSH = b""
"""An empty buffer: nothing more for now, push out what you hold."""

T = TypeVar("T")


@runtime_checkable
class Telling(Protocol):
    """A stage, or a sink, that tells of itself while it runs, from any thread: facts ready for JSON."""

    def facts(self) -> dict[str, Any]: ...


@runtime_checkable
class Adjustable(Protocol):
    """A stage whose rate, in bytes a second (None: no limit), may be changed while it runs, from any thread."""

    def set_rate(self, rate: int | None) -> None: ...


@runtime_checkable
class Meter(Protocol):
    """A stage that may do with counting bytes: while all of a pipeline's are `blind`, the kernel moves them."""

    @property
    def blind(self) -> bool:
        """Whether it need not see the bytes from here on."""

    def admit(self, wanted: int) -> int:
        """Wait until something may pass; how many of `wanted` bytes. Raises Cancelled."""

    def passed(self, count: int) -> None:
        """So many bytes have passed."""


@runtime_checkable
class Expecting(Protocol):
    """A stage that is glad to know how many bytes will come."""

    def expect(self, size: int) -> None: ...


class Cancelled(Exception):
    """Raised by a source whose `cancel` was called: nobody is left to want its bytes."""


def close(iterator: object) -> None:
    """Close a generator or link, if it can be closed at all (a list's iterator cannot)."""
    closer = getattr(iterator, "close", None)
    if closer is not None:
        closer()


def cancel(iterator: object) -> None:
    """Wake the source behind `iterator`, whichever thread is blocked in it. Safe from any thread."""
    canceller = getattr(iterator, "cancel", None)
    if canceller is not None:
        canceller()


class Link:
    """A stage in its place in a chain: it counts what passes, signs errors, and closes in the right order.

    `bytes` is what the stage has put out so far.
    """

    def __init__(self, name: str, stage: Stage, upstream: Iterator[Buffer]) -> None:
        self.name = name
        self.bytes = 0
        self.stage = stage
        self.upstream = upstream
        self._downstream = stage(upstream)

    def __iter__(self) -> Link:
        return self

    def __next__(self) -> Buffer:
        try:
            buffer = next(self._downstream)
        except StatepipeError as error:
            self._sign(error)
            raise
        self.bytes += len(buffer)
        return buffer

    def _sign(self, error: StatepipeError) -> None:
        """The first link an error passes is the one it arose in. A signal arises in none."""
        if error.stage is None and not isinstance(error, InterruptedBySignal):
            error.stage = self.name
            error.out = self.bytes
            if error.offset is None:
                error.offset = getattr(self.upstream, "bytes", None)

    def facts(self) -> dict[str, Any]:
        """Name, bytes in and out, and what the stage itself tells."""
        told: dict[str, Any] = self.stage.facts() if isinstance(self.stage, Telling) else {}
        return {"name": self.name, "in": getattr(self.upstream, "bytes", 0), "out": self.bytes, **told}

    def cancel(self) -> None:
        """From any thread: what the stage waits for, then what its upstream waits for."""
        cancel(self._downstream)
        cancel(self.upstream)

    def close(self) -> None:
        try:
            close(self._downstream)
        finally:
            close(self.upstream)


def chain(source: Iterator[Buffer], stages: Iterable[tuple[str, Stage]]) -> Iterator[Buffer]:
    """Connect named stages behind a source; the result has `close` and `cancel` that reach every link."""
    flow = source
    for name, stage in stages:
        flow = Link(name, stage, flow)
    return flow


def links(flow: Iterator[Buffer]) -> list[Link]:
    """The links of a chain, from the source to the sink."""
    found: list[Link] = []
    while isinstance(flow, Link):
        found.insert(0, flow)
        flow = flow.upstream
    return found


class Over(Generic[T]):
    """A generator that a stage has put over its upstream, made to carry `cancel` and `close` down to it."""

    def __init__(self, upstream: object, generator: Iterator[T]) -> None:
        self._upstream = upstream
        self._generator = generator

    def __iter__(self) -> Over[T]:
        return self

    def __next__(self) -> T:
        return next(self._generator)

    def cancel(self) -> None:
        cancel(self._upstream)

    def close(self) -> None:
        try:
            close(self._generator)
        finally:
            close(self._upstream)
