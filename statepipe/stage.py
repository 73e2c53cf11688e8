"""The central idea: a stage is a function from an iterator of buffers to an iterator of buffers.

The normal end of the iterator is a clean end of the stream; everything else is an exception, which propagates. An
iterator is lazy, and this provides the back-pressure. A test of a stage is `b"".join(stage(iter([...])))`.

A stage that is an object can offer more than the call: `Telling` (facts for a status report), `Adjustable` (a rate that
can change while it runs), `Meter` (it does not need to see the bytes) and `Expecting` (the number of bytes that will
come). The iterator that it returns may have `cancel` and `close`.

The thread that pulls closes the chain, from the sink to the source. Any thread may call `cancel`, which wakes a part
of the chain that is blocked in a read or in a wait for time or for another program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain as concatenate

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.typed import Any, Generic, Protocol, TypeVar, runtime_checkable

Buffer = bytes | bytearray | memoryview
"""Bytes in flight. A buffer must not change after it was yielded."""

Stage = Callable[[Iterator[Buffer]], Iterator[Buffer]]

SMALL_PIECE = 4096
"""Bytes below which a separate object costs more memory than its content."""

LUMP_SIZE = 64 << 10
"""Bytes after which small pieces begin a new lump."""


class _Lump(bytearray):
    """Small pieces joined. It grows only in `gather`, before it is passed on."""


def gather(held: list[Buffer], piece: Buffer) -> None:
    """Append a piece to those held, and join small ones. Without joining, 3 MB in single bytes took 200 MB."""
    if isinstance(piece, _Lump):
        held.append(memoryview(piece))  # the caller's buffer, which no longer changes
    elif len(piece) >= SMALL_PIECE:
        held.append(piece)
    elif held and isinstance(held[-1], _Lump) and len(held[-1]) < LUMP_SIZE:
        held[-1] += piece
    else:
        held.append(_Lump(piece))


FLUSH = b""
"""An empty buffer: no more input for now, so output what you hold."""

T = TypeVar("T")


@runtime_checkable
class Telling(Protocol):
    """A stage or a sink that reports facts for JSON while it runs, from any thread."""

    def facts(self) -> dict[str, Any]: ...


@runtime_checkable
class Adjustable(Protocol):
    """A stage whose rate in bytes a second (None: no limit) can change while it runs, from any thread."""

    def set_rate(self, rate: int | None) -> None: ...


@runtime_checkable
class Meter(Protocol):
    """A stage that only needs to count bytes. While all are `blind`, the kernel moves them, and no mark comes."""

    @property
    def blind(self) -> bool:
        """Return whether it does not need to see the bytes from here on."""

    def admit(self, wanted: int) -> int:
        """Wait until bytes may pass; return how many of `wanted`. Raises Cancelled."""

    def passed(self, count: int) -> None:
        """Report that `count` bytes have passed."""


@runtime_checkable
class Vouching(Protocol):
    """A stage that may have to prove every byte: then the bytes that it saw are passed on, and no other reference."""

    @property
    def vouches(self) -> bool:
        """Return whether it proves the bytes themselves, and not only the order of the stream."""


@runtime_checkable
class Expecting(Protocol):
    """A stage that can use the number of bytes that will come."""

    def expect(self, size: int) -> None: ...


class Cancelled(Exception):
    """Raised by a source after its `cancel` was called: its bytes are no longer wanted."""


def close(iterator: object) -> None:
    """Close a generator or link; does nothing for an iterator without `close`, such as a list's."""
    closer = getattr(iterator, "close", None)
    if closer is not None:
        closer()


def cancel(iterator: object) -> None:
    """Wake the source behind `iterator`, whichever thread is blocked in it. Safe from any thread."""
    canceller = getattr(iterator, "cancel", None)
    if canceller is not None:
        canceller()


class Link:
    """A stage in its place in a chain: counts bytes, adds the stage's name to errors, and closes in the right order.

    `bytes` is the number of bytes that the stage has output so far.
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
            # The first link that an error passes adds its stage. A signal belongs to no stage.
            if error.stage is None and not isinstance(error, InterruptedBySignal):
                error.stage, error.out = self.name, self.bytes
                if error.offset is None:
                    error.offset = getattr(self.upstream, "bytes", None)
            raise
        self.bytes += len(buffer)
        return buffer

    def facts(self) -> dict[str, Any]:
        """Return the name, bytes in and out, and the stage's own facts."""
        told: dict[str, Any] = self.stage.facts() if isinstance(self.stage, Telling) else {}
        return {"name": self.name, "in": getattr(self.upstream, "bytes", 0), "out": self.bytes, **told}

    def cancel(self) -> None:
        """Cancel what the stage waits for, then what its upstream waits for. Safe from any thread."""
        cancel(self._downstream)
        cancel(self.upstream)

    def close(self) -> None:
        try:
            close(self._downstream)
        finally:
            close(self.upstream)


def chain(source: Iterator[Buffer], stages: Iterable[tuple[str, Stage]]) -> Iterator[Buffer]:
    """Connect named stages to a source; `close` and `cancel` of the result reach every link."""
    flow = source
    for name, stage in stages:
        flow = Link(name, stage, flow)
    return flow


def links(flow: Iterator[Buffer]) -> list[Link]:
    """Return the links of a chain, from the source to the sink."""
    found: list[Link] = []
    while isinstance(flow, Link):
        found.insert(0, flow)
        flow = flow.upstream
    return found


class Over(Generic[T]):
    """A stage's generator over its upstream, with `cancel` and `close` that reach the upstream."""

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


def peek(upstream: Iterator[Buffer], is_enough: Callable[[bytes], bool]) -> tuple[bytes, Iterator[Buffer]]:
    """Return the first bytes of a stream, and an iterator that still gives all of it.

    Buffers are taken until `is_enough` of the bytes so far, or the end. Flush marks among them come later, in place.
    """
    head, taken = b"", []
    while not is_enough(head) and (buffer := next(upstream, None)) is not None:
        head += buffer
        taken.append(buffer)
    return head, Over(upstream, concatenate(taken, upstream))


def hold_last(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    """Yield each buffer once the next one is there, and the last after a clean end alone. Flush marks pass at once."""
    held: Buffer = b""
    for buffer in upstream:
        if not len(buffer):
            yield FLUSH
            continue
        if len(held):
            yield held
        held = buffer
    if len(held):
        yield held


def cut(upstream: Iterator[Buffer], size: int, *, early: bool) -> Iterator[list[Buffer]]:
    """Yield lists of buffers of `size` bytes together; the last may be short. Nothing is copied but small pieces.

    [] stands for a flush mark. With `early` it ends the list that was begun; else that stays until more comes.
    """
    held: list[Buffer] = []
    lacking = size
    for buffer in upstream:
        if not len(buffer):
            if early and held:
                yield held
                held, lacking = [], size
            yield []
        left = memoryview(buffer)
        while len(left):
            taken = left[:lacking]
            gather(held, taken)
            left = left[len(taken) :]
            lacking -= len(taken)
            if not lacking:
                yield held
                held, lacking = [], size
    if held:
        yield held


def joined(buffers: list[Buffer]) -> Buffer:
    """One buffer of several; a single one is not copied."""
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)
