"""The metadata frames of a state file: what each says, checked where it enters.

A metadata frame's payload is `statepipe`, one byte for its kind, the first 16 bytes of the BLAKE3 of kind and contents,
and the contents: JSON, or, of the kinds INDEX and DOMAIN, a zstd frame that other modules read.
"""

from __future__ import annotations

import json

from blake3 import blake3

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.hardware import HARDWARE
from statepipe.formats.seektable import LEAST_FRAME
from statepipe.formats.zstdframe import KEPT_LIMIT, skippable
from statepipe.shapes import (
    LARGEST,
    Misshapen,
    Shape,
    anything,
    check,
    fields,
    flag,
    many,
    maybe,
    parse,
    table,
    text,
    whole,
)
from statepipe.typed import Any, NamedTuple

META_MAGIC = 0x184D2A55
VERSION = 1
HEADER, DOMAIN, INDEX, TRAILER = b"H", b"D", b"P", b"T"

_TAG = b"statepipe"
_CHECK = 16
META_LIMIT = KEPT_LIMIT
"""Bytes of a metadata frame's payload at most. A header has a few KiB; with a thousand disks, a trailer has 400 KiB
and a header's command line 150 KiB. Python needs 25 MB for a megabyte of the worst JSON."""

META_OVERHEAD = len(_TAG) + 1 + _CHECK
"""Bytes of a metadata frame's payload before its contents."""

Facts = dict[str, Any]

_PATH, _NAME, _WORD = text(4096), text(1024), text(128 << 10)  # limits.h, QEMU's ids, execve(2)
_DIGEST = text(64)
_DISK_SEEN = fields(
    {"format": text(64), "size": whole(), "mtime_ns": maybe(whole(-LARGEST)), "samples_blake3": _DIGEST}
)


_DISK_AT = fields(
    {"path": _PATH},
    {
        "unknown": text(),
        "devices": many(text(4096), 1000),
        "driver": _NAME,
        "read_only": flag,
        "remote_size": maybe(whole()),
        "content_blake3": _DIGEST,
    },
)


def _disk(value: object, where: str) -> None:
    """Check a disk's fingerprint, or the reason why it has no fingerprint."""
    _DISK_AT(value, where)
    if isinstance(value, dict) and "unknown" not in value:
        _DISK_SEEN(value, where)


_HEADER = fields(
    {"statepipe": whole()},
    {
        "kind": text(64),
        "time": whole(0, 1 << 36),
        "writer": _NAME,
        "stages": many(text(), 1000),
        "name": maybe(_NAME),
        "uuid": maybe(_NAME),
        "machine": maybe(_NAME),
        "qemu": maybe(_NAME),
        "ram": maybe(whole()),
        "command": many(_WORD, 64 << 10),
        "live": flag,
        "run_state_before": maybe(_NAME),
        "hardware": HARDWARE,
    },
)
"""The facts known before the stream. Fields that a later version may add are ignored."""

_BLOCK = fields({"name": text(255), "length": whole()}, {"page_size": maybe(whole())})
"""A RAM block: qemu_get_counted_string gives its name 255 bytes."""

_INDEX = {"frames": whole(), "size": whole(), "blake3": _DIGEST, "runs": whole(), "stored": whole(), "zero": whole()}
IN_FRAMES = fields(_INDEX)
"""What a trailer says of an index that the file holds; of another, it says why there is none."""

_TRAILER = fields(
    {"bytes": whole(), "frames": whole(), "file_blake3": _DIGEST},
    {
        "blake3": _DIGEST,
        "end_mark": whole(),
        "machine": maybe(_NAME),
        "uuid": maybe(_NAME),
        "page_size": whole(),
        "ram_bytes": whole(),
        "rounds": whole(),
        "switchover": maybe(whole()),
        "run_state": maybe(_NAME),
        "return_path": flag,
        "postcopy": flag,
        "proof": maybe(_NAME),
        "phase": _NAME,
        "blocks": many(_BLOCK, 4096),
        "pages": table(whole(), 16),
        "devices": many(_NAME, 100_000),
        "disks": maybe(many(_disk, 64 << 10)),
        "stopped_for_it": flag,
        "index": fields({}, _INDEX | {"unserved": _NAME}),
    },
)
"""The facts known after the end of the stream."""

STATE_TRAILER = fields({"end_mark": whole(), "blake3": text(64)})
"""The fields that loading needs; a trailer without them does not belong to a saved guest."""

_VERSIONED = fields({"statepipe": whole()})

_SHAPES: dict[bytes, Shape] = {HEADER: _HEADER, TRAILER: _TRAILER}


class Meta(NamedTuple):
    """A metadata frame: its kind (HEADER, DOMAIN, INDEX, TRAILER, or one of a later version) and its facts.

    A frame of another kind than HEADER and TRAILER has no facts but a `body`.
    """

    kind: bytes
    facts: Facts
    body: bytes = b""


def encode_meta(kind: bytes, facts: Facts) -> bytes:
    """Return a whole metadata frame. Its JSON is ASCII, which can escape the surrogates of a path that is not UTF-8.

    Raises StatepipeError for facts that a reader would refuse, so that no such file is written.
    """
    try:
        check(facts, _SHAPES.get(kind, anything))
    except Misshapen as error:
        raise StatepipeError(f"this guest does not fit into a state file: {error}") from error
    frame = meta_frame(kind, json.dumps(facts, separators=(",", ":")).encode())
    if len(frame) - LEAST_FRAME > META_LIMIT:
        largest = max(facts, key=lambda name: len(json.dumps(facts[name])))
        raise StatepipeError(f"the metadata of a state file is limited to {META_LIMIT} bytes: '{largest}' is too large")
    return frame


def meta_frame(kind: bytes, body: bytes) -> bytes:
    """Return a whole metadata frame with these contents, which are not looked at."""
    return skippable(META_MAGIC, _TAG + kind + blake3(kind + body).digest(_CHECK) + body)


def decode_meta(payload: bytes, offset: int) -> Meta | None:
    """Return the metadata in a skippable frame's payload, or None if the frame is not one of ours.

    Raises IntegrityError if it is ours and damaged, or contains what statepipe does not write.
    """
    if not payload.startswith(_TAG):
        return None
    start = len(_TAG) + 1
    kind = payload[len(_TAG) : start]
    digest, text = payload[start : start + _CHECK], payload[start + _CHECK :]
    if blake3(kind + text).digest(_CHECK) != digest:
        raise IntegrityError("the metadata does not match its checksum", offset=offset)
    shape = _SHAPES.get(kind)
    if shape is None:
        return Meta(kind, {}, text)
    name = "header" if kind == HEADER else "trailer"
    try:
        facts = parse(text, _VERSIONED if kind == HEADER else shape)
        if kind == HEADER and facts["statepipe"] == VERSION:  # a later version may use another shape
            check(facts, shape)
        return Meta(kind, facts)
    except Misshapen as error:
        raise IntegrityError(f"the {name} of the file is damaged: {error}", offset=offset) from error


def is_disguised(payload: bytes) -> bool:
    """Return whether a payload without our tag, or in a frame with another magic, has the checksum of one of ours: then
    the tag or the magic is damaged."""
    start = len(_TAG)
    kind, digest, body = payload[start : start + 1], payload[start + 1 : META_OVERHEAD], payload[META_OVERHEAD:]
    return len(digest) == _CHECK and blake3(kind + body).digest(_CHECK) == digest


def check_state_trailer(facts: Facts, offset: int) -> None:
    """Raises IntegrityError if the trailer does not belong to a saved guest."""
    try:
        check(facts, STATE_TRAILER)
    except Misshapen as error:
        raise IntegrityError(f"the trailer is not that of a saved state: {error}", offset=offset) from error


def check_version(header: Facts) -> None:
    """Raises StatepipeError for a format version other than ours."""
    version = header.get("statepipe")
    if version != VERSION:
        raise StatepipeError(
            f"the file has format version {version}; this statepipe reads version {VERSION}",
            hint="load it with a newer statepipe, or extract the raw stream with zstd -d",
        )
