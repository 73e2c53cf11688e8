"""The container around our zstd frames: what a statepipe file says about itself, and how it proves it is whole.

    skippable 0x184D2A55   header: JSON
    zstd frames            independent, content size and checksum in each
    skippable 0x184D2A55   trailer: JSON
    skippable 0x184D2A5E   the standard seek table; metadata frames are listed in it as (size, 0)

To zstd(1) this is a plain file and `zstd -d` gives the stream back. A metadata frame's payload is `statepipe`,
one byte for its kind, the first 16 bytes of the BLAKE3 of kind and JSON, and the JSON. The trailer holds the BLAKE3
of every byte of the file before it, so that a flip of any bit is found, even of the bits that zstd ignores, and
for a saved guest that of the stream as well; the seek table is compared whole. Without its trailer it is no file.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.zstdframe import SEEK_TABLE_MAGIC, skippable

META_MAGIC = 0x184D2A55
VERSION = 1
HEADER, TRAILER = b"H", b"T"

_TAG = b"statepipe"
_CHECK = 16
_SEEK_ENTRY = struct.Struct("<II")
_SEEK_FOOTER = struct.Struct("<IBI")
_SEEK_FOOTER_MAGIC = 0x8F92EAB1

SEEK_FOOTER_SIZE = _SEEK_FOOTER.size
META_LIMIT = 16 << 20
"""No metadata frame is larger: a header is a few KiB, and a machine with a thousand disks still fits."""

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Meta:
    """A metadata frame: its kind (HEADER, TRAILER, or one of a later version) and what it says."""

    kind: bytes
    facts: Facts


def encode_meta(kind: bytes, facts: Facts) -> bytes:
    """A metadata frame, whole. The JSON is ASCII: a path that is no UTF-8 comes as surrogates, which it can escape."""
    text = json.dumps(facts, separators=(",", ":")).encode()
    return skippable(META_MAGIC, _TAG + kind + blake3(kind + text).digest(_CHECK) + text)


def decode_meta(payload: bytes, offset: int) -> Meta | None:
    """What a skippable frame's payload says, or None if it is not one of ours.

    Raises IntegrityError when it is ours and damaged.
    """
    if not payload.startswith(_TAG):
        return None
    start = len(_TAG) + 1
    kind = payload[len(_TAG) : start]
    check, text = payload[start : start + _CHECK], payload[start + _CHECK :]
    if blake3(kind + text).digest(_CHECK) != check:
        raise IntegrityError("the metadata does not match its checksum", offset=offset)
    return Meta(kind, _parse(text, offset))


def _parse(text: bytes, offset: int) -> Facts:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"the metadata is not JSON: {error}", offset=offset) from error
    if not isinstance(facts, dict):
        raise IntegrityError("the metadata is not a JSON object", offset=offset)
    return facts


def check_version(header: Facts) -> None:
    """Raises StatepipeError for a format that a later statepipe wrote."""
    version = header.get("statepipe")
    if version != VERSION:
        raise StatepipeError(
            f"the file has format version {version}; this statepipe reads version {VERSION}",
            hint="load it with a newer statepipe, or take the raw stream out with zstd -d",
        )


class SeekTable:
    """The standard seek table (zstd_seekable_compression_format.md 0.1.0), filled as frames go by."""

    def __init__(self) -> None:
        self._entries = bytearray()

    def add(self, size: int, content: int) -> None:
        """A frame of `size` bytes on file that decodes to `content` bytes; (size, 0) for metadata."""
        self._entries += _SEEK_ENTRY.pack(size, content)

    def encode(self) -> bytes:
        """The skippable frame that ends the file."""
        footer = _SEEK_FOOTER.pack(len(self._entries) // _SEEK_ENTRY.size, 0, _SEEK_FOOTER_MAGIC)
        return skippable(SEEK_TABLE_MAGIC, bytes(self._entries) + footer)


def seek_table_size(footer: bytes) -> int | None:
    """From a file's last 9 bytes: the size of its seek table's whole frame, or None if it is none like ours.

    A descriptor other than 0 stands for entries with checksums, or for what is reserved: another's, or damage.
    """
    if len(footer) != SEEK_FOOTER_SIZE:
        return None
    count, descriptor, magic = _SEEK_FOOTER.unpack(footer)
    if magic != _SEEK_FOOTER_MAGIC or descriptor:
        return None
    return int(count) * _SEEK_ENTRY.size + SEEK_FOOTER_SIZE + 8


def seek_entries(table: bytes) -> list[tuple[int, int]]:
    """The entries of a whole seek-table frame like ours, as (size, content size)."""
    return list(_SEEK_ENTRY.iter_unpack(table[8:-SEEK_FOOTER_SIZE]))


class Writer:
    """Builds the container: sans-IO, every method returns the bytes to write next."""

    def __init__(self) -> None:
        self._seek = SeekTable()
        self._file = blake3()
        self._bytes = 0
        self._frames = 0

    def header(self, facts: Facts) -> bytes:
        frame = encode_meta(HEADER, {"statepipe": VERSION, **facts})
        self._seek.add(len(frame), 0)
        self._file.update(frame)
        return frame

    def frame(self, frame: bytes, content: int) -> bytes:
        self._bytes += content
        self._seek.add(len(frame), content)
        self._file.update(frame)
        self._frames += 1
        return frame

    def trailer(self, facts: Facts) -> bytes:
        """The trailer and the seek table: the end of the file."""
        sums = {"bytes": self._bytes, "frames": self._frames, "file_blake3": self._file.hexdigest()}
        frame = encode_meta(TRAILER, {**facts, **sums})
        self._seek.add(len(frame), 0)
        return frame + self._seek.encode()


class Checker:
    """Follows a container as it is read and proves it whole. Sans-IO: told of every piece, in order.

    Raises IntegrityError or TruncatedError where the file contradicts itself. A stream whose first frame is not
    our header is foreign: nothing is asked of it, and `header` stays None.
    """

    def __init__(self) -> None:
        self.header: Facts | None = None
        self.trailer: Facts | None = None
        self._seek = SeekTable()
        self._file = blake3()
        self._bytes = self._frames = self._pieces = 0
        self._ended = False

    def meta(self, payload: bytes, frame: bytes, offset: int) -> None:
        """A skippable frame with the metadata magic; `frame` is all its bytes."""
        self._first_piece(offset)
        meta = decode_meta(payload, offset)
        if self._pieces == 1 and meta is not None and meta.kind == HEADER:
            check_version(meta.facts)
            self.header = meta.facts
        elif meta is not None and meta.kind == TRAILER:
            self._take_trailer(meta.facts, offset)
        if self.trailer is None:
            self._file.update(frame)
        self._seek.add(len(frame), 0)

    def frame(self, frame: bytes, content: int, offset: int) -> None:
        """A data frame of the file, before it is decoded or after; `content` is its decoded size in bytes."""
        self._first_piece(offset)
        if self.header is None:
            return
        if self.trailer is not None:
            raise IntegrityError("a data frame after the trailer", offset=offset)
        self._seek.add(len(frame), content)
        self._file.update(frame)
        self._frames += 1
        self._bytes += content

    def large(self, offset: int) -> None:
        """A part of a frame too large to keep: we write none."""
        self._first_piece(offset)
        if self.header is not None:
            raise IntegrityError("a frame larger than statepipe writes", offset=offset)

    def other(self, frame: bytes, offset: int) -> None:
        """A skippable frame of someone else's."""
        self._first_piece(offset)
        if self.header is not None:
            self._seek.add(len(frame), 0)
            self._file.update(frame)

    def seek_table(self, frame: bytes, offset: int) -> None:
        """The seek table, all its bytes."""
        self._first_piece(offset)
        if self.header is None:
            return
        if self.trailer is None or frame != self._seek.encode():
            raise IntegrityError("the seek table does not describe this file", offset=offset)
        self._ended = True

    def close(self, offset: int) -> None:
        """The file has ended at `offset`, and everything in it was decoded."""
        if self.header is None:
            return
        if self.trailer is None or not self._ended:
            raise TruncatedError("the file is cut short: its trailer is missing", offset=offset)
        found = {"bytes": self._bytes, "frames": self._frames}
        for name, value in found.items():
            if self.trailer.get(name) != value:
                raise IntegrityError(f"{name}: the trailer says {self.trailer.get(name)}, found {value}", offset=offset)

    def _first_piece(self, offset: int) -> None:
        self._pieces += 1
        if self._ended:
            raise IntegrityError("bytes after the seek table", offset=offset)

    def _take_trailer(self, facts: Facts, offset: int) -> None:
        if self.header is None:
            raise IntegrityError("a trailer without a header: the beginning of the file is damaged", offset=0)
        if self.trailer is not None:
            raise IntegrityError("a second trailer", offset=offset)
        if facts.get("file_blake3") != self._file.hexdigest():
            raise IntegrityError("the file's digest is not the one in its trailer: a bit has changed", offset=offset)
        self.trailer = facts
