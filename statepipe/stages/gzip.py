"""gzip (RFC 1952), both ways: members of 1 MiB one after another, which every gunzip reads as one stream.

Two libraries write them, because neither alone is both fast and small enough (docs/measurements.md): ISA-L, and
libdeflate for data that ISA-L compresses badly. The reader checks each member's checksum, and only zeros may follow the
last. It parses the header itself: the libraries accept headers that RFC 1952 says a reader must refuse.
"""

from __future__ import annotations

import zlib

from statepipe.extras import extra
from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import Buffer, Stage
from statepipe.stages.blocks import in_blocks
from statepipe.stages.joined import Corrupt, Format, reader
from statepipe.typed import cast

with extra("gzip"):
    import deflate
    from isal import igzip_lib, isal_zlib

MEMBER_SIZE = 1 << 20
"""Plain bytes in a member. deflate looks back 32 KiB, so larger ones gain nothing."""

MAGIC = b"\x1f\x8b\x08"
_HEADER = MAGIC + bytes(6) + b"\xff"
"""No flags, no time, an unknown system: the output depends on the data alone."""

_BEGINNING = _HEADER[:8]
"""The beginning of each member that we, `gzip -n` or Python wrote: no name and no time."""

_SAMPLE = 16 << 10
_MIDDLING = range(_SAMPLE * 4 // 10, _SAMPLE * 8 // 10)
"""If a block's sample compresses to this size, ISA-L's output is up to 20 % larger than gzip -1's (text-like and mixed
pages); below and above, the two are within 2 %."""


def compress(level: int) -> Stage:
    """Return a stage that writes gzip: level 1 is as small as `gzip -1`, 2 to 12 are libdeflate's levels."""

    def member(plain: Buffer) -> bytes:
        packed = deflate.deflate_compress(plain, level) if level > 1 else _quick(plain)
        checksum = isal_zlib.crc32(plain).to_bytes(4, "little")
        return b"".join((_HEADER, packed, checksum, len(plain).to_bytes(4, "little")))

    return in_blocks(member, MEMBER_SIZE)


def _quick(plain: Buffer) -> Buffer:
    """Compress with ISA-L, which is three times as fast, or with libdeflate if ISA-L is bad at these data."""
    middle = max(len(plain) - _SAMPLE, 0) // 2
    if len(_isal(memoryview(plain)[middle : middle + _SAMPLE], 1)) in _MIDDLING:
        return deflate.deflate_compress(plain, 2)
    return _isal(plain, 2)


def _isal(plain: Buffer, level: int) -> bytes:
    """With a small buffer, ISA-L writes more blocks, each with better codes: 60.0 MB instead of 60.8."""
    return igzip_lib.compress(plain, level, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_SMALL)


def decompress(memory: int = MEMORY) -> Stage:
    """Return a stage that decodes gzip. Raises IntegrityError and TruncatedError with the compressed offset.

    `memory` is not used: the decoder needs less than 10 MiB.
    """
    return reader(_FORMAT)


class _Member:
    """Decodes one member: header, deflate, checksum and size."""

    def __init__(self) -> None:
        self.eof = False
        self.needs_input = True
        self.unused_data = b""
        self._ends = bytearray()  # the header until it is whole, then the trailer
        self._inflate: igzip_lib.IgzipDecompressor | None = None
        self._crc = self._size = 0

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return the next plain bytes, at most `max_length`. Raises Corrupt and ISA-L's errors."""
        if self._inflate is None:
            self._ends += data
            length = header_length(self._ends)
            if length is None:
                return b""
            data = bytes(self._ends[length:])
            self._ends.clear()
            self._inflate = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)
        inflate, plain = self._inflate, b""
        if not inflate.eof:
            plain = inflate.decompress(data, max_length)
            self._crc = isal_zlib.crc32(plain, self._crc)
            self._size += len(plain)
            data = inflate.unused_data
        self.needs_input = inflate.eof or inflate.needs_input
        if inflate.eof:
            self._ends += data
            if len(self._ends) >= 8:
                if int.from_bytes(self._ends[:4], "little") != self._crc:
                    raise Corrupt("checksum mismatch")
                if int.from_bytes(self._ends[4:8], "little") != self._size & 0xFFFFFFFF:
                    raise Corrupt("size mismatch")
                self.eof, self.unused_data = True, bytes(self._ends[8:])
        return plain


HEADER_LIMIT = 256 << 10
"""Bytes of a header: an extra field has at most 64 KiB, and a name is no longer than a path."""

_CHECKED, _EXTRA, _NAME, _COMMENT, _RESERVED = 2, 4, 8, 16, 0xE0


def header_length(data: bytearray) -> int | None:
    """Return the length of the header at the start of `data`, or None while part of it is missing (RFC 1952, 2.3).

    Raises Corrupt for headers that a reader must refuse: a method other than deflate, reserved flags, a wrong checksum.
    """
    if not data.startswith(MAGIC[: len(data)]):
        raise Corrupt("its compression method is not deflate")
    if len(data) < 10:
        return None
    flags = data[3]
    if flags & _RESERVED:
        raise Corrupt("reserved flags are set")
    end: int | None = 10
    if flags & _EXTRA:
        end = 12 + int.from_bytes(data[10:12], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag and end is not None:
            zero = data.find(0, end)
            end = None if zero < 0 else zero + 1
    if end is None or len(data) < end:
        if len(data) > HEADER_LIMIT:
            raise Corrupt("its header is too long")
        return None
    if not flags & _CHECKED:
        return end
    if len(data) < end + 2:
        return None
    if zlib.crc32(data[:end]) & 0xFFFF != int.from_bytes(data[end : end + 2], "little"):
        raise Corrupt("header checksum mismatch")
    return end + 2


_FORMAT = Format(
    name="gzip",
    begin=_Member,
    errors=(Corrupt, cast("type[Exception]", igzip_lib.IsalError)),  # its stub wrongly says that it is an instance
    find=lambda data, start: data.find(_BEGINNING, start),
    magic=MAGIC,
    limit=2 * MEMBER_SIZE,
    padding=1,
    padded_last=True,
)
