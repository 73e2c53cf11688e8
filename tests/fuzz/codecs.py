"""The doors for compressed bytes: each codec's reader, on all cores and cut into buffers anyhow."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from random import Random

import lz4.block
import lz4.frame
import xxhash
import zstandard

from statepipe.formats.lz4frame import Splitter
from statepipe.formats.zstdframe import FrameSplitter
from statepipe.stages.codec import CODECS, compress, decompress
from tests.fuzz.harness import Door
from tests.fuzz.mutation import LARGE, mutated, portions

PLAIN = b"".join(bytes([at % 251]) * (at % 97) for at in range(3000))
SKIPPED = struct.pack("<II", 0x184D2A53, 0)
"""An empty skippable frame: of zstd as of lz4."""

LIMIT = 64 << 20
"""Plain bytes after which a bomb is believed."""


def unpack(data: bytes) -> None:
    """Whatever codec it turns out to be."""
    total = 0
    for buffer in decompress()(iter(portions(data))):
        total += len(buffer)
        if total > LIMIT:
            break


def walk(data: bytes) -> None:
    """Only where frames begin and end."""
    for splitter in (FrameSplitter(), Splitter()):
        try:
            for part in portions(data):
                for item in splitter.feed(part):
                    assert item.offset >= 0
            splitter.close()
        except ValueError as error:
            raise AssertionError from error


def packed(name: str) -> Callable[[Random], bytes]:
    """Makes inputs of one codec: ours and others', several in a row, with changes."""
    good = b"".join(compress(name)(iter([PLAIN[:100_000], b"", PLAIN[:10]])))
    foreign = [good, *_OTHERS[name]]

    def make(random: Random) -> bytes:
        data = b"".join(random.choice(foreign) for _ in range(random.choice((1, 1, 2, 4))))
        if name in ("zstd", "lz4") and random.random() < 0.2:
            at = random.choice((0, len(data)))
            data = data[:at] + SKIPPED * random.choice((1, 100, 5000)) + data[at:]
        if random.random() < 0.3:
            data = random.choice(_HEADS[name])(random) + random.choice((b"", data, random.randbytes(40)))
        return mutated(random, data, foreign) if random.random() < 0.8 else data

    return make


def _zstd_head(random: Random) -> bytes:
    """A frame of any window and size, and a block or a thousand."""
    window, size = random.randrange(256), random.choice(LARGE)
    head = struct.pack("<I", 0xFD2FB528) + random.choice(
        (bytes([0, window]), bytes([0xC0, window]) + struct.pack("<Q", size), bytes([4, window]), bytes([0x20, window]))
    )
    block = (random.choice((1 << 17, 7, 1)) << 3 | random.choice((0, 2, 2, 4)) | random.randrange(2)).to_bytes(
        3, "little"
    )
    return head + (block + b"x") * random.choice((1, 3, 1000)) + random.randbytes(4)


def _lz4_head(random: Random) -> bytes:
    flags = random.choice((0x40, 0x60, 0x6C, 0x64, 0x70, 0x48, 0x41, random.randrange(256)))
    descriptor = bytes([flags, random.choice((0x40, 0x50, 0x60, 0x70, random.randrange(256)))])
    descriptor += struct.pack("<Q", random.choice(LARGE)) if flags & 8 else b""
    head = struct.pack("<I", 0x184D2204) + descriptor + bytes([xxhash.xxh32_intdigest(descriptor) >> 8 & 255])
    words = [struct.pack("<I", random.choice((0, 1, 1 << 31, 5, 1 << 22, (1 << 31) + 3))) for _ in range(4)]
    return random.choice((head, struct.pack("<I", 0x184C2102))) + random.choice((b"", b"abc")).join(words)


def _lzma_head(random: Random) -> bytes:
    """As xz writes it, but for a dictionary of any size (xz-file-format.txt, 3.1 and 5.3.1)."""
    import zlib

    flags = b"\0" + bytes([random.choice((0, 1, 4, 10))])
    header = bytes([2, 0, 0x21, 1, random.randrange(41)]) + bytes(3)
    header += struct.pack("<I", zlib.crc32(header))
    return b"\xfd7zXZ\0" + flags + struct.pack("<I", zlib.crc32(flags)) + header


def _gzip_head(random: Random) -> bytes:
    flags = random.randrange(256)
    extra = struct.pack("<H", random.choice((0, 5, 65535)))
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + extra + b"name\0" * random.choice((0, 1, 20000))


def _bzip2_head(random: Random) -> bytes:
    return b"BZh" + random.choice((b"1", b"9", b"0", b"a")) + random.choice((b"1AY&SY", b"\x17rE8P\x90")) + bytes(4)


_HEADS = {"zstd": [_zstd_head], "lz4": [_lz4_head], "xz": [_lzma_head], "gzip": [_gzip_head], "bzip2": [_bzip2_head]}

_OTHERS: dict[str, list[bytes]] = {
    "zstd": [
        zstandard.ZstdCompressor(level=3, write_content_size=False).compress(PLAIN),
        zstandard.ZstdCompressor(level=1, write_checksum=True).compress(b""),
        zstandard.ZstdCompressor(level=1).compress(bytes(3 << 20)),
        zstandard.ZstdCompressor(level=1).compress(bytes(20 << 20)),
        SKIPPED,
    ],
    "lz4": [
        lz4.frame.compress(PLAIN),
        lz4.frame.compress(PLAIN, block_linked=True, block_checksum=True, content_checksum=True),
        lz4.frame.compress(bytes(1 << 20), block_size=7),
        struct.pack("<II", 0x184C2102, 15) + lz4.block.compress(b"x" * 3000, store_size=False)[:15],
        SKIPPED,
    ],
    "gzip": [gzip.compress(PLAIN), gzip.compress(b"", mtime=0), gzip.compress(bytes(9 << 20)), bytes(5)],
    "bzip2": [bz2.compress(PLAIN), bz2.compress(b""), bz2.compress(bytes(9 << 20))],
    "xz": [lzma.compress(PLAIN), lzma.compress(b""), lzma.compress(bytes(9 << 20), check=lzma.CHECK_SHA256), bytes(4)],
}

MANY = 5000
"""Frames of nothing in a row, more than Python's stack has room for."""

KNOWN = {
    "zstd": {"skippable frames in a row before the first": lambda: SKIPPED * MANY + _OTHERS["zstd"][0]},
    "lz4": {
        "skippable frames in a row before the first": lambda: SKIPPED * MANY + _OTHERS["lz4"][0],
        "skippable frames in a row behind the last": lambda: _OTHERS["lz4"][0] + SKIPPED * MANY,
    },
}

DOORS = {
    **{codec.name: Door(unpack, packed(codec.name), KNOWN.get(codec.name, {})) for codec in CODECS},
    "splitters": Door(walk, lambda random: packed(random.choice(("zstd", "lz4")))(random)),
}
