"""zstd at a level that changes from frame to frame: as high as the pipe's slowest part leaves time for.

Three threads measure: the one that pulls the source, how long it waits; each worker, what a level does to a frame; the
one that writes, how long the sink keeps a frame. The controller (levels.py) makes a level of it, which a worker asks
for at the last moment, as it takes up a block. What has been compressed and waits for the sink is the one thing that
a change of level comes too late for: workers + 4 frames are 2.4 s of a sink of 1 MB/s that was a quick one a
moment ago. So the plain blocks are kept, and a frame that was made for a quicker sink is made again when its turn
comes, while the pipe below still has bytes. What is beyond that is the kernel's: 1 MiB of pipe.

Blocks that do not compress are not worth a high level, whose search costs as much in noise as in text: a sample of
each is tried first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import zstandard

from statepipe.formats.statefile import Facts
from statepipe.stage import Buffer, Over, Stage
from statepipe.stages.blocks import PerThread, over_blocks
from statepipe.stages.levels import HOME, Controller, levels
from statepipe.stages.zstd import FRAME_SIZE, Packer
from statepipe.threads import cores

Clock = Callable[[], float]


def pack(low: int, high: int | None, clock: Clock, header: Facts, trailer: Callable[[], Facts]) -> Stage:
    """What zstd.pack is at one level, at levels from `low` to `high`; without it, to what memory allows."""
    return Packer(Adaptive(levels(low, high, cores()), FRAME_SIZE, clock), header, trailer)


_SAMPLED_FROM = 5
"""Below this level noise passes at 3.5 GB a second and more, and there is nothing to save (level 9: 500 MB, 16: 11)."""

_PIECES, _PIECE = 16, 4 << 10
"""The sample: 64 KiB in pages from all over the block, 0.1 ms at level 1; level 5 takes 5 ms for the block."""

_NOISE = 0.97
"""A sample that comes to more of its size is noise."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A frame, the level it has, and what it was made of."""

    frame: bytes
    level: int
    plain: Buffer


class Adaptive:
    """Makes frames of blocks of `size` bytes, at levels out of `ladder`. `facts` tells which, from any thread."""

    def __init__(self, ladder: tuple[int, ...], size: int, clock: Clock) -> None:
        self._size = size
        self._clock = clock
        self._lowest = max(ladder[0], min(HOME, ladder[-1]))
        self._controller = Controller(ladder, cores())
        self._lock = threading.Lock()
        self._contexts = PerThread(_Contexts)

    def facts(self) -> dict[str, Any]:
        """The level that the next frame gets, and what is waited for: sink, source or cores."""
        return {"level": self._controller.level, "waits_for": self._controller.waits_for}

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[tuple[bytes, int] | None]:
        """Frames with their plain size; None for a flush mark."""
        source = Over(upstream, self._timed(upstream))
        with closing(over_blocks(self._compress, source, self._size)) as blocks:
            for block in blocks:
                if block is None:
                    yield None
                else:
                    yield from self._put_out(block)

    def _put_out(self, block: _Block) -> Iterator[tuple[bytes, int]]:
        frame = self._renewed(block)
        before = self._clock()
        yield frame, len(block.plain)
        now = self._clock()
        with self._lock:
            self._controller.went(now, len(frame), now - before)

    def _renewed(self, block: _Block) -> bytes:
        with self._lock:
            outdated = self._controller.is_outdated(block.level, len(block.plain), len(block.frame))
            level = self._controller.level
        return min(block.frame, self._at(level, block.plain), key=len) if outdated else block.frame

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
            frame = self._beside(choice.level, frame, choice.beside, plain)
        return _Block(frame, choice.level, plain)

    def _beside(self, level: int, frame: bytes, other: int, plain: Buffer) -> bytes:
        """The smaller of the frame and one at another level, which is told to the controller."""
        second = self._at(other, plain)
        with self._lock:
            self._controller.compared(level, len(frame), other, len(second), len(plain))
        return min(frame, second, key=len)

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
    """A thread's zstd contexts: one for samples, and one that is made anew for another level, so that 18 MiB (level 19)
    bound what a thread holds."""

    def __init__(self) -> None:
        self.quick = zstandard.ZstdCompressor(level=HOME)
        self._level = HOME
        self._context: zstandard.ZstdCompressor | None = None

    def at(self, level: int) -> zstandard.ZstdCompressor:
        if self._context is None or level != self._level:
            self._level = level
            self._context = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        return self._context
