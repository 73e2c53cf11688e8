"""The container around our zstd frames: the metadata of a statepipe file, and the proof that the file is whole.

    skippable 0x184D2A55   header: JSON
    skippable 0x184D2A55   what libvirt knows of the guest, if libvirt ran it
    zstd frames            independent, content size and checksum in each
    skippable 0x184D2A55   the index of pages, if there is one, in one frame or several
    skippable 0x184D2A55   trailer: JSON
    skippable 0x184D2A5E   the standard seek table; metadata frames are listed in it as (size, 0)

To zstd(1) this is an ordinary file, and `zstd -d` returns the stream. What a metadata
frame holds is in metadata.py. The trailer holds the BLAKE3 of
every byte of the file before it, so that any changed bit is found, even bits that zstd ignores. For a saved guest it
holds the BLAKE3 of the stream as well, and that of the index, which is read alone. The seek table is compared whole. A
file without its trailer is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError
from statepipe.formats.metadata import (
    DOMAIN,
    HEADER,
    INDEX,
    META_MAGIC,
    TRAILER,
    VERSION,
    Facts,
    check_version,
    decode_meta,
    encode_meta,
    meta_frame,
)
from statepipe.formats.seektable import LEAST_FRAME, SEEK_ENTRY_SIZE, SEEK_FOOTER_SIZE, SEEK_TABLE_LIMIT, SeekTable
from statepipe.formats.zstdframe import SEEK_TABLE_MAGIC
from statepipe.typed import NamedTuple


def index_contents(data: bytes, facts: Facts, offset: int) -> list[bytes]:
    """Return the contents of the frames of an index: `data`, which begins at `offset` of the file.

    `facts` is what the trailer says of the index. Raises IntegrityError.
    """
    if blake3(data).hexdigest() != facts["blake3"]:
        raise IntegrityError("checksum mismatch: the page index differs from the one that was written", offset=offset)
    contents, at = [], 0
    while at < len(data):
        end = at + LEAST_FRAME + int.from_bytes(data[at + 4 : at + 8], "little")
        meta = decode_meta(data[at + LEAST_FRAME : end], offset + at)
        if int.from_bytes(data[at : at + 4], "little") != META_MAGIC or meta is None or meta.kind != INDEX:
            raise IntegrityError("a frame that does not belong to the page index", offset=offset + at)
        contents.append(meta.body)
        at = end
    if len(contents) != facts["frames"] or at != len(data):
        raise IntegrityError("the page index does not consist of the frames that the trailer announces", offset=offset)
    return contents


class Indexed(NamedTuple):
    """An index of pages as a file holds it: what the trailer says of it, and the contents of its frames, if any."""

    facts: Facts
    contents: Iterable[bytes] = ()


class _IndexFrames:
    """Sums over the frames of an index, as they are written or read."""

    def __init__(self) -> None:
        self._sum = blake3()
        self._size = self._frames = 0

    def add(self, frame: bytes) -> None:
        self._sum.update(frame)
        self._size += len(frame)
        self._frames += 1

    def facts(self) -> Facts:
        """The sums, if there was a frame."""
        sums = {"frames": self._frames, "size": self._size, "blake3": self._sum.hexdigest()}
        return sums if self._frames else {}


class Writer:
    """Builds the container. No I/O: every method returns the bytes to write next.

    `table_limit`: bytes of the largest seek table frame that readers accept.
    """

    def __init__(self, table_limit: int = SEEK_TABLE_LIMIT) -> None:
        self._most_frames = (table_limit - SEEK_FOOTER_SIZE - 8) // SEEK_ENTRY_SIZE - 2  # and header and trailer
        self._seek = SeekTable()
        self._file = blake3()
        self._bytes = 0
        self._frames = 0
        self._index: Facts | None = None

    def header(self, facts: Facts) -> bytes:
        frame = encode_meta(HEADER, {"statepipe": VERSION, **facts})
        self._seek.add(len(frame), 0)
        self._file.update(frame)
        return frame

    def domain(self, contents: bytes) -> bytes:
        """The frame that stands directly behind the header of a guest of libvirt's (domainframe.py)."""
        frame = meta_frame(DOMAIN, contents)
        self._seek.add(len(frame), 0)
        self._file.update(frame)
        return frame

    def frame(self, frame: bytes, content: int) -> bytes:
        """A data frame. Raises StatepipeError where the seek table has no room for it."""
        if self._frames == self._most_frames:
            raise StatepipeError(
                f"a file of ours has at most {self._most_frames} frames, and this stream needs more",
                hint="compress --one-frame has no such limit",
            )
        self._bytes += content
        self._seek.add(len(frame), content)
        self._file.update(frame)
        self._frames += 1
        return frame

    def index(self, indexed: Indexed) -> Iterator[bytes]:
        """Yield the frames of the index, which stand before the trailer."""
        frames = _IndexFrames()
        for content in indexed.contents:
            frame = meta_frame(INDEX, content)
            frames.add(frame)
            self._seek.add(len(frame), 0)
            self._file.update(frame)
            yield frame
        self._index = indexed.facts | frames.facts()

    def trailer(self, facts: Facts) -> bytes:
        """Return the trailer and the seek table, which end the file."""
        sums: Facts = {"bytes": self._bytes, "frames": self._frames, "file_blake3": self._file.hexdigest()}
        if self._index is not None:
            sums["index"] = self._index
        frame = encode_meta(TRAILER, {**facts, **sums})
        self._seek.add(len(frame), 0)
        return frame + self._seek.encode()


class Checker:
    """Checks a container as it is read, and proves that it is whole. No I/O: the reader passes every piece, in order.

    Raises IntegrityError or TruncatedError where the file contradicts itself. A stream whose first frame is not
    our header is not checked, and `header` stays None. `table_limit`: bytes of the largest seek table that a file may
    end with; it also limits what is kept of a stream that never ends.
    """

    def __init__(self, table_limit: int = SEEK_TABLE_LIMIT) -> None:
        self.header: Facts | None = None
        self.trailer: Facts | None = None
        self._table_limit = table_limit
        self._seek = SeekTable()
        self._file = blake3()
        self._index = _IndexFrames()
        self._bytes = self._frames = self._pieces = 0
        self._ended = False

    def meta(self, payload: bytes, frame: bytes, offset: int) -> None:
        """Take a skippable frame with the metadata magic; `frame` is all its bytes."""
        self._first_piece(offset)
        meta = decode_meta(payload, offset)
        if meta is not None and meta.kind == HEADER:
            if self._pieces == 1:
                check_version(meta.facts)
                self.header = meta.facts
            elif self.header is not None:
                raise IntegrityError("a second header", offset=offset)
        elif meta is not None and meta.kind == TRAILER:
            self._take_trailer(meta.facts, offset)
        elif self.trailer is not None:
            raise IntegrityError("a metadata frame after the trailer", offset=offset)
        if self.header is None:
            return
        if meta is not None and meta.kind == DOMAIN:
            self._check_domain(meta.body, offset)
        if self.trailer is None:
            self._file.update(frame)
            self._follow_index(frame if meta is not None and meta.kind == INDEX else None)
        self._list(len(frame), 0, offset)

    def frame(self, frame: bytes, content: int, offset: int) -> None:
        """Take a data frame, before or after it is decoded; `content` is its decoded size in bytes."""
        self._first_piece(offset)
        if self.header is None:
            return
        if self.trailer is not None:
            raise IntegrityError("a data frame after the trailer", offset=offset)
        self._list(len(frame), content, offset)
        self._file.update(frame)
        self._follow_index(None)
        self._frames += 1
        self._bytes += content

    def large(self, offset: int) -> None:
        """Take a part of a frame that is too large to keep. statepipe writes no such frame."""
        self._first_piece(offset)
        if self.header is not None:
            raise IntegrityError("a frame larger than statepipe writes", offset=offset)

    def skipped(self, magic: int, size: int, at: int, data: bytes, offset: int) -> None:
        """Take a part of a skippable frame that is not our metadata, such as the seek table.

        `data` is at offset `at` of the payload of `size` bytes. The parts of a frame come in order, the first at 0.
        """
        if at == 0:
            self._first_piece(offset)
        if self.header is None:
            return
        if magic == SEEK_TABLE_MAGIC:
            if self.trailer is None or not self._seek.holds(data, at, size):
                raise IntegrityError("the seek table does not describe this file", offset=offset)
            self._ended = at + len(data) == size
            return
        if magic == META_MAGIC:
            raise IntegrityError("metadata larger than statepipe writes", offset=offset)
        if self.trailer is not None:
            raise IntegrityError("a skippable frame after the trailer", offset=offset)
        self._follow_index(None)
        if at == 0:
            self._list(size + 8, 0, offset)
            self._file.update(magic.to_bytes(4, "little") + size.to_bytes(4, "little"))
        self._file.update(data)

    def close(self, offset: int) -> None:
        """Report that the file ended at `offset` and that all of it was decoded."""
        if self.header is None:
            return
        if self.trailer is None or not self._ended:
            raise TruncatedError("the file is cut short: its trailer is missing", offset=offset)
        found = {"bytes": self._bytes, "frames": self._frames}
        for name, value in found.items():
            if self.trailer.get(name) != value:
                raise IntegrityError(f"{name}: the trailer says {self.trailer.get(name)}, found {value}", offset=offset)

    def _check_domain(self, contents: bytes, offset: int) -> None:
        from statepipe.formats.domainframe import decode_domain  # few files have one

        if self._pieces != 2:
            raise IntegrityError("a description of a domain that is not directly behind the header", offset=offset)
        decode_domain(contents, offset)

    def _follow_index(self, frame: bytes | None) -> None:
        """Take a frame of the index; None for any other frame: those of the index are the last before the trailer."""
        if frame is not None:
            self._index.add(frame)
        elif self._index.facts():
            self._index = _IndexFrames()

    def _list(self, size: int, content: int, offset: int) -> None:
        """Add a frame to the seek table that must follow. Raises IntegrityError if no table may list so many."""
        self._seek.add(size, content)
        if self._seek.size > self._table_limit:
            raise IntegrityError("more frames than statepipe writes into a file", offset=offset)

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
            raise IntegrityError(
                "checksum mismatch: the file's BLAKE3 differs from the one in its trailer", offset=offset
            )
        told = facts.get("index", {})
        if "frames" in told and {name: told.get(name) for name in ("frames", "size", "blake3")} != self._index.facts():
            raise IntegrityError("the page index is not the one that the trailer announces", offset=offset)
        self.trailer = facts
