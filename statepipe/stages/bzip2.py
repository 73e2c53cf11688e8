"""bzip2, both ways: many short streams, as pbzip2 writes them, which every bunzip2 reads as one.

A stream of many blocks, as bzip2 and lbzip2 write them, is decoded on one core at about 25 MB/s. Its blocks begin in
the middle of bytes; finding them takes a search at every bit (as in lbunzip2), which libbz2 does not offer.
"""

from __future__ import annotations

import bz2

from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import Stage
from statepipe.stages.blocks import in_blocks
from statepipe.stages.joined import Format, reader

_BLOCK = b"1AY&SY"
"""The beginning of a block, which follows the first four bytes of a stream."""

_MEMORY = 8 << 20
"""Bytes needed to compress a block of 900 kB: bzip2(1), MEMORY MANAGEMENT, says 7600 kB."""

_LIMIT = 1 << 20
"""Compressed bytes of a stream that is decoded whole. Ours have at most 0.91 MB (random bytes at level 9)."""


def compress(level: int) -> Stage:
    """Return a stage that writes bzip2 streams of `level` times 100,000 plain bytes each.

    That is usually one block. bzip2 counts a block's bytes after its run-length coding and stops 19 bytes below that
    size (compress.c, nblockMAX), so data without runs needs a second block for the last 19.
    """
    return in_blocks(lambda plain: bz2.compress(plain, level), level * 100_000, _MEMORY)


def decompress(memory: int = MEMORY) -> Stage:
    """Return a stage that decodes bzip2. Raises IntegrityError and TruncatedError with the compressed offset.

    `memory` is not used: the decoder needs less than 10 MiB.
    """
    return reader(_FORMAT)


def _find(data: bytes | bytearray, start: int) -> int:
    while (at := data.find(b"BZh", start)) >= 0:
        if data[at + 4 : at + 10] == _BLOCK:
            return at
        start = at + 1
    return -1


_FORMAT = Format(
    name="bzip2",
    begin=bz2.BZ2Decompressor,
    errors=(OSError, ValueError),
    find=_find,
    magic=b"BZh",
    limit=_LIMIT,
)
