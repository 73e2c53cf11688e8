"""The seek table that ends a state file: the size of each frame, and of what is in it.

It is the standard one, zstd_seekable_compression_format.md 0.1.0: a skippable frame with eight bytes for each frame of
the file, their number, a descriptor and a magic number. With it a reader finds the frame that holds any byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from statepipe.formats.zstdframe import SEEK_TABLE_MAGIC, skippable
from statepipe.stage import Buffer

_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")
_SEEK_FOOTER_MAGIC = 0x8F92EAB1

SEEK_FOOTER_SIZE, SEEK_ENTRY_SIZE = _SEEK_FOOTER.size, _SEEK_ENTRY.size

SEEK_TABLE_LIMIT = 64 << 20
"""Bytes of a seek table at most: one of this size describes 8 TiB in our frames."""

LEAST_FRAME = 8
"""Bytes of the shortest frame, an empty skippable one. A file has at least this many bytes per seek table entry."""


class SeekTable:
    """The standard seek table (zstd_seekable_compression_format.md 0.1.0), filled frame by frame."""

    def __init__(self) -> None:
        self._entries = bytearray()

    def add(self, size: int, content: int) -> None:
        """Add a frame of `size` bytes in the file that decodes to `content` bytes; 0 for metadata."""
        self._entries += _SEEK_ENTRY.pack(size, content)

    @property
    def size(self) -> int:
        """The size of the whole frame in bytes."""
        return len(self._entries) + SEEK_FOOTER_SIZE + 8

    def encode(self) -> bytes:
        """Return the skippable frame that ends the file."""
        return skippable(SEEK_TABLE_MAGIC, bytes(self._entries) + self._footer())

    def _footer(self) -> bytes:
        return _SEEK_FOOTER.pack(len(self._entries) // _SEEK_ENTRY.size, 0, _SEEK_FOOTER_MAGIC)

    def holds(self, part: Buffer, at: int, size: int) -> bool:
        """Return whether this table's payload has `size` bytes and contains `part` at the offset `at`."""
        entries, footer = len(self._entries), self._footer()
        if size != entries + len(footer):
            return False
        cut = min(max(entries - at, 0), len(part))
        head, rest = memoryview(part)[:cut], memoryview(part)[cut:]
        with memoryview(self._entries) as ours:
            same = ours[at : at + cut] == head
        start = at + cut - entries
        return same and (not rest or footer[start : start + len(rest)] == rest)


def seek_table_size(footer: bytes) -> int | None:
    """Return the size of the seek table's whole frame, from a file's last 9 bytes; None if it is not a table like ours.

    A descriptor other than 0 means entries with checksums or a reserved bit: another program's table, or damage.
    """
    if len(footer) != SEEK_FOOTER_SIZE:
        return None
    count, descriptor, magic = _SEEK_FOOTER.unpack(footer)
    if magic != _SEEK_FOOTER_MAGIC or descriptor:
        return None
    return int(count) * _SEEK_ENTRY.size + SEEK_FOOTER_SIZE + 8


def entries_of(parts: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the entries of a seek table: the size of each frame, and of what it decodes to.

    `parts` are whole entries, without the frame's header and footer.
    """
    for part in parts:
        yield from _SEEK_ENTRY.iter_unpack(part)


def sum_seek_table(parts: Iterable[bytes]) -> tuple[int, tuple[int, int] | None]:
    """Return the total size in bytes of the frames in a seek table, and its last entry (size, content size) or None.

    `parts` are whole entries, without the frame's header and footer.
    """
    total, last = 0, None
    for last in entries_of(parts):
        total += last[0]
    return total, last
