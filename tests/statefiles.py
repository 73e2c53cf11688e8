"""Small state files for tests, their layout read without any code of ours, and a load without QEMU."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from blake3 import blake3

from statepipe.errors import StatepipeError
from statepipe.formats.libvirtimage import Domain
from statepipe.formats.qemu.stream import QemuStream
from statepipe.pipeline.pipeline import Pipeline
from statepipe.qemu.guard import Said
from statepipe.stage import Buffer
from statepipe.stages.checksum import Digest
from statepipe.stages.watch import watch
from statepipe.stages.zstd import no_index, pack
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import prepare
from statepipe.state.saving import indexed
from tests import streams

META, SEEK_TABLE, DATA = 0x184D2A55, 0x184D2A5E, 0xFD2FB528


def noise(page: int, block: str | None = None) -> bytes:
    """A page that does not compress; the same each time."""
    return streams.record(0x08, page, block, random.Random(page).randbytes(streams.PAGE))


def noisy_stream(pages: int = 6) -> bytes:
    """A whole stream with `pages` pages of noise."""
    return (
        streams.head()
        + streams.ram_start()
        + streams.ram(noise(0, "pc.ram"), *map(noise, range(1, pages)))
        + streams.ram(noise(0, "pc.ram"), kind=3)
        + streams.devices()
        + b"\0"
        + streams.vmdesc(*streams.DEVICES)
    )


def cut(data: bytes, count: int) -> list[bytes]:
    """The data in `count` buffers of about the same size, a flush mark after each: so each becomes a frame."""
    edges = [len(data) * i // count for i in range(count + 1)]
    return [part for a, b in pairwise(edges) for part in (data[a:b], b"")]


DOMAIN = Domain(
    b"<domain type='qemu'>\n  <name>web\xc3\xa41</name>\n  <uuid>9f0b0c5e-6b1c-4d8e-8f6e-0d7d1a2b3c4d</uuid>\n"
    b"</domain>\n",
    b"<cookie>\n  <slirpHelper/>\n</cookie>\n",
    was_running=True,
)
"""What libvirt knows of a guest, in short."""


def state_file(
    parts: Sequence[Buffer],
    *,
    header: dict[str, Any] | None = None,
    index: bool = False,
    domain: Domain | None = None,
    **trailer: Any,
) -> bytes:
    """A state file of the stream that `parts` make, with an index of its pages or, as older ones are, without;
    `header` and `trailer` add facts or replace them. `domain` is what libvirt knows of the guest."""
    stream, digest = QemuStream(), Digest("blake3")
    stream.record_pages()

    def facts() -> dict[str, Any]:
        return {**stream.facts(), "disks": [], "blake3": digest.value, **trailer}

    first = {"kind": "state", "time": 0, "writer": "a test", **(header or {})}
    packer = pack(1, first, facts, (lambda: indexed(stream)) if index else no_index, domain)
    return b"".join(packer(digest(watch(stream)(iter(parts)))))


@dataclass(frozen=True, slots=True)
class Piece:
    """A frame of a state file: where it is, its first four bytes, and what it decodes to in bytes."""

    start: int
    end: int
    magic: int
    content: int


def seek_entries(file: bytes) -> list[tuple[int, int]]:
    """(size, content size) of each frame, as the standard seek table at the file's end lists them."""
    count, descriptor, magic = struct.unpack("<IBI", file[-9:])
    assert (descriptor, magic) == (0, 0x8F92EAB1)
    return list(struct.iter_unpack("<II", file[-9 - 8 * count : -9]))


def layout(file: bytes) -> list[Piece]:
    """Every frame in order, the seek table's own included."""
    entries = seek_entries(file)
    entries.append((8 + 8 * len(entries) + 9, 0))
    pieces, at = [], 0
    for size, content in entries:
        pieces.append(Piece(at, at + size, int.from_bytes(file[at : at + 4], "little"), content))
        at += size
    assert at == len(file)
    return pieces


def seal(frames: Sequence[tuple[bytes, int]], facts: dict[str, Any]) -> bytes:
    """A file of frames (bytes, content size) with a trailer of `facts` and the sums that belong to it, by hand."""
    body = b"".join(frame for frame, _ in frames)
    data = [content for _, content in frames if content]
    sums = {"bytes": sum(data), "frames": len(data), "file_blake3": blake3(body).hexdigest()}
    text = json.dumps({**facts, **sums}).encode()
    payload = b"statepipeT" + blake3(b"T" + text).digest(16) + text
    trailer = struct.pack("<II", META, len(payload)) + payload
    entries = [(len(frame), content) for frame, content in [*frames, (trailer, 0)]]
    table = b"".join(struct.pack("<II", *entry) for entry in entries) + struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
    return body + trailer + struct.pack("<II", SEEK_TABLE, len(table)) + table


def index_frame(content: bytes, kind: bytes = b"P") -> bytes:
    """A frame of an index, by hand."""
    payload = b"statepipe" + kind + blake3(kind + content).digest(16) + content
    return struct.pack("<II", META, len(payload)) + payload


def with_index(file: bytes, frames: list[bytes], /, *behind: bytes, **told: Any) -> bytes:
    """A file that has an index, with these frames in its place, `behind` before the trailer, and the sums that belong
    to them; `told` is what the trailer says of the index instead (None: nothing)."""
    pieces = layout(file)
    trailer = json.loads(file[pieces[-2].start + 34 : pieces[-2].end])
    joined = b"".join(frames)
    sums = {"frames": len(frames), "size": len(joined), "blake3": blake3(joined).hexdigest()}
    index = {key: value for key, value in (trailer["index"] | sums | told).items() if value is not None}
    data = [(file[it.start : it.end], it.content) for it in pieces[: -2 - trailer["index"]["frames"]]]
    return seal([*data, *((each, 0) for each in (*frames, *behind))], trailer | {"index": index})


def unasked() -> Any:
    """For files that are not so encrypted: nobody must ask."""
    raise AssertionError("a key was asked for")


NO_KEYS = Keys(unasked, unasked)


class Kept:
    """A sink that keeps what reaches it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.bytes = 0

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to undo."""

    def write(self, buffer: Buffer) -> None:
        self.data += buffer

    def commit(self) -> None:
        """Nothing to complete."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load let out, why it failed if it did, and what it said cannot be proved."""

    data: bytes
    error: StatepipeError | None
    doubts: str | None = None


def load(path: Path, *, keys: Keys = NO_KEYS) -> Loaded:
    """Load as every way of `statepipe load` does, into memory."""
    sink, doubts = Kept(), None
    try:
        with open_state(str(path), keys) as source:
            state = prepare(source)
            state.refuse_changed_disks(None, Said(), lambda text: None)
            doubts = state.doubts
            Pipeline(source, state.stages(), sink).pour()
    except StatepipeError as error:
        return Loaded(bytes(sink.data), error, doubts)
    return Loaded(bytes(sink.data), None, doubts)
