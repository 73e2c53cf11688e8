"""get: the beginning of a pipe, which is an object of a store, or a file. What is before it is not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from statepipe.stage import Buffer, close
from statepipe.typed import Protocol, Self


class Opened(Protocol):
    """An open object or file (ends/objectsource.py, ends/source.py)."""

    bytes: int

    def __iter__(self) -> Iterator[Buffer]: ...

    def __next__(self) -> Buffer: ...

    def cancel(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Get:
    """The stage. `open` opens the object. A pipeline whose first stage it is can use that as its source instead."""

    def __init__(self, open: Callable[[], Opened]) -> None:
        self.open = open

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        return _Flow(self.open)


class _Flow:
    """The bytes of an object, which is opened at the first one and closed at the end."""

    def __init__(self, open: Callable[[], Opened]) -> None:
        self._sources: list[Opened] = []
        self._bytes = _read(open, self._sources)

    def __iter__(self) -> _Flow:
        return self

    def __next__(self) -> Buffer:
        return next(self._bytes)

    def cancel(self) -> None:
        """Wake a thread that waits for bytes."""
        for source in self._sources:
            source.cancel()

    def close(self) -> None:
        """Close the object."""
        close(self._bytes)


def _read(open: Callable[[], Opened], sources: list[Opened]) -> Iterator[Buffer]:
    """Yield the bytes of what `open` opens, which is in `sources` meanwhile."""
    with open() as source:
        sources.append(source)
        try:
            yield from source
        finally:
            sources.clear()
