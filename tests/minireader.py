"""A reader of state files that does what docs/state-file.md says, with none of statepipe's own code."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
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
    outline: dict[str, Any] | None = None
    pages: dict[tuple[str, int], int | None] | None = None
    """By the name of a block and a page in it, its place in the stream, None for zeros; None without an index."""
    domain: tuple[bytes, bytes | None, bool] | None = None
    """libvirt's XML, its cookie, and whether the guest ran."""


def need(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)


def read(file: bytes) -> Contents:
    """All that is in a file. Raises Refused."""
    frames = [(*_outer(file, at, size), content, at) for at, size, content in _listed(file)]
    need(len(frames) >= 2, "no header, or no trailer")
    header, trailer = _metadata(frames[0], b"H"), _metadata(frames[-1], b"T")
    need(header["statepipe"] == 1, "a later version")
    stream, count, domain = b"", 0, None
    for number, (magic, payload, content, at) in enumerate(frames[1:-1], 1):
        if magic == 0xFD2FB528:
            plain = _decoded(payload)
            stream, count = stream + plain, count + 1
        else:
            need(0x184D2A50 <= magic <= 0x184D2A5F, "no frame of zstd")
            plain = b""
            if magic == 0x184D2A55 and payload.startswith(b"statepipe"):
                need(payload[9:10] not in (b"H", b"T"), "a second header or trailer")
                _json(payload)
                need(payload[9:10] != b"D" or number == 1, "a domain that is not behind the header")
                domain = _domain(payload[26:]) if payload[9:10] == b"D" else domain
        need(len(plain) == content, f"the frame at {at} does not hold what is listed")
    need(trailer["bytes"] == len(stream) and trailer["frames"] == count, "the trailer's numbers")
    need(trailer["file_blake3"] == blake3(file[: frames[-1][3]]).hexdigest(), "the digest of the file")
    if header.get("kind") == "state":
        need(trailer["blake3"] == blake3(stream).hexdigest(), "the digest of the stream")
    at = [frame[3] for frame in frames]
    return Contents(header, trailer, stream, *_index(file, at, trailer.get("index", {}), len(stream)), domain)


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


# --- what libvirt knows


def _domain(body: bytes) -> tuple[bytes, bytes | None, bool]:
    """The XML, the cookie, and whether the guest ran, of a frame's contents."""
    try:
        need(92 < zstandard.frame_content_size(body) <= 8_388_700, "the size of what libvirt knows")
        plain = zstandard.ZstdDecompressor().decompress(body, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused(f"the frame of the domain cannot be decoded: {error}") from error
    magic, version, length, running, number, cookie_at = struct.unpack_from("<16s5I", plain)
    need(magic == b"LibvirtQemudSave" and not any(plain[36:92]), "the header of the domain")
    need((version, number) == (2, 0) and running in (0, 1), "the numbers of the domain")
    need(length == len(plain) - 92 and cookie_at < length, "the length of the domain")
    texts = [plain[92 : 92 + cookie_at], plain[92 + cookie_at :]] if cookie_at else [plain[92:]]
    for each in texts:
        need(1 < len(each) <= 4 << 20 and each.find(b"\0") == len(each) - 1, "a text of the domain")
    return texts[0][:-1], texts[1][:-1] if cookie_at else None, bool(running)


# --- the page index


def _index(file: bytes, at: list[int], facts: dict[str, Any], length: int) -> tuple[Any, Any]:
    """The outline, and each page, of the frames that stand before the trailer, the last of those at `at`."""
    if "frames" not in facts:
        return None, None
    need(0 < facts["frames"] <= 65 and facts["frames"] < len(at) - 1, "how many frames the index has")
    starts = at[-1 - facts["frames"] :]
    need(starts[-1] - starts[0] == facts["size"], "the size of the index")
    need(blake3(file[starts[0] : starts[-1]]).hexdigest() == facts["blake3"], "the digest of the index")
    contents = [_content(file[start:end]) for start, end in pairwise(starts)]
    outline = json.loads(contents[0])
    stride = outline["page_size"] + 8
    found: dict[tuple[str, int], int | None] = {}
    runs = [run for content in contents[1:] for run in _runs(content, stride)]
    kinds = (sum(pages for kind, pages, _, _ in runs if kind == wanted) for wanted in (1, 0))
    need((len(runs), *kinds) == (facts["runs"], facts["stored"], facts["zero"]), "the numbers of pages")
    need(outline["runs"] == facts["runs"], "the number of runs")
    for kind, pages, page, place in runs:
        for number in range(pages):
            key = _page(outline, page + number)
            need(key not in found, "a page in two runs")
            found[key] = place + number * stride if kind else None
            need(not kind or 0 <= place <= place + number * stride + stride - 8 <= length, "a page outside the stream")
    return outline, found


def _content(frame: bytes) -> bytes:
    need(frame[8:18] == b"statepipeP", "no frame of the index")
    body = _json(frame[8:])
    try:
        need(0 < zstandard.frame_content_size(body) <= 1 << 20, "the size of what is in a frame of the index")
        return zstandard.ZstdDecompressor().decompress(body, read_across_frames=False)
    except zstandard.ZstdError as error:
        raise Refused(f"a frame of the index cannot be decoded: {error}") from error


def _runs(content: bytes, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Each run of a frame: kind, pages, first page, place."""
    count = len(content) // 18
    need(len(content) == 18 * count and 0 < count <= 1 << 15, "a frame of runs")
    page = place = 0
    for run in range(count):
        at, numbers = 0, []
        for width in (1, 4, 5, 8):
            data = content[at + run : at + width * count : count]
            numbers.append(int.from_bytes(data, "little", signed=width == 8))
            at += width * count
        kind, pages, distance, shift = numbers
        need(kind in (0, 1) and 0 < pages < 1 << 25, "a run")
        page, place = page + distance, place + shift
        yield kind, pages, page, place
        page, place = page + pages, place + pages * (stride if kind else 9)


def _page(outline: dict[str, Any], number: int) -> tuple[str, int]:
    for name, length, _ in outline["blocks"]:
        if number < length // outline["page_size"]:
            return name, number
        number -= length // outline["page_size"] + 1
        need(number >= 0, "a page between two blocks")
    raise Refused("a page outside the memory")
