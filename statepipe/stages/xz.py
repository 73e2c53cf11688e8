"""xz, both ways: a stream for each block, which every xz reads as one.

Reading, streams that were joined so are decoded on all cores; one stream of many blocks, as `xz -T2` writes it, by
one core, at 58 MB/s where `xz -T2 -d` has 133. Its blocks say how long they are, but at xz's default level they hold
24 MiB each: the six in flight and what they came from would take 200 MB of memory, and less than that is not parallel.
"""

from __future__ import annotations

import lzma

from statepipe.formats.zstdframe import MEMORY, beyond
from statepipe.stage import Buffer, Stage
from statepipe.stages.blocks import in_blocks
from statepipe.stages.joined import Format, reader

BLOCK_SIZE = 4 << 20
"""Plain bytes in a stream; also the dictionary, as more could hold nothing."""

_MEMORY, _MEMORY_QUICK = 60 << 20, 16 << 20
"""Bytes that it takes to compress a block, from level 2 on (measured), and below."""

_MAGIC = b"\xfd7zXZ\0"


def compress(level: int) -> Stage:
    """A stage that writes xz streams of BLOCK_SIZE bytes with CRC64, at xz's levels 0 to 9."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": min(BLOCK_SIZE, _dictionary(level))}]

    def pack(plain: Buffer) -> bytes:
        return lzma.compress(plain, filters=filters)

    return in_blocks(pack, BLOCK_SIZE, _MEMORY if level > 1 else _MEMORY_QUICK)


def _dictionary(level: int) -> int:
    """xz(1), -0 ... -9: 256 KiB at level 0, 1 MiB at 1, then larger than a block."""
    return (256 << 10, 1 << 20)[level] if level < 2 else BLOCK_SIZE


def decompress(memory: int = MEMORY) -> Stage:
    """A stage that decodes xz. Raises IntegrityError and TruncatedError with the compressed offset.

    `memory`: what a decoder may take, in bytes: `xz -9` needs 65 MiB, but a dictionary of 4 GiB is ten bytes of
    header. A stream that needs more is an IntegrityError that says so.
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
"""How lzma says that a stream needs more than it may take: liblzma's LZMA_MEMLIMIT_ERROR has no type of its own."""
