"""The codecs, and the table of them: how a stream's first bytes tell which it is in, and who reads and writes it.

A codec's module is imported when its first stage is made: it brings a native library, and the others must not wait
for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from statepipe.errors import IntegrityError, TruncatedError, UsageError
from statepipe.formats.beginning import beginning
from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import Buffer, Stage, peek


class _Module(Protocol):
    """What each codec's module offers."""

    def compress(self, level: int) -> Stage: ...

    def decompress(self, memory: int) -> Stage: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the table. `levels` are those that it takes, `level` is the one it has unasked.

    The module of its name in this folder writes and reads it.
    """

    name: str
    magics: tuple[bytes, ...]
    levels: range
    level: int

    @property
    def module(self) -> _Module:
        """Its module, imported now."""
        return cast("_Module", import_module(f"{__package__}.{self.name}"))


RAW = "raw"
"""What `identify` calls a bare migration stream."""

SKIPPABLE_MAGICS = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
"""Skippable frames, with which a file of ours begins."""

CODECS = (
    Codec("zstd", (b"\x28\xb5\x2f\xfd", *SKIPPABLE_MAGICS), range(-7, 23), 1),
    Codec("gzip", (b"\x1f\x8b",), range(1, 13), 1),
    Codec("bzip2", (b"BZh",), range(1, 10), 9),
    Codec("xz", (b"\xfd7zX",), range(10), 1),
    Codec("lz4", (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"), range(1, 13), 1),
)
"""Every codec; the first is the one that a bare level means.

The defaults are the quick ones: zstd's level 3 is 2.4 times slower for 4 % less, xz's 6 is 3.7 times slower for 9 %
less. bzip2 is no quicker at its lower levels."""

ZSTD = CODECS[0]

_SKIPPERS = tuple(codec for codec in CODECS if codec.name in ("zstd", "lz4"))

SKIPPED_LIMIT = 64 << 10
"""Bytes of skippable frames that are held while the codec is not known; our own header takes some hundreds."""


_LEVEL = re.compile("-?[0-9]{1,3}")


def parse_codec(text: str) -> tuple[Codec, int]:
    """The codec and level in `gzip`, `gzip:6`, `zstd:3`, `3`. Raises UsageError."""
    name, _, level = text.partition(":")
    if not level and _LEVEL.fullmatch(name):
        name, level = ZSTD.name, name
    codec = next((codec for codec in CODECS if codec.name == name), None)
    if codec is None:
        raise UsageError(f"unknown codec '{name}'", hint=f"codecs are {_names()}, as in gzip:6")
    if not level:
        return codec, codec.level
    if not _LEVEL.fullmatch(level) or int(level) not in codec.levels:
        levels = f"levels are {codec.levels[0]} to {codec.levels[-1]}"
        raise UsageError(f"{codec.name} has no level '{level}'", hint=levels)
    return codec, int(level)


def _names() -> str:
    *most, last = (codec.name for codec in CODECS)
    return f"{', '.join(most)} and {last}"


def identify(head: bytes) -> str | None:
    """The codec a stream that begins with `head` (4 bytes or more) is in; RAW is a bare migration stream."""
    codec = _find(head)
    if codec is not None:
        return codec.name
    return RAW if head.startswith(b"QEVM") else None


def _find(head: bytes) -> Codec | None:
    return next((codec for codec in CODECS if head.startswith(codec.magics)), None)


def compress(text: str = ZSTD.name) -> Stage:
    """A stage that compresses with the codec and level of `text`. Raises UsageError."""
    codec, level = parse_codec(text)
    return codec.module.compress(level)


def decompress(memory: int = MEMORY) -> Stage:
    """A stage that decodes whatever codec the stream turns out to be in.

    `memory`: bytes that a window of zstd's, or a decoder of xz's, may take; the others need less than 10 MiB.
    Raises IntegrityError for an unknown or damaged stream and one that needs more memory, TruncatedError for one that
    is cut or empty.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        head, whole = _first_magic(upstream)
        if not head:
            raise TruncatedError("the input is empty", offset=0)
        codec = _find(head)
        if codec is None:
            hint = f"decompress reads {_names()}"
            raise IntegrityError(f"the input begins {beginning(head)}: no compressed stream", hint=hint, offset=0)
        yield from codec.module.decompress(memory)(whole)

    return stage


def _first_magic(upstream: Iterator[Buffer]) -> tuple[bytes, Iterator[Buffer]]:
    """Return the magic that tells the codec, and the whole stream.

    A skippable frame does not tell it: zstd and lz4 have those in common. So the frame after them is looked at, within
    SKIPPED_LIMIT bytes.
    """
    head, whole = peek(upstream, lambda head: _magic_place(head)[1] <= len(head))
    place, _ = _magic_place(head)
    found = head[place : place + 4]
    return found if _find(found) in _SKIPPERS else head[:4], whole


def _magic_place(head: bytes) -> tuple[int, int]:
    """Return where the magic behind skippable frames begins, and how many bytes of the stream it takes to know it."""
    place = 0
    while head[place : place + 4] in SKIPPABLE_MAGICS:
        if len(head) < place + 8:
            return place, place + 8
        after = place + 8 + int.from_bytes(head[place + 4 : place + 8], "little")
        if after >= SKIPPED_LIMIT:
            return place, 0
        place = after
    return place, place + 4
