"""zstd, both ways: independent frames, on all cores.

The stream is cut into frames of 1 MiB, each with its content size and checksum, each compressed by whichever
core is free, and put out in order between a header and a trailer (formats/statefile.py) that prove the whole.
Reading goes the other way: any zstd file is cut at its frames' ends as it arrives, small frames are decoded on
all cores, a frame too large to keep is decoded as it streams. Nothing leaves before its frame's checksum agreed;
of a frame that streams, nothing can be promised before its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import zstandard

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.statefile import META_MAGIC, Checker, Facts, Writer
from statepipe.formats.zstdframe import (
    MEMORY,
    Frame,
    FrameSplitter,
    Part,
    Piece,
    Skippable,
    skippable,
)
from statepipe.stage import FLUSH, Buffer, Over, Stage, Telling, close
from statepipe.stages.blocks import PerThread, over_blocks
from statepipe.threads import cores, parallel

FRAME_SIZE = 1 << 20
"""Plain bytes in a frame. On a 158 MB Linux guest, level 1, 2 cores: 512 KiB 1160 MB/s and 57.2 MB, 1 MiB 1177
and 56.7, 2 MiB 1058 and 56.5, 4 MiB 1018 and 56.4; zstd -T0 -1 makes 56.8."""


def compress(level: int) -> Stage:
    """A stage that writes a statepipe stream: zstd frames that prove their own completeness."""
    return pack(level, {"kind": "stream"}, lambda: {})


def pack(level: int, header: Facts, trailer: Callable[[], Facts]) -> Stage:
    """A stage that puts the stream between `header` and what `trailer()` says once the stream has ended."""
    return Packer(lambda upstream: over_blocks(_Compressor(level), upstream, FRAME_SIZE), header, trailer)


Frames = Callable[[Iterator[Buffer]], Iterator[tuple[bytes, int] | None]]
"""Compresses a stream to frames with their plain sizes; None stands for a flush mark."""


class Packer:
    """A stage that puts what `frames` makes of the stream between `header` and `trailer()`; it tells what they tell."""

    def __init__(self, frames: Frames, header: Facts, trailer: Callable[[], Facts]) -> None:
        self._frames, self._header, self._trailer = frames, header, trailer

    def facts(self) -> dict[str, Any]:
        return self._frames.facts() if isinstance(self._frames, Telling) else {}

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        writer = Writer()
        yield writer.header(self._header)
        frames = self._frames(upstream)
        try:
            for frame in frames:
                yield writer.frame(*frame) if frame else FLUSH
        finally:
            close(frames)
        yield writer.trailer(self._trailer())


class _Compressor:
    """Compresses a block to (frame, plain size); one zstd context for each thread."""

    def __init__(self, level: int) -> None:
        self._contexts = PerThread(
            lambda: zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        )

    def __call__(self, plain: Buffer) -> tuple[bytes, int]:
        return self._contexts.get().compress(plain), len(plain)


def in_one_frame(level: int) -> Stage:
    """A stage that writes a single frame, by zstd's own workers, and no word of ours: for readers that stop there."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        packer = zstandard.ZstdCompressor(level=level, write_checksum=True, threads=cores()).compressobj()
        for buffer in upstream:
            packed = packer.compress(buffer) if len(buffer) else packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            if packed:
                yield packed
            if not len(buffer):
                yield FLUSH
        yield packer.flush()

    return stage


def decompress(memory: int = MEMORY) -> Stage:
    """A stage that decodes any zstd stream; one of ours is proved whole as well.

    `memory`: the largest window of a frame, in bytes. One that has a larger is an IntegrityError that says so.
    Raises IntegrityError (with the offset in the compressed stream) and TruncatedError; empty input is an error.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        with closing(parallel(_Decoder(memory), Over(upstream, _split(upstream, memory)))) as decoded:
            yield from _checked(decoded, Checker(), memory)

    return stage


_Decoded = tuple[Piece | int | None, bytes]


def _split(upstream: Iterator[Buffer], memory: int) -> Iterator[Piece | int | None]:
    """The pieces of a zstd stream; None for a flush mark; at the end, the number of bytes it had."""
    splitter = FrameSplitter(memory)
    total = 0
    for buffer in upstream:
        total += len(buffer)
        yield from splitter.feed(buffer)
        if not len(buffer):
            yield None
    splitter.close()
    if not total:
        raise TruncatedError("the input is empty", offset=0)
    yield total


class _Decoder:
    """On a worker: decodes whole frames, with one zstd context for each thread. Other pieces pass: they are for
    the consumer, in order."""

    def __init__(self, memory: int) -> None:
        self._contexts = PerThread(lambda: zstandard.ZstdDecompressor(max_window_size=_bounded(memory)))

    def __call__(self, piece: Piece | int | None) -> _Decoded:
        return piece, self._decode(piece) if isinstance(piece, Frame) else b""

    def _decode(self, frame: Frame) -> bytes:
        try:
            if frame.content_size:
                return self._contexts.get().decompress(frame.data, max_output_size=frame.content_size)
            return self._decode_unsized(frame)
        except zstandard.ZstdError as error:
            raise _corrupt(frame.offset, error) from error

    def _decode_unsized(self, frame: Frame) -> bytes:
        """A frame without a content size, or an empty one: the block count has bounded what it can hold."""
        decoder = self._contexts.get().decompressobj()
        plain = decoder.decompress(frame.data)
        if not decoder.eof:
            raise IntegrityError("the frame ends before its data do", offset=frame.offset)
        return plain


def _bounded(memory: int) -> int:
    """A largest window that libzstd can be told (ZSTD_WINDOWLOG_MIN and _MAX). The splitter has judged already."""
    return min(max(memory, 1 << 10), 1 << 31)


def _corrupt(offset: int, error: Exception) -> IntegrityError:
    return IntegrityError(f"the zstd frame at byte {offset} is corrupt: {error}", offset=offset)


def _checked(decoded: Iterator[_Decoded], checker: Checker, memory: int) -> Iterator[Buffer]:
    """Tell the checker of every piece in order, and let out what it does not object to."""
    large = _LargeFrame(memory)
    for piece, plain in decoded:
        if isinstance(piece, Frame):
            checker.frame(piece.data, len(plain), piece.offset)
            yield plain
        elif isinstance(piece, Part):
            checker.large(piece.offset)
            yield large.feed(piece)
        elif isinstance(piece, Skippable):
            check_skippable(piece, checker)
        elif piece is None:
            yield FLUSH
        else:
            checker.close(piece)


def check_skippable(piece: Skippable, checker: Checker) -> None:
    """Tell the checker of a frame that holds no data, or of a piece of it. Raises what it raises."""
    if piece.magic == META_MAGIC and len(piece.data) == piece.length:
        checker.meta(piece.data, skippable(piece.magic, piece.data), piece.offset)
    else:
        checker.skipped(piece.magic, piece.length, piece.at, piece.data, piece.offset)


class _LargeFrame:
    """A frame too large to keep, decoded as its parts arrive."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._decoder: zstandard.ZstdDecompressionObj | None = None

    def feed(self, part: Part) -> bytes:
        if self._decoder is None:
            self._decoder = zstandard.ZstdDecompressor(max_window_size=_bounded(self._memory)).decompressobj()
        try:
            plain = self._decoder.decompress(part.data)
        except zstandard.ZstdError as error:
            raise _corrupt(part.offset, error) from error
        if part.last:
            self._finish(part.offset)
        return plain

    def _finish(self, offset: int) -> None:
        if self._decoder is not None and not self._decoder.eof:
            raise IntegrityError("the frame ends before its data do", offset=offset)
        self._decoder = None
