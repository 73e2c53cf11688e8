"""zstd at a level that changes from frame to frame: as high as the slowest part of the pipe leaves time for.

Three kinds of threads measure: the thread that pulls the source, how long it waits; each worker, the speed and size of
a frame at a level; the thread that writes, how long the sink takes for a frame. From this the controller (levels.py)
chooses a level, which a worker asks for when it starts a block.

Frames that are compressed and wait for the sink have the old level: workers + 4 frames, 2.4 s at 1 MB/s. So their plain
blocks are kept, and a frame made for a faster sink is compressed again when its turn comes. Only the 1 MiB in the
kernel's pipe cannot be changed.

A block that does not compress is not worth a high level, whose search takes as long for noise as for text, so a sample
of each block is tried first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from statepipe.formats.libvirtimage import Domain
from statepipe.formats.metadata import Facts
from statepipe.formats.statefile import Indexed
from statepipe.libzstd import zstandard
from statepipe.stage import Buffer, Over, Stage
from statepipe.stages.blocks import PerThread, over_blocks
from statepipe.stages.levels import HOME, Controller, levels
from statepipe.stages.zstd import FRAME_SIZE, Packer, no_index
from statepipe.threads import cores
from statepipe.typed import Any

Clock = Callable[[], float]


def pack(
    low: int,
    high: int | None,
    clock: Clock,
    header: Facts,
    trailer: Callable[[], Facts],
    index: Callable[[], Indexed | None] = no_index,
    domain: Domain | None = None,
) -> Stage:
    """Return a stage as `zstd.pack` does, with levels from `low` to `high` (None: as high as memory allows)."""
    return Packer(Adaptive(levels(low, high, cores()), FRAME_SIZE, clock), header, trailer, index, domain)


_SAMPLED_FROM = 5
"""Below this level, noise passes at 3.5 GB a second or more, so a sample saves nothing (level 9: 500 MB, 16: 11)."""

_PIECES, _PIECE = 16, 4 << 10
"""The sample: 64 KiB in pages spread over the block, 0.1 ms at level 1; level 5 takes 5 ms for the block."""

_NOISE = 0.97
"""A sample that does not shrink below this part of its size is noise."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A frame, its level, and its plain bytes."""

    frame: bytes
    level: int
    plain: Buffer


class Adaptive:
    """Compresses blocks of `size` bytes to frames, at levels from `ladder`."""

    def __init__(self, ladder: tuple[int, ...], size: int, clock: Clock) -> None:
        self._size = size
        self._clock = clock
        self._lowest = max(ladder[0], min(HOME, ladder[-1]))
        self._controller = Controller(ladder, cores())
        self._lock = threading.Lock()
        self._contexts = PerThread(_Contexts)

    def facts(self) -> dict[str, Any]:
        """Return the level of the next frame, and the slowest part: sink, source or cores. Safe from any thread."""
        return {"level": self._controller.level, "waits_for": self._controller.waits_for}

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[tuple[bytes, int] | None]:
        """Yield frames with their plain size, and None for a flush mark."""
        source = Over(upstream, self._timed(upstream))
        with closing(over_blocks(self._compress, source, self._size)) as blocks:
            for block in blocks:
                if block is None:
                    yield None
                    continue
                with self._lock:
                    outdated = self._controller.is_outdated(block.level, len(block.plain), len(block.frame))
                    level = self._controller.level
                frame = min(block.frame, self._at(level, block.plain), key=len) if outdated else block.frame
                before = self._clock()
                yield frame, len(block.plain)
                now = self._clock()
                with self._lock:
                    self._controller.went(now, len(frame), now - before)

    def _timed(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        before = self._clock()
        for buffer in upstream:
            waited = self._clock() - before
            with self._lock:
                self._controller.came(len(buffer), waited)
            yield buffer
            before = self._clock()

    def _compress(self, plain: Buffer) -> _Block:
        with self._lock:
            choice = self._controller.choose()
        if choice.level >= _SAMPLED_FROM and self._is_noise(plain):
            return _Block(self._contexts.get().at(self._lowest).compress(plain), choice.level, plain)
        frame = self._at(choice.level, plain)
        if choice.beside is not None:
            second = self._at(choice.beside, plain)
            with self._lock:
                self._controller.compared(choice.level, len(frame), choice.beside, len(second), len(plain))
            frame = min(frame, second, key=len)
        return _Block(frame, choice.level, plain)

    def _at(self, level: int, plain: Buffer) -> bytes:
        context = self._contexts.get().at(level)
        before = self._clock()
        frame = context.compress(plain)
        seconds = self._clock() - before
        with self._lock:
            self._controller.compressed(level, len(plain), len(frame), seconds)
        return frame

    def _is_noise(self, plain: Buffer) -> bool:
        if len(plain) <= _PIECES * _PIECE:
            return False
        step = (len(plain) - _PIECE) // (_PIECES - 1)
        sample = b"".join(memoryview(plain)[at : at + _PIECE] for at in range(0, step * _PIECES, step))
        return len(self._contexts.get().quick.compress(sample)) > _NOISE * len(sample)


class _Contexts:
    """The zstd contexts of a thread: one for samples, and one for frames, replaced when the level changes. So a thread
    needs at most 18 MiB (level 19)."""

    def __init__(self) -> None:
        self.quick = zstandard.ZstdCompressor(level=HOME)
        self._level = HOME
        self._context: zstandard.ZstdCompressor | None = None

    def at(self, level: int) -> zstandard.ZstdCompressor:
        if self._context is None or level != self._level:
            self._level = level
            self._context = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        return self._context
