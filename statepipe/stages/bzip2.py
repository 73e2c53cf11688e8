"""bzip2, both ways: many short streams, which every bunzip2 reads as one, as pbzip2 writes them.

A stream of many blocks, as bzip2 and lbzip2 write them, is decoded by one core at about 25 MB/s: its blocks begin in
the middle of bytes, and to decode them apart takes a search at every bit, as lbunzip2 does it with a decoder of its
own. libbz2 has none, and who hurries does not choose bzip2.
"""

from __future__ import annotations

import bz2

from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import Stage
from statepipe.stages.blocks import in_blocks
from statepipe.stages.joined import Format, reader

_BLOCK = b"1AY&SY"
"""What a block begins with, and so a stream after its first four bytes."""

_MEMORY = 8 << 20
"""Bytes that it takes to compress a block of 900 kB: bzip2(1), MEMORY MANAGEMENT, has 7600 kB."""

_LIMIT = 1 << 20
"""Compressed bytes of a stream that is decoded whole. Ours have 0.91 MB at the most, of random bytes at level 9."""


def compress(level: int) -> Stage:
    """A stage that writes bzip2 streams that hold `level` times 100,000 bytes each.

    That is a block, as a rule. bzip2 counts a block after its run-length coding and fills it up to 19 bytes below that
    size (compress.c, nblockMAX), so bytes that do not run make a second one of the last 19.
    """
    return in_blocks(lambda plain: bz2.compress(plain, level), level * 100_000, _MEMORY)


def decompress(memory: int = MEMORY) -> Stage:
    """A stage that decodes bzip2. Raises IntegrityError and TruncatedError with the compressed offset.

    It takes less than 10 MiB: `memory`, which all codecs have, changes nothing.
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
