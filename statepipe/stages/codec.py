"""The codecs, and the table of them: how a stream's first bytes tell which it is in, and who reads and writes it.

A codec's module is imported when its first stage is made: it brings a native library, and the others must not wait
for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain as concatenate

from statepipe.errors import IntegrityError, TruncatedError, UsageError
from statepipe.formats.beginning import beginning
from statepipe.formats.statefile import Checker
from statepipe.formats.zstdframe import MEMORY
from statepipe.stage import Buffer, Over, Stage


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the table. `levels` are those that `compressor` takes, `level` is the one it has unasked."""

    name: str
    magics: tuple[bytes, ...]
    levels: range
    level: int
    compressor: Callable[[int], Stage]
    decompressor: Callable[[Checker | None, int], Stage]


def _to_zstd(level: int) -> Stage:
    from statepipe.stages import zstd

    return zstd.compress(level)


def _of_zstd(checker: Checker | None, memory: int) -> Stage:
    from statepipe.stages import zstd

    return zstd.unpack(checker or Checker(), memory)


def _to_gzip(level: int) -> Stage:
    from statepipe.stages import gzip

    return gzip.compress(level)


def _of_gzip(checker: Checker | None, memory: int) -> Stage:
    from statepipe.stages import gzip

    return gzip.decompress()


def _to_bzip2(level: int) -> Stage:
    from statepipe.stages import bzip2

    return bzip2.compress(level)


def _of_bzip2(checker: Checker | None, memory: int) -> Stage:
    from statepipe.stages import bzip2

    return bzip2.decompress()


def _to_xz(level: int) -> Stage:
    from statepipe.stages import xz

    return xz.compress(level)


def _of_xz(checker: Checker | None, memory: int) -> Stage:
    from statepipe.stages import xz

    return xz.decompress(memory)


def _to_lz4(level: int) -> Stage:
    from statepipe.stages import lz4

    return lz4.compress(level)


def _of_lz4(checker: Checker | None, memory: int) -> Stage:
    from statepipe.stages import lz4

    return lz4.decompress()


RAW = "raw"
"""What `identify` calls a bare migration stream."""

SKIPPABLE_MAGICS = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
"""Skippable frames, with which a file of ours begins."""

CODECS = (
    Codec("zstd", (b"\x28\xb5\x2f\xfd", *SKIPPABLE_MAGICS), range(-7, 23), 1, _to_zstd, _of_zstd),
    Codec("gzip", (b"\x1f\x8b",), range(1, 13), 1, _to_gzip, _of_gzip),
    Codec("bzip2", (b"BZh",), range(1, 10), 9, _to_bzip2, _of_bzip2),
    Codec("xz", (b"\xfd7zX",), range(10), 1, _to_xz, _of_xz),
    Codec("lz4", (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"), range(1, 13), 1, _to_lz4, _of_lz4),
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
    return codec.compressor(level)


def decompress(checker: Checker | None = None, memory: int = MEMORY) -> Stage:
    """A stage that decodes whatever codec the stream turns out to be in; `checker` follows one of ours.

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
        yield from codec.decompressor(checker, memory)(whole)

    return stage


def _first_magic(upstream: Iterator[Buffer]) -> tuple[bytes, Iterator[Buffer]]:
    """The magic that tells the codec: not that of a skippable frame, which zstd and lz4 have in common, if one of
    theirs is found within SKIPPED_LIMIT bytes."""
    head = _Head(upstream)
    first = found = head.at(0, 4)
    skipped = 0
    while found in SKIPPABLE_MAGICS and skipped < SKIPPED_LIMIT:
        skipped += 8 + int.from_bytes(head.at(skipped + 4, 4), "little")
        if skipped < SKIPPED_LIMIT:
            found = head.at(skipped, 4)
    return found if _find(found) in _SKIPPERS else first, head.whole()


class _Head:
    """The beginning of a stream, taken as far as somebody looks; `whole` still gives all of it."""

    def __init__(self, upstream: Iterator[Buffer]) -> None:
        self._upstream = upstream
        self._taken: list[Buffer] = []
        self._bytes = bytearray()

    def at(self, start: int, size: int) -> bytes:
        """The bytes there, fewer where the stream ends."""
        while len(self._bytes) < start + size and (buffer := next(self._upstream, None)) is not None:
            self._taken.append(buffer)
            self._bytes += buffer
        return bytes(self._bytes[start : start + size])

    def whole(self) -> Iterator[Buffer]:
        """What was taken, and the rest."""
        return Over(self._upstream, concatenate(self._taken, self._upstream))


def peek(upstream: Iterator[Buffer], size: int = 4) -> tuple[bytes, Iterator[Buffer]]:
    """The first `size` bytes (fewer if there are no more), and an iterator that still gives all of them."""
    head = _Head(upstream)
    return head.at(0, size), head.whole()
