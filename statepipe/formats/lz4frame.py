"""LZ4's outer layer: split a stream into frames and blocks without decoding (lz4_Frame_format.md, version 1.6.1).

Every block begins with its length, so a reader can split a stream into blocks as it arrives from a pipe, and decode
independent blocks on all cores. The older frames of `lz4 -l` are read too; they have neither a checksum nor an end,
so only damage that makes decoding fail is found in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.extras import extra
from statepipe.formats.zstdframe import SKIPPABLE_FIRST, SKIPPABLE_LAST
from statepipe.stage import Buffer

with extra("lz4"):
    import xxhash

MAGIC = 0x184D2204
LEGACY_MAGIC = 0x184C2102

LEGACY_BLOCK = 8 << 20
"""Decoded bytes in a block of an older frame."""

_STORED = 1 << 31
"""The bit in a block's size that says that the block is not compressed."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A frame's header. Sizes in bytes; a block decodes to at most `block_size`."""

    offset: int
    block_size: int
    independent: bool = True
    block_checksums: bool = False
    checksum: bool = False
    content_size: int | None = None
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the current frame. `checksum` is that of `data`, or None."""

    offset: int
    data: bytes
    stored: bool
    checksum: int | None


@dataclass(frozen=True, slots=True)
class End:
    """The end of a frame, with the checksum of its content, or None."""

    offset: int
    checksum: int | None


Item = Begin | Block | End


def head() -> bytes:
    """Return a frame's header: independent blocks of up to 1 MiB, block checksums and a content checksum."""
    descriptor = _FLAGS + _ONE_MEBIBYTE
    return MAGIC.to_bytes(4, "little") + descriptor + _header_checksum(descriptor)


def block(data: bytes, *, stored: bool) -> bytes:
    """Return one block of such a frame; `stored`: `data` is not compressed."""
    size = (len(data) | (_STORED if stored else 0)).to_bytes(4, "little")
    return b"".join((size, data, xxhash.xxh32_intdigest(data).to_bytes(4, "little")))


def tail(checksum: int) -> bytes:
    """Return the end of such a frame, with the checksum of its content."""
    return bytes(4) + checksum.to_bytes(4, "little")


_FLAGS = b"\x74"  # version 1, independent blocks, block checksums, content checksum
_ONE_MEBIBYTE = b"\x60"


def _header_checksum(descriptor: bytes | bytearray) -> bytes:
    return bytes((xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF,))


def parse_header(data: bytes | bytearray, offset: int) -> tuple[Begin, int] | None:
    """Return the frame header at the start of `data` and its length, or None while part of it is missing.

    Raises IntegrityError with `offset`.
    """
    if len(data) < 7:
        return None
    flags, sizes = data[4], data[5]
    length = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    if len(data) < length:
        return None
    if _header_checksum(data[4 : length - 1]) != data[length - 1 : length]:
        raise IntegrityError("corrupt lz4 frame header: checksum mismatch", offset=offset)
    if flags >> 6 != 1 or flags & 2 or sizes & 0x8F or sizes >> 4 < 4:
        raise IntegrityError("corrupt lz4 frame header: reserved bits are set", offset=offset)
    if flags & 1:
        raise IntegrityError("the lz4 frame needs a dictionary", offset=offset)
    content = int.from_bytes(data[6:14], "little") if flags & 8 else None
    block_size = 1 << 8 + 2 * (sizes >> 4)
    return Begin(offset, block_size, bool(flags & 0x20), bool(flags & 0x10), bool(flags & 4), content), length


class Splitter:
    """Splits an LZ4 stream into headers, blocks and ends as it arrives. No I/O: `feed` bytes, take items; `close`.

    Raises IntegrityError with the offset of invalid data, TruncatedError for a stream that stops inside a frame.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._start = 0  # stream offset of _held[0]
        self._frame: Begin | None = None
        self._skip = 0

    def feed(self, data: Buffer) -> Iterator[Item]:
        """Take the next bytes; yield each item that they complete."""
        self._held += data
        while (item := self._step()) is not None:
            yield item

    def close(self) -> None:
        """Report the end of the stream. Raises TruncatedError unless it ended between frames."""
        end = self._start + len(self._held)
        if not end:
            raise TruncatedError("the input is empty", offset=0)
        if self._held or self._skip or (self._frame and not self._frame.legacy):
            begin = self._frame.offset if self._frame else self._start
            raise TruncatedError(f"the lz4 stream stops inside the frame that begins at byte {begin}", offset=end)

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._held)[:count])
        del self._held[:count]
        self._start += len(taken)
        return taken

    def _step(self) -> Item | None:
        """Return the next item, or None while part of it is missing."""
        first = int.from_bytes(self._held[:4], "little")
        skips = SKIPPABLE_FIRST <= first <= SKIPPABLE_LAST
        while self._skip or (self._frame is None and skips and len(self._held) >= 8):
            if not self._skip:
                self._skip = int.from_bytes(self._held[4:8], "little")
                self._take(8)
            self._skip -= len(self._take(min(self._skip, len(self._held))))
            if self._skip:
                return None
            first = int.from_bytes(self._held[:4], "little")
            skips = SKIPPABLE_FIRST <= first <= SKIPPABLE_LAST
        if len(self._held) < 4:
            return None
        if self._frame is None:
            return None if skips else self._begin(first)
        return self._block(self._frame, first)

    def _begin(self, magic: int) -> Item | None:
        """Read the header of the frame that begins here."""
        if magic == LEGACY_MAGIC:
            self._frame = Begin(self._start, LEGACY_BLOCK, legacy=True)
            self._take(4)
            return self._frame
        if magic != MAGIC:
            what = "trailing garbage" if self._start else "not an lz4 stream"
            found = bytes(self._held[:4]).hex()
            raise IntegrityError(f"{what}: {found} does not begin an lz4 frame", offset=self._start)
        parsed = parse_header(self._held, self._start)
        if parsed is None:
            return None
        self._frame, length = parsed
        self._take(length)
        return self._frame

    def _block(self, frame: Begin, word: int) -> Item | None:
        """Read the block, or the end of the frame, that begins with `word`.

        An older frame has no end of its own: it ends where the stream ends or another frame begins.
        """
        if frame.legacy and (word in (MAGIC, LEGACY_MAGIC) or SKIPPABLE_FIRST <= word <= SKIPPABLE_LAST):
            self._frame = None
            return End(self._start, None)
        if not frame.legacy and not word:
            length = 8 if frame.checksum else 4
            if len(self._held) < length:
                return None
            offset, data = self._start, self._take(length)
            self._frame = None
            return End(offset, int.from_bytes(data[4:], "little") if frame.checksum else None)
        size = word if frame.legacy else word & ~_STORED
        if size > (LEGACY_BLOCK + LEGACY_BLOCK // 255 + 16 if frame.legacy else frame.block_size):
            raise IntegrityError(f"corrupt lz4 block: its size, {size} bytes, is above the limit", offset=self._start)
        more = 4 if frame.block_checksums else 0
        if len(self._held) < 4 + size + more:
            return None
        offset, data = self._start, self._take(4 + size)[4:]
        checksum = int.from_bytes(self._take(4), "little") if more else None
        return Block(offset, data, not frame.legacy and bool(word & _STORED), checksum)
