"""gzip (RFC 1952), both ways: members of 1 MiB one after another, which every gunzip reads as one.

Two libraries write them, for neither alone is both as fast and as small as is wanted (docs/measurements.md): ISA-L, and
libdeflate where ISA-L falls behind. Reading, each member is proved by its checksum, and nothing follows the last but
zeros. We read the header ourselves: the libraries let pass what RFC 1952 says a reader must refuse.
"""

from __future__ import annotations

import zlib
from typing import cast

from statepipe.extras import extra
from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import Buffer, Stage
from statepipe.stages.blocks import in_blocks
from statepipe.stages.joined import Corrupt, Format, reader

with extra("gzip"):
    import deflate
    from isal import igzip_lib, isal_zlib

MEMBER_SIZE = 1 << 20
"""Plain bytes in a member. deflate looks back 32 KiB, so larger ones gain nothing."""

MAGIC = b"\x1f\x8b\x08"
_HEADER = MAGIC + bytes(6) + b"\xff"
"""No flags, no time, of no particular system: what does not depend on the data is the same every time."""

_BEGINNING = _HEADER[:8]
"""What each member of ours begins with, and each that `gzip -n` or Python wrote: no name and no time."""

_SAMPLE = 16 << 10
_MIDDLING = range(_SAMPLE * 4 // 10, _SAMPLE * 8 // 10)
"""Where a block's sample packs to this much, ISA-L's output is up to 20 % larger than gzip -1's (text-like and mixed
pages); below and above the two are within 2 %."""


def compress(level: int) -> Stage:
    """A stage that writes gzip: level 1 as small as `gzip -1`, 2 to 12 as libdeflate knows them."""
    return in_blocks(lambda plain: _member(plain, level), MEMBER_SIZE)


def _member(plain: Buffer, level: int) -> bytes:
    packed = deflate.deflate_compress(plain, level) if level > 1 else _quick(plain)
    sizes = isal_zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    return b"".join((_HEADER, packed, sizes))


def _quick(plain: Buffer) -> Buffer:
    """ISA-L is three times as fast; libdeflate takes what it is not good at."""
    middle = max(len(plain) - _SAMPLE, 0) // 2
    if len(_isal(memoryview(plain)[middle : middle + _SAMPLE], 1)) in _MIDDLING:
        return deflate.deflate_compress(plain, 2)
    return _isal(plain, 2)


def _isal(plain: Buffer, level: int) -> bytes:
    """With a small buffer it makes more blocks, each with codes that fit: 60.0 MB against 60.8."""
    return igzip_lib.compress(plain, level, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_SMALL)


def decompress(memory: int = MEMORY) -> Stage:
    """A stage that decodes gzip. Raises IntegrityError and TruncatedError with the compressed offset.

    It takes less than 10 MiB: `memory`, which all codecs have, changes nothing.
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
        """The next plain bytes, `max_length` at most. Raises Corrupt, and what ISA-L raises."""
        if self._inflate is None:
            self._ends += data
            length = header_length(self._ends)
            if length is None:
                return b""
            data = bytes(self._ends[length:])
            self._ends.clear()
            self._inflate = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)
        return self._deflated(self._inflate, data, max_length)

    def _deflated(self, inflate: igzip_lib.IgzipDecompressor, data: bytes, max_length: int) -> bytes:
        plain = b""
        if not inflate.eof:
            plain = inflate.decompress(data, max_length)
            self._crc = isal_zlib.crc32(plain, self._crc)
            self._size += len(plain)
            data = inflate.unused_data
        self.needs_input = inflate.eof or inflate.needs_input
        if inflate.eof:
            self._check(data)
        return plain

    def _check(self, data: bytes) -> None:
        self._ends += data
        if len(self._ends) < 8:
            return
        if int.from_bytes(self._ends[:4], "little") != self._crc:
            raise Corrupt("checksum mismatch")
        if int.from_bytes(self._ends[4:8], "little") != self._size & 0xFFFFFFFF:
            raise Corrupt("its size is another")
        self.eof, self.unused_data = True, bytes(self._ends[8:])


HEADER_LIMIT = 256 << 10
"""Bytes of a header: an extra field has 64 KiB, a name is no longer than a path; more is nobody's."""

_CHECKED, _EXTRA, _NAME, _COMMENT, _RESERVED = 2, 4, 8, 16, 0xE0


def header_length(data: bytearray) -> int | None:
    """The length of the header that `data` begin with, None while it has not all arrived (RFC 1952 section 2.3).

    Raises Corrupt for what a reader must refuse: another method than deflate, reserved flags, a wrong checksum.
    """
    if not data.startswith(MAGIC[: len(data)]):
        raise Corrupt("it is not deflate")
    if len(data) < 10:
        return None
    flags = data[3]
    if flags & _RESERVED:
        raise Corrupt("reserved flags are set")
    length = _fields_end(data, flags)
    if length is None and len(data) > HEADER_LIMIT:
        raise Corrupt("its header does not end")
    if length is None or not flags & _CHECKED:
        return length
    return _checked_length(data, length)


def _fields_end(data: bytearray, flags: int) -> int | None:
    end = 10
    if flags & _EXTRA:
        end += 2 + int.from_bytes(data[10:12], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            zero = data.find(0, end)
            if zero < 0:
                return None
            end = zero + 1
    return end if len(data) >= end else None


def _checked_length(data: bytearray, length: int) -> int | None:
    if len(data) < length + 2:
        return None
    if zlib.crc32(data[:length]) & 0xFFFF != int.from_bytes(data[length : length + 2], "little"):
        raise Corrupt("checksum mismatch in its header")
    return length + 2


_FORMAT = Format(
    name="gzip",
    begin=_Member,
    errors=(Corrupt, cast("type[Exception]", igzip_lib.IsalError)),  # isal's stub says that it is an instance
    find=lambda data, start: data.find(_BEGINNING, start),
    magic=MAGIC,
    limit=2 * MEMBER_SIZE,
    padding=1,
    padded_last=True,
)
