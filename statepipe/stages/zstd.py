"""zstd, both ways: independent frames, on all cores.

The stream is cut into frames of 1 MiB, each with its content size and checksum. They are compressed on all cores and
written in order between a header and a trailer (formats/statefile.py), which prove that the stream is complete.

Any zstd file can be read: it is cut at the ends of its frames as it arrives. Small frames are decoded on all cores and
leave only after their checksum matches. A frame too large to keep is decoded as it arrives; its bytes leave before its
checksum, at its end, can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.domainframe import encode_domain
from statepipe.formats.libvirtimage import Domain
from statepipe.formats.metadata import META_MAGIC, Facts
from statepipe.formats.statefile import Checker, Indexed, Writer
from statepipe.formats.zstdframe import (
    MEMORY,
    PART_LIMIT,
    WHOLE_LIMIT,
    Frame,
    FrameSplitter,
    Part,
    Piece,
    Skippable,
    skippable,
)
from statepipe.libzstd import zstandard
from statepipe.stage import FLUSH, Buffer, Over, Stage, Telling, close
from statepipe.stages.blocks import PerThread, over_blocks
from statepipe.threads import SPARE, cores, parallel
from statepipe.typed import Any

FRAME_SIZE = 1 << 20
"""Plain bytes in a frame. For a 158 MB Linux guest, level 1, 2 cores: 512 KiB 1160 MB/s and 57.2 MB, 1 MiB 1177 and
56.7, 2 MiB 1058 and 56.5, 4 MiB 1018 and 56.4; zstd -T0 -1 gives 56.8."""


SPARE_FRAMES = 22
"""Frames that may wait to be decoded or written: until they are decoded they are a third as large."""


def compress(level: int) -> Stage:
    """Return a stage that writes a statepipe stream: zstd frames that prove that they are complete."""
    return pack(level, {"kind": "stream"}, lambda: {})


def no_index() -> None:
    """Return no index: only the stream of a guest has one."""


def pack(
    level: int,
    header: Facts,
    trailer: Callable[[], Facts],
    index: Callable[[], Indexed | None] = no_index,
    domain: Domain | None = None,
) -> Stage:
    """Return a stage that writes the stream between `header` and `index()` and `trailer()`, called at the end.

    `domain` is what libvirt knows of the guest. Raises StatepipeError if it does not fit into a state file.
    """
    contexts = PerThread(lambda: zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True))

    def compressed(plain: Buffer) -> tuple[bytes, int]:
        return contexts.get().compress(plain), len(plain)

    return Packer(
        lambda upstream: over_blocks(compressed, upstream, FRAME_SIZE, spare=SPARE), header, trailer, index, domain
    )


Frames = Callable[[Iterator[Buffer]], Iterator[tuple[bytes, int] | None]]
"""Compresses a stream to frames and their plain sizes; None stands for a flush mark."""


class Packer:
    """A stage that writes the frames of `frames` between `header` and `index()` and `trailer()`, and reports their
    facts. Raises StatepipeError for a `domain` that does not fit into a state file."""

    def __init__(
        self,
        frames: Frames,
        header: Facts,
        trailer: Callable[[], Facts],
        index: Callable[[], Indexed | None],
        domain: Domain | None = None,
    ) -> None:
        self._frames, self._header, self._trailer, self._index = frames, header, trailer, index
        self._domain = None if domain is None else encode_domain(domain)

    def facts(self) -> dict[str, Any]:
        return self._frames.facts() if isinstance(self._frames, Telling) else {}

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        writer = Writer()
        yield writer.header(self._header)
        if self._domain is not None:
            yield writer.domain(self._domain)
        frames = self._frames(upstream)
        try:
            for frame in frames:
                yield writer.frame(*frame) if frame else FLUSH
        finally:
            close(frames)
        if (indexed := self._index()) is not None:
            yield from writer.index(indexed)
        yield writer.trailer(self._trailer())


def in_one_frame(level: int) -> Stage:
    """Return a stage that writes one frame with zstd's own workers, for readers that stop after the first frame."""

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
    """Return a stage that decodes any zstd stream, and also proves that one of ours is complete.

    `memory`: the largest window of a frame, in bytes; a frame with a larger one is an IntegrityError. The stage raises
    IntegrityError with the compressed offset, and TruncatedError, also for empty input.
    """
    window = min(max(memory, 1 << 10), 1 << 31)  # ZSTD_WINDOWLOG_MIN and _MAX; the splitter checks `memory` itself
    contexts = PerThread(lambda: zstandard.ZstdDecompressor(max_window_size=window))

    def decoded(piece: Piece | int | None) -> tuple[Piece | int | None, bytes]:
        """On a worker: decode a whole frame. Other pieces pass: they must be handled in order."""
        if not isinstance(piece, Frame):
            return piece, b""
        try:
            if piece.content_size:
                return piece, contexts.get().decompress(piece.data, max_output_size=piece.content_size)
            # no content size, or empty: the number of blocks has limited the plaintext
            decoder = contexts.get().decompressobj()
            plain = decoder.decompress(piece.data)
        except zstandard.ZstdError as error:
            raise _corrupt(piece.offset, error) from error
        if not decoder.eof:
            raise _incomplete(piece.offset)
        return piece, plain

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        checker, large = Checker(), _LargeFrame(window)
        pieces = Over(upstream, _split(upstream, memory))
        with closing(parallel(decoded, pieces, spare=SPARE_FRAMES, weight=_weight)) as results:
            for piece, plain in results:
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

    return stage


def _weight(piece: Piece | int | None) -> int:
    """Return how many of our own frames a piece is as large as, decoded."""
    if isinstance(piece, Frame):
        size = WHOLE_LIMIT if piece.content_size is None else piece.content_size
        return max(1, -(-size // FRAME_SIZE))
    return PART_LIMIT // FRAME_SIZE if isinstance(piece, Part) else 1


def _split(upstream: Iterator[Buffer], memory: int) -> Iterator[Piece | int | None]:
    """Yield the pieces of a zstd stream, None for a flush mark, and at the end the number of bytes in the stream."""
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


def _corrupt(offset: int, error: Exception) -> IntegrityError:
    return IntegrityError(f"the zstd frame at byte {offset} is corrupt: {error}", offset=offset)


def _incomplete(offset: int) -> IntegrityError:
    return IntegrityError(f"the zstd frame at byte {offset} is corrupt: it ends before its data", offset=offset)


def check_skippable(piece: Skippable, checker: Checker) -> None:
    """Pass a skippable frame, or a piece of one, to the checker. Raises the checker's errors."""
    if piece.magic == META_MAGIC and len(piece.data) == piece.length:
        checker.meta(piece.data, skippable(piece.magic, piece.data), piece.offset)
    else:
        checker.skipped(piece.magic, piece.length, piece.at, piece.data, piece.offset)


class _LargeFrame:
    """Decodes a frame that is too large to keep, as its parts arrive."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._decoder: zstandard.ZstdDecompressionObj | None = None

    def feed(self, part: Part) -> bytes:
        if self._decoder is None:
            self._decoder = zstandard.ZstdDecompressor(max_window_size=self._window).decompressobj()
        try:
            plain = self._decoder.decompress(part.data)
        except zstandard.ZstdError as error:
            raise _corrupt(part.offset, error) from error
        if part.last:
            if not self._decoder.eof:
                raise _incomplete(part.offset)
            self._decoder = None
        return plain
