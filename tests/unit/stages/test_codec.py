"""The table of codecs: names, levels, magics."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import Any

import lz4.frame
import pytest
import zstandard

from statepipe.errors import IntegrityError, TruncatedError, UsageError
from statepipe.stage import FLUSH, Buffer
from statepipe.stages.codec import CODECS, RAW, SKIPPED_LIMIT, compress, decompress, identify, parse_codec
from statepipe.stages.packing import choose
from statepipe.stages.zstd import in_one_frame

SAID = {
    "zstd": ("zstd", 1),
    "zstd:": ("zstd", 1),
    "zstd:-7": ("zstd", -7),
    "3": ("zstd", 3),
    "-3": ("zstd", -3),
    "gzip": ("gzip", 1),
    "gzip:12": ("gzip", 12),
    "bzip2": ("bzip2", 9),
    "xz": ("xz", 1),
    "xz:0": ("xz", 0),
    "lz4:12": ("lz4", 12),
}


@pytest.mark.parametrize("text", SAID)
def test_a_codec_and_its_level(text: str) -> None:
    codec, level = parse_codec(text)
    assert (codec.name, level) == SAID[text]


NONE = ("", ":3", "lzma", "GZIP", "gzip:0", "gzip:x", "gzip:1:1", "bzip2:0", "xz:10", "lz4:-1", "23")
NO_NUMBERS = ("--3", "zstd:--3", "zstd:²", "zstd:1000000", "zstd:1.5", "zstd: 3")


@pytest.mark.parametrize("text", (*NONE, *NO_NUMBERS))
def test_what_is_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_codec(text)
    assert caught.value.hint


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_each_is_told_by_what_it_writes(codec: object) -> None:
    name = codec.name  # type: ignore[attr-defined]
    packed = b"".join(compress(name)(iter([b"it"])))
    assert identify(packed[:4]) == name
    assert b"".join(decompress()(packed[at : at + 1] for at in range(len(packed)))) == b"it"


PARTS = [b"of more than one block " * 100_000, FLUSH, b"and its end"]


def test_a_reader_that_stops_at_the_first_frame_has_all_of_lz4() -> None:
    packed = b"".join(compress("lz4")(iter(PARTS)))
    assert lz4.frame.decompress(packed) == b"".join(PARTS)


@pytest.mark.parametrize("parts", [PARTS, [], [b""]], ids=["much", "nothing", "nothing, flushed"])
def test_a_reader_that_stops_at_the_first_frame_has_all_of_zstd_in_one(parts: list[bytes]) -> None:
    packed = b"".join(in_one_frame(3)(iter(parts)))
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert reader.decompress(packed) == b"".join(parts) == b"".join(decompress()(iter([packed])))
    assert reader.eof and not reader.unused_data


def test_what_was_flushed_is_there_to_read_in_one_frame() -> None:
    flow = in_one_frame(1)(iter([b"first", FLUSH, b"second"]))
    packed = b""
    while part := next(flow):
        packed += part
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == b"first"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"codec": "lz4"}, "is for zstd, not for lz4"),
        ({"codec": "zstd:auto"}, "cannot be combined"),
        ({"adapt": True}, "cannot be combined"),
    ],
)
def test_what_does_not_go_with_one_frame(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(one_frame=True, **values)
    with pytest.raises(UsageError, match="a state file cannot be one frame"):
        choose(one_frame=True).packing(lambda: 0.0)


def test_a_bare_stream_is_raw_and_other_bytes_are_nothing() -> None:
    assert identify(b"QEVM") == RAW
    assert identify(b"PK\x03\x04") is None and identify(b"") is None


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(40), b"\x1f", b"B", b"Q"])
def test_what_is_in_no_codec_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a compressed stream") as caught:
        list(decompress()(iter([data])))
    *names, last = (codec.name for codec in CODECS)
    assert caught.value.offset == 0 and f"{', '.join(names)} and {last}" in str(caught.value.hint)


@pytest.mark.parametrize("parts", [[], [FLUSH], [b"", FLUSH]])
def test_nothing_is_no_stream(parts: Iterable[Buffer]) -> None:
    with pytest.raises(TruncatedError):
        list(decompress()(iter(parts)))


def skippable(size: int) -> bytes:
    return b"\x51\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)


@pytest.mark.parametrize("pack", [lz4.frame.compress, zstandard.compress], ids=["lz4", "zstd"])
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_skippable_frames_before_it_do_not_hide_the_codec(pack: object, size: int) -> None:
    data = skippable(0) + skippable(1000) + skippable(3) + pack(b"it" * 99)  # type: ignore[operator]
    assert b"".join(decompress()(data[at : at + size] for at in range(0, len(data), size))) == b"it" * 99


def test_skippable_frames_alone_are_an_empty_zstd_file() -> None:
    for data in (skippable(0), skippable(9) * 3, skippable(SKIPPED_LIMIT)):
        assert b"".join(decompress()(iter([data]))) == b""
    for data in (skippable(9)[:-1], skippable(9)[:7], skippable(0) + b"\x04\x22\x4d"):
        with pytest.raises(TruncatedError):
            list(decompress()(iter([data])))


def test_nothing_else_hides_behind_a_skippable_frame() -> None:
    with pytest.raises(IntegrityError, match="not begin a zstd frame"):
        list(decompress()(iter([skippable(4) + gzip.compress(b"it")])))
