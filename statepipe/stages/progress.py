"""progress: bytes, rate and time on standard error, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

from statepipe.stage import Buffer, Stage


def progress(out: TextIO, size: int | None = None, name: str = "") -> Stage:
    """A stage that shows what passes on `out`; `size` in bytes, if known, gives the time left."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        with tqdm(total=size, desc=name or None, unit="B", unit_scale=True, unit_divisor=1024, file=out) as bar:
            for buffer in upstream:
                bar.update(len(buffer))
                yield buffer

    return stage
