"""The table of codecs: how the first bytes of a stream identify its codec, and which module reads and writes it.

A codec's module is imported when its first stage is made, because its native library takes time to load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module

from statepipe.errors import IntegrityError, TruncatedError, UsageError
from statepipe.formats.beginning import beginning
from statepipe.formats.zstdframe import MEMORY, SKIPPABLE_FIRST, SKIPPABLE_LAST
from statepipe.guessing import did_you_mean
from statepipe.stage import Buffer, Stage, peek
from statepipe.typed import NamedTuple, Protocol, cast


class _Module(Protocol):
    """The functions of each codec's module."""

    def compress(self, level: int) -> Stage: ...

    def decompress(self, memory: int) -> Stage: ...


class Codec(NamedTuple):
    """A row of the table. `level` is the default. The module of the same name in this folder reads and writes it."""

    name: str
    magics: tuple[bytes, ...]
    levels: range
    level: int

    @property
    def module(self) -> _Module:
        """Import and return its module."""
        return cast("_Module", import_module(f"{__package__}.{self.name}"))


RAW = "raw"
"""The name that `identify` returns for a bare migration stream."""

SKIPPABLE_MAGICS = tuple(magic.to_bytes(4, "little") for magic in range(SKIPPABLE_FIRST, SKIPPABLE_LAST + 1))
"""Skippable frames, with which our files begin."""

CODECS = (
    Codec("zstd", (b"\x28\xb5\x2f\xfd", *SKIPPABLE_MAGICS), range(-7, 23), 1),
    Codec("gzip", (b"\x1f\x8b",), range(1, 13), 1),
    Codec("bzip2", (b"BZh",), range(1, 10), 9),
    Codec("xz", (b"\xfd7zX",), range(10), 1),
    Codec("lz4", (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"), range(1, 13), 1),
)
"""Every codec; a level without a codec means the first.

The defaults are fast: zstd's level 3 is 2.4 times slower for 4 % less, xz's level 6 is 3.7 times slower for 9 % less.
bzip2 is not faster at its lower levels."""

ZSTD = CODECS[0]

_SKIPPERS = tuple(codec for codec in CODECS if codec.name in ("zstd", "lz4"))

SKIPPED_LIMIT = 64 << 10
"""Bytes of skippable frames that are held while the codec is not known; our own header has some hundreds."""

_LEVEL = re.compile("-?[0-9]{1,3}")


def parse_codec(text: str) -> tuple[Codec, int]:
    """Return the codec and level in `gzip`, `gzip:6`, `zstd:3` or `3`. Raises UsageError."""
    name, _, level = text.partition(":")
    if not level and _LEVEL.fullmatch(name):
        name, level = ZSTD.name, name
    codec = next((codec for codec in CODECS if codec.name == name), None)
    if codec is None:
        hint = f"{did_you_mean(name.lower(), [codec.name for codec in CODECS])}codecs are {_names()}, as in gzip:6"
        raise UsageError(f"unknown codec '{name}'", hint=hint)
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
    """Return the name of the codec of a stream that begins with `head` (4 bytes or more), or RAW, or None."""
    if codec := _find(head):
        return codec.name
    return RAW if head.startswith(b"QEVM") else None


def _find(head: bytes) -> Codec | None:
    return next((codec for codec in CODECS if head.startswith(codec.magics)), None)


def compress(text: str = ZSTD.name) -> Stage:
    """Return a stage that compresses with the codec and level in `text`. Raises UsageError."""
    codec, level = parse_codec(text)
    return codec.module.compress(level)


def decompress(memory: int = MEMORY) -> Stage:
    """Return a stage that recognizes the codec of the stream and decodes it.

    `memory`: bytes that zstd's window or xz's decoder may need; the others need less than 10 MiB. The stage raises
    IntegrityError for an unknown or damaged stream or one that needs more memory, TruncatedError for a cut or empty
    one.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        head, whole = peek(upstream, lambda head: _magic_place(head)[1] <= len(head))
        if not head:
            raise TruncatedError("the input is empty", offset=0)
        # zstd and lz4 both have skippable frames, so the first other frame decides between them
        place, _ = _magic_place(head)
        codec = _find(head[place : place + 4])
        codec = codec if codec in _SKIPPERS else _find(head[:4])
        if codec is None:
            what = f"the input is not a compressed stream: it begins {beginning(head)}"
            raise IntegrityError(what, hint=f"decompress reads {_names()}", offset=0)
        yield from codec.module.decompress(memory)(whole)

    return stage


def _magic_place(head: bytes) -> tuple[int, int]:
    """Return where the magic after the skippable frames begins, and how many bytes are needed to know it.

    Looks at most SKIPPED_LIMIT bytes ahead.
    """
    place = 0
    while head[place : place + 4] in SKIPPABLE_MAGICS:
        if len(head) < place + 8:
            return place, place + 8
        after = place + 8 + int.from_bytes(head[place + 4 : place + 8], "little")
        if after >= SKIPPED_LIMIT:
            return place, 0
        place = after
    return place, place + 4
