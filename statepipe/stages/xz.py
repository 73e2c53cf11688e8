"""xz, both ways: a separate stream for each block, which every xz reads as one.

Such streams are decoded on all cores. A single stream of many blocks, as `xz -T2` writes it, is decoded on one core, at
58 MB/s (`xz -T2 -d`: 133). Its blocks have their lengths, but at xz's default level each has 24 MiB: six in flight,
with their compressed bytes, would need 200 MB, and fewer would not run in parallel.
"""

from __future__ import annotations

import lzma

from statepipe.formats.zstdframe import MEMORY, beyond
from statepipe.stage import Buffer, Stage
from statepipe.stages.blocks import in_blocks
from statepipe.stages.joined import Format, reader

BLOCK_SIZE = 4 << 20
"""Plain bytes in a stream, and the largest useful dictionary."""

_MEMORY, _MEMORY_QUICK = 60 << 20, 16 << 20
"""Bytes needed to compress a block, from level 2 on (measured), and below."""

_MAGIC = b"\xfd7zXZ\0"


def compress(level: int) -> Stage:
    """Return a stage that writes xz streams of BLOCK_SIZE plain bytes with CRC64, at xz's levels 0 to 9."""
    dictionary = (256 << 10, 1 << 20)[level] if level < 2 else BLOCK_SIZE  # xz(1), -0 ... -9; from 2 on, it is larger
    filters = [{"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": dictionary}]

    def pack(plain: Buffer) -> bytes:
        return lzma.compress(plain, filters=filters)

    return in_blocks(pack, BLOCK_SIZE, _MEMORY if level > 1 else _MEMORY_QUICK)


def decompress(memory: int = MEMORY) -> Stage:
    """Return a stage that decodes xz. Raises IntegrityError and TruncatedError with the compressed offset.

    `memory`: bytes that a decoder may need. `xz -9` needs 65 MiB, but ten bytes of header can ask for a dictionary of
    4 GiB. A stream that needs more is an IntegrityError.
    """
    return reader(
        Format(
            name="xz",
            begin=lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory),
            errors=(lzma.LZMAError,),
            find=lambda data, start: data.find(_MAGIC, start),
            magic=_MAGIC,
            limit=BLOCK_SIZE + (64 << 10),
            padding=4,
            beyond=lambda what, error, offset: beyond(what, None, memory, offset) if _LIMIT in str(error) else None,
        )
    )


_LIMIT = "Memory usage limit"
"""The message of lzma for LZMA_MEMLIMIT_ERROR, which has no exception type of its own."""
