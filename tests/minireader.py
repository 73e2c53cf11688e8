"""A reader of state files that does what docs/state-file.md says, with none of statepipe's own code."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import zstandard
from blake3 import blake3


class Refused(Exception):
    """The file is not whole, or of a later version."""


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    header: dict[str, Any]
    trailer: dict[str, Any]
    stream: bytes


def need(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)


def read(file: bytes) -> Contents:
    """All that is in a file. Raises Refused."""
    frames = [(*_outer(file, at, size), content, at) for at, size, content in _listed(file)]
    need(len(frames) >= 2, "no header, or no trailer")
    header, trailer = _metadata(frames[0], b"H"), _metadata(frames[-1], b"T")
    need(header["statepipe"] == 1, "a later version")
    stream, count = b"", 0
    for magic, payload, content, at in frames[1:-1]:
        if magic == 0xFD2FB528:
            plain = _decoded(payload)
            stream, count = stream + plain, count + 1
        else:
            need(0x184D2A50 <= magic <= 0x184D2A5F, "no frame of zstd")
            plain = b""
            if magic == 0x184D2A55 and payload.startswith(b"statepipe"):
                need(payload[9:10] not in (b"H", b"T"), "a second header or trailer")
                _json(payload)
        need(len(plain) == content, f"the frame at {at} does not hold what is listed")
    need(trailer["bytes"] == len(stream) and trailer["frames"] == count, "the trailer's numbers")
    need(trailer["file_blake3"] == blake3(file[: frames[-1][3]]).hexdigest(), "the digest of the file")
    if header.get("kind") == "state":
        need(trailer["blake3"] == blake3(stream).hexdigest(), "the digest of the stream")
    return Contents(header, trailer, stream)


def _listed(file: bytes) -> list[tuple[int, int, int]]:
    """Offset, size and content size of each frame, by the seek table."""
    need(len(file) >= 17, "too short")
    count, descriptor, magic = struct.unpack("<IBI", file[-9:])
    start = len(file) - 8 * count - 17
    need(magic == 0x8F92EAB1 and descriptor == 0 and start >= 0, "no seek table")
    need(struct.unpack("<II", file[start : start + 8]) == (0x184D2A5E, 8 * count + 9), "no frame of a seek table")
    at, found = 0, []
    for size, content in struct.iter_unpack("<II", file[start + 8 : -9]):
        found.append((at, size, content))
        at += size
    need(at == start, "the sizes in the seek table")
    return found


def _outer(file: bytes, at: int, size: int) -> tuple[int, bytes]:
    """A frame's magic, and the payload of one that is skippable or else all its bytes."""
    frame = file[at : at + size]
    need(size >= 8, "no frame")
    magic, length = struct.unpack("<II", frame[:8])
    if 0x184D2A50 <= magic <= 0x184D2A5F:
        need(length == size - 8, "a skippable frame's length")
        return magic, frame[8:]
    return magic, frame


def _metadata(frame: tuple[int, bytes, int, int], kind: bytes) -> dict[str, Any]:
    magic, payload, content, _ = frame
    need(magic == 0x184D2A55 and content == 0, "no metadata where the file begins or ends")
    need(payload[:10] == b"statepipe" + kind and len(payload) <= 1 << 20, f"no metadata of kind {kind!r}")
    found = json.loads(_json(payload).decode())
    need(isinstance(found, dict), "no JSON object")
    return dict(found)


def _json(payload: bytes) -> bytes:
    need(payload[10:26] == blake3(payload[9:10] + payload[26:]).digest(16), "metadata does not match its digest")
    return payload[26:]


def _decoded(frame: bytes) -> bytes:
    try:
        need(zstandard.frame_content_size(frame) in range(1, (8 << 20) + 1), "the content's size")
        return zstandard.ZstdDecompressor(max_window_size=128 << 20).decompress(frame, read_across_frames=False)
    except zstandard.ZstdError as error:
        raise Refused(f"a frame cannot be decoded: {error}") from error
