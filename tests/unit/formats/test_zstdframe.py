"""Cutting a zstd stream into its frames, and decoding what zstd(1), pzstd(1) and hostile hands write."""

from __future__ import annotations

import random
import resource
import subprocess
from collections.abc import Iterable
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.zstdframe import WHOLE_LIMIT, Frame, FrameSplitter, Part, Piece, Skippable, skippable
from statepipe.stage import FLUSH, Buffer
from statepipe.stages.codec import compress
from statepipe.stages.zstd import decompress

PLAIN = random.Random(1).randbytes(300_000) + b"words and words " * 20_000 + bytes(200_000)


def tool(*command: str, data: bytes = PLAIN) -> bytes:
    try:
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")


def decode(parts: Iterable[Buffer]) -> bytes:
    return b"".join(decompress()(iter(parts)))


def split(*parts: Buffer) -> list[Piece]:
    splitter = FrameSplitter()
    pieces = [piece for part in parts for piece in splitter.feed(part)]
    splitter.close()
    return pieces


def frame(*blocks: bytes, descriptor: int = 0, rest: bytes = b"\x58") -> bytes:
    """A frame by hand: no checksum, no content size, a window of 2 MiB, unless `descriptor` and `rest` say more."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + rest + b"".join(blocks)


def block(kind: int, size: int, body: bytes, *, last: bool) -> bytes:
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + body


RLE = block(1, 128 << 10, b"r", last=False)
EMPTY_LAST = block(0, 0, b"", last=True)


# --- what the tools write


WRITTEN = {
    "zstd": ("zstd", "-cq"),
    "without checksum": ("zstd", "-cq", "--no-check"),
    "level 19": ("zstd", "-19cq"),
    "fast": ("zstd", "--fast=5", "-cq"),
    "long": ("zstd", "--long", "-cq"),
    "without content size": ("zstd", "-cq", "--no-content-size"),
    "threads": ("zstd", "-T2", "-cq", "-B65536"),
    "pzstd": ("pzstd", "-p2", "-c", "-q"),
}


@pytest.mark.parametrize("command", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_the_tools_write_is_read(command: tuple[str, ...]) -> None:
    data = tool(*command)
    assert decode([data]) == PLAIN
    assert decode(data[i : i + 1000] for i in range(0, len(data), 1000)) == PLAIN


def test_pzstd_is_read_frame_by_frame() -> None:
    plain = bytes(20 << 20)
    data = tool("pzstd", "-p2", "-c", "-q", data=plain)
    pieces = split(data)
    assert [type(piece) for piece in pieces[:2]] == [Skippable, Frame]
    assert not any(isinstance(piece, Part) for piece in pieces)
    assert decode([data]) == plain


MIXED = (
    tool("zstd", "-cq", data=b"first")
    + skippable(0x184D2A50, b"between")
    + tool("zstd", "-cq", "--no-check", data=b"")
    + skippable(0x184D2A5F, b"")
    + tool("zstd", "-cq", "--no-check", data=b"second")
    + frame(block(0, 5, b"third", last=True))
    + frame(block(1, 7, b"r", last=False), block(0, 0, b"", last=True))
)
MIXED_PLAIN = b"firstsecondthirdrrrrrrr"


def test_frames_of_all_kinds_one_after_another() -> None:
    assert decode([MIXED]) == MIXED_PLAIN
    assert tool("zstd", "-dcq", data=MIXED) == MIXED_PLAIN
    kinds = [type(piece) for piece in split(MIXED)]
    assert kinds == [Frame, Skippable, Frame, Skippable, Frame, Frame, Frame]


def test_pieces_are_the_stream_without_a_byte_less() -> None:
    at = 0
    for piece in split(MIXED):
        assert piece.offset == at
        at += piece.length + 8 if isinstance(piece, Skippable) else len(piece.data)
    assert at == len(MIXED)


@given(st.lists(st.integers(0, len(MIXED)), max_size=30))
@settings(max_examples=150, deadline=None)
def test_pieces_do_not_depend_on_the_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(MIXED)]
    assert split(*(MIXED[a:b] for a, b in pairwise(edges))) == split(MIXED)


@given(st.lists(st.integers(0, len(MIXED)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_decoding_does_not_depend_on_the_split_nor_on_flush_marks(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(MIXED)]
    parts = [part for a, b in pairwise(edges) for part in (MIXED[a:b], FLUSH)]
    assert decode(parts) == MIXED_PLAIN


def test_byte_by_byte() -> None:
    assert decode(MIXED[i : i + 1] for i in range(len(MIXED))) == MIXED_PLAIN


def test_flush_marks_go_on_to_those_below() -> None:
    data = tool("zstd", "-cq", data=b"first")
    assert [bytes(part) for part in decompress()(iter([FLUSH, data, FLUSH]))] == [b"", b"first", b""]


@given(st.lists(st.one_of(st.binary(max_size=50), st.just(FLUSH)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_we_compress_we_decompress(parts: list[bytes]) -> None:
    assert decode(compress()(iter(parts))) == b"".join(parts)


@pytest.mark.parametrize("log", [10, 17, 21, 27])
def test_any_window_is_read(log: int) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=False)
    data = zstandard.ZstdCompressor(compression_params=parameters).compress(PLAIN)
    assert decode([data]) == PLAIN


# --- large frames


def test_a_large_frame_is_streamed() -> None:
    size = 5 * WHOLE_LIMIT
    data = tool("sh", "-c", f"head -c {size} /dev/zero | zstd --long=31 -cq")
    kinds = {type(piece) for piece in split(data)}
    assert kinds == {Part}
    assert sum(map(len, decompress(2 << 30)(iter([data])))) == size


@pytest.mark.parametrize("size", [1000, 65536])
@pytest.mark.parametrize("options", [(), ("--no-check",), ("--no-content-size",)])
def test_a_large_frame_in_small_buffers(size: int, options: tuple[str, ...]) -> None:
    plain = bytes(WHOLE_LIMIT) + PLAIN
    data = tool("zstd", "-cq", *options, data=plain) + tool("zstd", "-cq", data=b"after it")
    assert decode(data[i : i + size] for i in range(0, len(data), size)) == plain + b"after it"


def test_a_large_frame_is_checked_to_its_end() -> None:
    data = tool("zstd", "-cq", data=bytes(WHOLE_LIMIT) + PLAIN)
    for damaged in (data[:-1], data[:-5], data[: len(data) // 2]):
        with pytest.raises(TruncatedError):
            decode([damaged])
    with pytest.raises(IntegrityError, match="corrupt"):
        decode([data[:-1] + bytes([data[-1] ^ 1])])


def test_a_content_size_that_lies_is_damage() -> None:
    for claimed in (0, 1, 4, 6, 1 << 20, 1 << 24, 1 << 30, 1 << 62):
        data = frame(block(0, 5, b"third", last=True), descriptor=0xC0, rest=b"\x58" + claimed.to_bytes(8, "little"))
        with pytest.raises(IntegrityError):
            decode([data])


def test_a_long_skippable_frame_is_not_kept() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = (64 << 20) + 5
    head = (0x184D2A53).to_bytes(4, "little") + size.to_bytes(4, "little")
    zeros = bytes(1 << 20)
    parts = [head, *[zeros] * (size >> 20), bytes(size & 0xFFFFF), tool("zstd", "-cq", data=b"after it")]
    assert decode(parts) == b"after it"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < size >> 11
    with pytest.raises(TruncatedError):
        decode(parts[:-2])


# --- what is refused


DAMAGED = {
    "a reserved bit": frame(EMPTY_LAST, descriptor=8),
    "a reserved block": frame(block(3, 5, b"third", last=True)),
    "a block too large": frame(block(0, (128 << 10) + 1, bytes(131_073), last=True)),
    "a dictionary": frame(EMPTY_LAST, descriptor=1, rest=b"\x58\x07"),
    "another magic": b"\x27\xb5\x2f\xfd" + bytes(20),
    "garbage behind it": MIXED + b"garbage",
    "a block that is none": frame(block(2, 5, b"third", last=True)),
    "a window beyond 2 GiB": frame(*[RLE] * 200, EMPTY_LAST, rest=b"\xff"),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_damage_is_refused_with_its_offset(data: bytes, size: int) -> None:
    if len(data) > 1000 and size == 1:
        size = 997
    with pytest.raises(IntegrityError) as caught:
        decode(data[i : i + size] for i in range(0, len(data), size))
    assert not isinstance(caught.value, TruncatedError)
    assert caught.value.offset is not None and caught.value.offset <= len(data)


def test_a_cut_inside_a_frame_is_truncated_between_frames_it_is_an_end() -> None:
    ends = {piece.offset for piece in split(MIXED)} - {0}
    for size in range(len(MIXED)):
        if size in ends:
            split(MIXED[:size])
            continue
        with pytest.raises(TruncatedError) as caught:
            decode([MIXED[:size]])
        assert caught.value.offset == size


@given(st.integers(0, len(MIXED) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_raises_nothing_but_integrity_errors(at: int, byte: int) -> None:
    data = bytearray(MIXED)
    data[at] = byte
    try:
        decode([data])
    except IntegrityError as error:
        assert error.offset is not None


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_after_a_magic_raise_nothing_but_integrity_errors(data: bytes) -> None:
    for magic in (b"\x28\xb5\x2f\xfd", b"\x55\x2a\x4d\x18", b"\x5e\x2a\x4d\x18", b"\x50\x2a\x4d\x18"):
        try:
            decode([magic + data])
        except IntegrityError as error:
            assert error.offset is not None


def test_a_frame_of_ours_cut_into_many_small_blocks_is_still_a_frame_of_ours() -> None:
    blocks = [block(0, 64, bytes([n & 255]) * 64, last=False) for n in range(2000)]
    plain = b"".join(bytes([n & 255]) * 64 for n in range(2000)) + b"end"
    blocks.append(block(0, 3, b"end", last=True))
    data = frame(*blocks, descriptor=0x80, rest=b"\x58" + len(plain).to_bytes(4, "little"))
    pieces = list(FrameSplitter().feed(data))
    assert [type(piece) for piece in pieces] == [Frame]
    assert decode([data]) == plain
