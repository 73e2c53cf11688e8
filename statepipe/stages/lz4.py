"""lz4, both ways: one frame of independent blocks of 1 MiB.

One frame, because many readers stop after the first; its blocks are compressed and decoded on all cores. We write the
frame ourselves around the library's blocks: the library's own frames take half as long again, mostly for a checksum
that the xxhash library computes in a third of the time.

To read, the stream is cut into its blocks. Independent blocks are decoded on all cores; the checksum of the frame is
computed after that, in order. A block with its own checksum, as ours have, leaves once that matches; others are held
until the frame ends, unless it is too large to keep.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

from statepipe.errors import IntegrityError
from statepipe.extras import extra
from statepipe.formats.lz4frame import Begin, Block, End, Item, Splitter, block, head, tail
from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import FLUSH, Buffer, Over, Stage
from statepipe.stages.blocks import over_blocks
from statepipe.stages.joined import Held
from statepipe.threads import ahead, parallel

with extra("lz4"):
    import lz4.block
    import xxhash

BLOCK_SIZE = 1 << 20
"""Plain bytes in a block. For a 158 MB Linux guest, 64 KiB give 73.7 MB, 1 MiB 72.4, 4 MiB 72.3 but 3 % slower."""

_FIRST_HIGH = 3
"""The first level at which lz4 searches for the best match (lz4hc.h)."""

_WINDOW = 64 << 10
"""The bytes before a dependent block that it may refer to."""

_BATCH = 1 << 20
"""Plain bytes that a worker decodes at a time, unless one block has more. Single blocks of 64 KiB would wake it too
often."""

_EXPANSION = 255
"""The most plain bytes for one byte of a block: lz4_Block_format.md, the length codes."""


def compress(level: int) -> Stage:
    """Return a stage that writes one lz4 frame with checksums of each block and of all, at lz4's levels 1 to 12."""
    mode = {"mode": "high_compression", "compression": level} if level >= _FIRST_HIGH else {"mode": "default"}

    def pack(plain: Buffer) -> tuple[bytes, Buffer]:
        packed: bytes = lz4.block.compress(plain, store_size=False, **mode)
        stored = len(packed) >= len(plain)
        return block(bytes(plain) if stored else packed, stored=stored), plain

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        digest = xxhash.xxh32()
        yield head()
        with closing(over_blocks(pack, upstream, BLOCK_SIZE)) as blocks:
            for made in blocks:
                if made is None:
                    yield FLUSH
                    continue
                packed, plain = made
                digest.update(plain)
                yield packed
        yield tail(digest.intdigest())

    return stage


def decompress(memory: int = MEMORY) -> Stage:
    """Return a stage that decodes lz4 frames. Raises IntegrityError and TruncatedError with the compressed offset.

    `memory` is not used: the decoder needs less than 10 MiB.
    """

    def in_order(decoded: Generator[_Decoded, None, None]) -> Iterator[Buffer]:
        frames = _Frames()
        with closing(decoded):
            for batch in decoded:
                if not batch:
                    yield FLUSH
                for item, plain in batch:
                    yield from frames.take(item, plain)
        yield from frames.held.release()

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        decoded = parallel(_decode_batch, Over(upstream, _batches(upstream)))
        yield from ahead(Over(upstream, in_order(decoded)), 2)

    return stage


_Batch = list[tuple[Item, Begin]]
"""Items with the headers of their frames; an empty batch stands for a flush mark."""

_Decoded = list[tuple[Item, bytes | None]]
"""Items with their plaintext; None for everything but independent blocks."""


def _batches(upstream: Iterator[Buffer]) -> Iterator[_Batch]:
    """Collect items in batches for the workers."""
    splitter = Splitter()
    begin = Begin(0, 0)
    for buffer in upstream:
        batch: _Batch = []
        room = _BATCH
        for item in splitter.feed(buffer):
            begin = item if isinstance(item, Begin) else begin
            batch.append((item, begin))
            if isinstance(item, Block):
                room -= min(len(item.data) * _EXPANSION, begin.block_size)
            if room <= 0:
                yield batch
                batch, room = [], _BATCH
        if batch:
            yield batch
        if not len(buffer):
            yield []
    splitter.close()


def _decode_batch(batch: _Batch) -> _Decoded:
    """On a worker: check the blocks' checksums, and decode the independent ones."""
    decoded: _Decoded = []
    for item, begin in batch:
        plain = None
        if isinstance(item, Block):
            if item.checksum is not None and xxhash.xxh32_intdigest(item.data) != item.checksum:
                what = f"the lz4 block at byte {item.offset} is corrupt: checksum mismatch"
                raise IntegrityError(what, offset=item.offset)
            plain = _decode(item, begin, b"") if begin.independent else None
        decoded.append((item, plain))
    return decoded


def _decode(item: Block, begin: Begin, window: bytes) -> bytes:
    if item.stored:
        return item.data
    try:
        return bytes(lz4.block.decompress(item.data, uncompressed_size=begin.block_size, dict=window))
    except (lz4.block.LZ4BlockError, ValueError) as error:
        what = f"the lz4 block at byte {item.offset} is corrupt: {error}"
        raise IntegrityError(what, offset=item.offset) from error


class _Frames:
    """The state between blocks: the frame's header, its size and digest so far, and the plaintext that is held."""

    def __init__(self) -> None:
        self.held = Held()
        self._begin = Begin(0, 0)
        self._window = b""
        self._size = 0
        self._digest = xxhash.xxh32()

    def take(self, item: Item, plain: bytes | None) -> list[bytes]:
        """Take the next item, with its plaintext from a worker; return the plaintext that may leave."""
        begin = self._begin
        if isinstance(item, Block):
            if plain is None:
                plain = _decode(item, begin, self._window)
                self._window = (self._window + plain[-_WINDOW:])[-_WINDOW:]
            self._size += len(plain)
            limit = begin.content_size
            if limit is not None and self._size > limit:
                what = f"the lz4 frame has more than the {limit} bytes that it declares"
                raise IntegrityError(what, offset=item.offset)
            if begin.checksum:
                self._digest.update(plain)
            return [plain] if begin.block_checksums else self.held.add(plain)
        if isinstance(item, End):
            what = f"the lz4 frame that begins at byte {begin.offset}"
            if begin.content_size not in (None, self._size):
                what += f" has {self._size} bytes, not the {begin.content_size} that it declares"
                raise IntegrityError(what, offset=item.offset)
            if item.checksum is not None and self._digest.intdigest() != item.checksum:
                raise IntegrityError(f"{what} is corrupt: checksum mismatch", offset=item.offset)
        else:
            self._begin, self._window, self._size, self._digest = item, b"", 0, xxhash.xxh32()
        return self.held.release()
