"""progress: bytes, rate and time on standard error, for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

from statepipe.stage import Buffer, Stage


class _Bar(tqdm):  # type: ignore[type-arg]  # generic for type checkers alone
    """Without tqdm's thread that watches for stalled bars: ours is drawn when bytes pass."""

    monitor_interval = 0


class _Forgiving:
    """A stream for messages whose reader may be gone: the data are more important than the display."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._out.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._out.flush()


def progress(out: TextIO, size: int | None = None, name: str = "") -> Stage:
    """A stage that shows what passes on `out`; `size` in bytes, if known, gives the time left."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        file = _Forgiving(out)
        with _Bar(total=size, desc=name or None, unit="B", unit_scale=True, unit_divisor=1024, file=file) as bar:
            for buffer in upstream:
                bar.update(len(buffer))
                yield buffer

    return stage
