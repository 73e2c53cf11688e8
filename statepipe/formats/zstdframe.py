"""Zstandard's outer layer: find where frames begin and end without decoding them (RFC 8878 section 3.1).

A zstd file is a sequence of frames, each of which can be decoded alone. The three-byte block headers lead to the end
of a frame without a decoder and without a size field, so a reader can split any file of several frames as it arrives
from a pipe, and decode the frames on all cores. A frame that decodes to more than `WHOLE_LIMIT` bytes is passed on
in parts, for a streaming decoder.
"""

from __future__ import annotations

from collections.abc import Iterator

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import Buffer, gather
from statepipe.typed import NamedTuple
from statepipe.units import format_size

FRAME_MAGIC = 0xFD2FB528
SKIPPABLE_FIRST, SKIPPABLE_LAST = 0x184D2A50, 0x184D2A5F
SEEK_TABLE_MAGIC = 0x184D2A5E

BLOCK_LIMIT = 128 << 10
"""No block decodes to more (RFC 8878 section 3.1.1.2)."""

WHOLE_LIMIT = 8 << 20
"""A frame that decodes to more bytes than this is streamed. pzstd's frames at its default level (64 full blocks and
an empty one) still go to the pool whole, and four of the largest in flight stay under 40 MiB."""

PART_LIMIT = 2 << 20
"""A part of a streamed frame decodes to at most this many bytes, except the first part, which was kept as a frame
until it proved too large."""

MEMORY = 128 << 20
"""The largest window in bytes that a reader allows by default, as zstd(1) does. `zstd --long` writes this window,
`--long=31` one of 2 GiB."""

KEPT_LIMIT = 1 << 20
"""A skippable frame with at most this many bytes of payload is passed on whole; a longer one in pieces, as they
arrive."""


class Skippable(NamedTuple):
    """A skippable frame, or a piece of one: metadata for programs that know its magic.

    `length` is the size of the whole payload; `data` is the part of it that begins at offset `at`. Only a payload
    longer than KEPT_LIMIT comes in several parts.
    """

    offset: int
    magic: int
    length: int
    at: int
    data: bytes


class Frame(NamedTuple):
    """A whole frame, and the number of bytes that it decodes to if its header says so."""

    offset: int
    data: bytes
    content_size: int | None


class Part(NamedTuple):
    """A part of a frame that is too large to keep; `last` marks the final part."""

    offset: int
    data: bytes
    last: bool


Piece = Skippable | Frame | Part


def skippable(magic: int, payload: bytes) -> bytes:
    """Return a skippable frame around `payload`."""
    return magic.to_bytes(4, "little") + len(payload).to_bytes(4, "little") + payload


def beyond(what: str, needed: int | None, memory: int, offset: int) -> IntegrityError:
    """Return the error for data that needs more memory to decode than is allowed (bytes). `offset`: where it begins."""
    lacking = "more memory" if needed is None else f"{format_size(needed)} of memory"
    more = "SIZE" if needed is None else f"{needed + (1 << 20) - 1 >> 20}M"
    hint = f"if you trust the sender: statepipe decompress --memory {more}, or in a chain decompress:memory={more}"
    return IntegrityError(f"{what} needs {lacking}, of {format_size(memory)} allowed", hint=hint, offset=offset)


HEADER_LIMIT = 18
"""Bytes of a frame's magic and header at most (RFC 8878 section 3.1.1.1)."""


class FrameHeader(NamedTuple):
    """The fields in a frame's first 2 to 18 bytes (RFC 8878 section 3.1.1.1). Sizes in bytes."""

    length: int
    window: int
    content_size: int | None
    checksum: bool
    dictionary: int


def parse_header(data: bytes | bytearray, start: int, offset: int) -> FrameHeader | None:
    """Return the frame header at `start`, or None while part of it is missing. Raises IntegrityError with `offset`."""
    if len(data) < start + 5:
        return None
    descriptor = data[start + 4]
    single = descriptor >> 5 & 1
    size_code = descriptor >> 6
    size_bytes = (single, 2, 4, 8)[size_code]
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    length = 5 + (1 - single) + dictionary_bytes + size_bytes
    if descriptor & 8:
        raise IntegrityError("corrupt zstd frame header: reserved bit set", offset=offset + 4)
    if len(data) < start + length:
        return None
    position = start + 5 + (1 - single)
    dictionary = int.from_bytes(data[position : position + dictionary_bytes], "little")
    position += dictionary_bytes
    content = int.from_bytes(data[position : position + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    window = content
    if not single:  # an exponent and a mantissa (RFC 8878 section 3.1.1.1.2)
        base = 1 << (10 + (data[start + 5] >> 3))
        window = base + (base >> 3) * (data[start + 5] & 7)
    return FrameHeader(length, window, content if size_bytes else None, bool(descriptor & 4), dictionary)


class _Held:
    """Bytes that have arrived and not been taken, in the buffers they came in: what is taken is copied only once."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._taken = 0  # bytes of the first buffer
        self.size = 0

    def add(self, data: Buffer) -> None:
        """Append bytes."""
        if len(data):
            gather(self._buffers, data)
            self.size += len(data)

    def look(self, at: int, count: int) -> bytes:
        """Return a few bytes at an index, without taking them; fewer at the end."""
        buffers = self._buffers
        if buffers and (place := at + len(buffers[-1]) - self.size) >= 0:  # usually
            return bytes(buffers[-1][place : place + count])
        index, start = len(buffers), self.size
        while index and start > at:
            index -= 1
            start -= len(buffers[index])
        found = bytes(buffers[index][at - start : at - start + count]) if index < len(buffers) else b""
        for buffer in buffers[index + 1 :]:
            if len(found) == count:
                break
            found += buffer[: count - len(found)]
        return found

    def take(self, count: int) -> bytes:
        """Return the first bytes, of which there are at least `count`, and drop them."""
        parts, left, whole = [], count, 0
        for buffer in self._buffers:
            part = memoryview(buffer)[self._taken : self._taken + left]
            parts.append(part)
            left -= len(part)
            self._taken += len(part)
            if self._taken == len(buffer):
                whole, self._taken = whole + 1, 0
            if not left:
                break
        del self._buffers[:whole]
        self.size -= count
        return b"".join(parts)


class FrameSplitter:
    """Splits a zstd stream into pieces as it arrives. No I/O: `feed` bytes, take pieces; `close` at the end.

    Raises IntegrityError with the offset of what cannot be a frame, and TruncatedError for a stream that stops inside
    a frame. If `memory` is given, a frame with a window of more than `memory` bytes raises IntegrityError too: a
    decoder would need that much memory, and a damaged header looks the same.
    """

    def __init__(self, memory: int | None = None) -> None:
        self._memory = memory
        self._held = _Held()
        self._start = 0  # stream offset of the first byte held
        self._frame_offset = 0
        self._header: FrameHeader | None = None
        self._next_block = 0  # index of the next block header in what is held
        self._end: int | None = None  # index there of the frame's end, once its last block is known
        self._blocks = self._part_blocks = 0  # in the frame; since its last part
        self._parts = False
        self._skip: tuple[int, int, int] | None = None  # a long skippable frame: magic, length, bytes passed on

    def feed(self, data: Buffer) -> Iterator[Piece]:
        """Take the next bytes; yield each piece that they complete."""
        self._held.add(data)
        while (piece := self._step()) is not None:
            yield piece

    def close(self) -> None:
        """Report the end of the stream. Raises TruncatedError unless it ended between frames."""
        if self._held.size or self._skip or self._parts:
            raise TruncatedError(
                f"the zstd stream stops inside the frame that begins at byte {self._frame_offset}",
                offset=self._start + self._held.size,
            )

    def _step(self) -> Piece | None:
        if self._skip:
            return self._skipped(*self._skip)
        return self._walk(self._header) if self._header else self._begin()

    def _take(self, count: int) -> bytes:
        self._start += count
        return self._held.take(count)

    def _skipped(self, magic: int, length: int, at: int) -> Piece | None:
        """Return the next part of a long skippable frame, or None if no more bytes have arrived."""
        data = self._take(min(length - at, self._held.size))
        if not data:
            return None
        out = at + len(data)
        self._skip = (magic, length, out) if out < length else None
        return Skippable(self._frame_offset, magic, length, at, data)

    def _begin(self) -> Piece | None:
        """At a frame's first byte: take a skippable frame, or read the header of a data frame."""
        offset = self._frame_offset = self._start
        head = self._held.look(0, HEADER_LIMIT)
        if len(head) < 4:
            return None
        magic = int.from_bytes(head[:4], "little")
        if SKIPPABLE_FIRST <= magic <= SKIPPABLE_LAST:
            if len(head) < 8:
                return None
            size = int.from_bytes(head[4:8], "little")
            if size > KEPT_LIMIT:
                self._take(8)
                self._skip = magic, size, 0
                return self._skipped(*self._skip)
            if self._held.size < 8 + size:
                return None
            self._take(8)
            return Skippable(offset, magic, size, 0, self._take(size))
        if magic != FRAME_MAGIC:
            what = "trailing garbage" if offset else "not a zstd stream"
            raise IntegrityError(f"{what}: {head[:4].hex()} does not begin a zstd frame", offset=offset)
        header = parse_header(head, 0, offset)
        if header is None:
            return None
        if header.dictionary:
            raise IntegrityError(f"the frame needs dictionary {header.dictionary}", offset=offset)
        if self._memory is not None and header.window > self._memory:
            raise beyond(f"the zstd frame at byte {offset}", header.window, self._memory, offset)
        self._header, self._next_block, self._end = header, header.length, None
        self._blocks = self._part_blocks = 0
        return self._walk(header)

    def _walk(self, header: FrameHeader) -> Piece | None:
        """Step from block header to block header as far as bytes have arrived; return the frame or a part of it.

        RFC 8878 section 3.1.1.2: a block header has a last-block bit, a type (1 is RLE, 3 reserved), and a size.
        """
        while self._end is None and self._held.size >= self._next_block + 3:
            # Without this limit, a small piece of a malicious file could decode to gigabytes.
            limit = PART_LIMIT if self._parts else WHOLE_LIMIT + BLOCK_LIMIT
            if self._part_blocks * BLOCK_LIMIT > limit and not self._is_declared_small(header):
                break
            word = int.from_bytes(self._held.look(self._next_block, 3), "little")
            kind, size = word >> 1 & 3, word >> 3
            if kind == 3 or size > BLOCK_LIMIT:
                raise IntegrityError("corrupt zstd block header", offset=self._start + self._next_block)
            self._next_block += 3 + (1 if kind == 1 else size)
            self._blocks += 1
            self._part_blocks += 1
            if word & 1:
                self._end = self._next_block + (4 if header.checksum else 0)
        large = self._parts
        if not large and not self._is_declared_small(header):
            large = header.content_size is not None or self._blocks * BLOCK_LIMIT > WHOLE_LIMIT + BLOCK_LIMIT
        if self._end is not None and self._held.size >= self._end:
            data = self._take(self._end)
            self._header, self._parts = None, False
            if large:
                return Part(self._frame_offset, data, last=True)
            return Frame(self._frame_offset, data, header.content_size)
        # Pass on what has arrived of a large frame, up to the next block header, so that the walk can continue.
        count = min(self._next_block if self._end is None else self._end, self._held.size)
        if not large or not count:
            return None
        self._parts = True
        self._part_blocks = 0
        self._next_block -= count
        if self._end is not None:
            self._end -= count
        return Part(self._frame_offset, self._take(count), last=False)

    def _is_declared_small(self, header: FrameHeader) -> bool:
        """Return whether the header limits the decoded size: the decoder enforces it, so blocks need not be counted.

        At higher levels zstd splits a megabyte into more than a hundred small blocks. The compressed size is limited
        too, because no compressor writes a frame so much larger than its content.
        """
        content = header.content_size
        return content is not None and content <= WHOLE_LIMIT and self._next_block <= WHOLE_LIMIT + BLOCK_LIMIT
