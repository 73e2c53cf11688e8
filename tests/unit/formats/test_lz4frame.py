"""lz4: what lz4(1) writes in all its ways, what others may write, and what nobody should."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import lz4.block
import lz4.frame
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.lz4frame import LEGACY_MAGIC, MAGIC
from statepipe.formats.zstdframe import WHOLE_LIMIT
from statepipe.stage import FLUSH, Buffer
from statepipe.stages.codec import decompress
from statepipe.stages.lz4 import compress

NOISE = random.Random(6).randbytes(100_000)
PLAIN = NOISE + b"words and words " * 40_000 + bytes(300_000) + NOISE + NOISE[::-1]


def decode(parts: Iterable[Buffer]) -> bytes:
    return b"".join(decompress()(iter(parts)))


def refused(data: bytes, words: str = "") -> IntegrityError:
    with pytest.raises(IntegrityError, match=words) as caught:
        decode([data])
    assert caught.value.offset is not None and caught.value.offset <= len(data)
    return caught.value


def framed(data: bytes, **options: Any) -> bytes:
    """By the library's own writer."""
    return bytes(lz4.frame.compress(data, **({"content_checksum": True} | options)))


def skippable(data: bytes) -> bytes:
    return b"\x53\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def by_tool(*options: str, data: bytes = PLAIN) -> bytes:
    try:
        return subprocess.run(["lz4", "-c", *options], input=data, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("lz4 is not installed")


WAYS = ["-1", "-9", "-12", "--fast=3", "-BD", "-BD -B4", "-BX", "-B4 -BX", "-B7", "--no-frame-crc", "-l", "-l -9"]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_tool_writes_is_read(way: str) -> None:
    packed = by_tool(*way.split())
    assert decode([packed]) == PLAIN
    assert decode(packed[at : at + 10_000] for at in range(0, len(packed), 10_000)) == PLAIN


@pytest.mark.parametrize("level", range(1, 13))
@pytest.mark.parametrize("data", [b"", b"x", PLAIN, NOISE * 25], ids=["empty", "x", "mixed", "noise"])
def test_the_library_reads_what_we_write(level: int, data: bytes) -> None:
    packed = b"".join(compress(level)(iter([data])))
    plain = b""
    while packed:
        decoder = lz4.frame.LZ4FrameDecompressor()
        plain += decoder.decompress(packed)
        assert decoder.eof
        packed = decoder.unused_data or b""
    assert plain == data


def test_a_linked_frame_looks_back() -> None:
    """Each block repeats the noise of the one before, and is small only because of that."""
    data = NOISE[:60_000] * 20
    linked = framed(data, block_linked=True, block_size=4)
    assert len(linked) * 2 < len(framed(data, block_linked=False, block_size=4))
    assert decode([linked]) == data
    assert decode([linked, framed(b"after"), linked]) == data + b"after" + data


JOINED = framed(b"first" * 9) + skippable(b"abc") + framed(b"") + framed(NOISE[:500]) + skippable(b"")


@given(st.lists(st.integers(0, len(JOINED)), max_size=20))
@settings(max_examples=60, deadline=None)
def test_it_does_not_matter_how_the_stream_is_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(JOINED)]
    assert decode(JOINED[a:b] for a, b in pairwise(edges)) == b"first" * 9 + NOISE[:500]


def test_byte_by_byte() -> None:
    assert decode(JOINED[i : i + 1] for i in range(len(JOINED))) == b"first" * 9 + NOISE[:500]


def test_flush_marks_go_on_to_those_below() -> None:
    first = framed(b"first")
    assert list(decompress()(iter([first, FLUSH, first, FLUSH]))) == [b"first", FLUSH, b"first", FLUSH]


def test_a_frame_of_many_blocks_is_kept_until_its_checksum() -> None:
    packed = framed(PLAIN, block_size=4)
    for data in (packed[:-1], packed[:-4] + bytes(4)):
        out: list[Buffer] = []
        with pytest.raises(IntegrityError):
            out.extend(decompress()(iter([data])))
        assert out == []


def test_of_a_large_frame_the_last_block_is_kept_back() -> None:
    plain = PLAIN * 10
    packed = framed(plain, block_size=6)
    assert decode([packed]) == plain
    out: list[bytes] = []
    with pytest.raises(IntegrityError, match="checksum mismatch"):
        out.extend(map(bytes, decompress()(iter([packed[:-4] + bytes(4)]))))
    came = b"".join(out)
    assert plain.startswith(came) and WHOLE_LIMIT - (1 << 20) <= len(came) < len(plain)


def test_a_bomb_comes_in_bounded_buffers() -> None:
    largest = total = 0
    for buffer in decompress()(iter([framed(bytes(2 * WHOLE_LIMIT), block_size=7)])):
        largest, total = max(largest, len(buffer)), total + len(buffer)
    assert total == 2 * WHOLE_LIMIT and largest <= 4 << 20


def head(flags: int, sizes: int = 0x40, more: bytes = b"") -> bytes:
    """A frame's header with a checksum that agrees."""
    descriptor = bytes((flags, sizes)) + more
    return MAGIC.to_bytes(4, "little") + descriptor + bytes((xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF,))


def block(data: bytes, size: int | None = None) -> bytes:
    return (len(data) if size is None else size).to_bytes(4, "little") + data


RAW = 1 << 31

HOSTILE = {
    "another version": (head(0x80), "reserved bits"),
    "a reserved flag": (head(0x62), "reserved bits"),
    "a reserved size bit": (head(0x60, 0x41), "reserved bits"),
    "no block size": (head(0x60, 0x30), "reserved bits"),
    "a dictionary": (head(0x61, more=bytes(4)), "needs a dictionary"),
    "a header checksum": (head(0x60)[:-1] + b"\0", "checksum mismatch"),
    "a block that is too large": (head(0x60) + block(b"", 65537), "65537 bytes, is above the limit"),
    "a block that says more": (head(0x60) + block(lz4.block.compress(bytes(70_000), store_size=False)), "is corrupt"),
    "a block of nonsense": (head(0x60) + block(b"\xff\xff\xff"), "is corrupt"),
    "a block checksum": (head(0x70) + block(b"abc", RAW | 3) + bytes(4), "is corrupt"),
    "more than is declared": (head(0x68, more=bytes(8)) + block(b"abc", RAW | 3), "more than the 0 bytes"),
    "less than is declared": (head(0x68, more=b"\4" + bytes(7)) + block(b"abc", RAW | 3) + bytes(4), "3 bytes, not"),
    "an older block that is too large": (LEGACY_MAGIC.to_bytes(4, "little") + block(b"", 9 << 20), "above the limit"),
    "trailing garbage": (framed(b"x") + b"garbage", "trailing garbage"),
    "zeros": (framed(b"x") + bytes(8), "trailing garbage"),
}


@pytest.mark.parametrize(("data", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_nobody_should_write(data: bytes, words: str) -> None:
    refused(data, words)


def test_every_cut_of_joined_frames_is_found() -> None:
    """Between frames, and in an older frame between blocks, none can tell."""
    whole = {len(framed(b"first" * 9))}
    whole |= {max(whole) + len(skippable(b"abc"))}
    whole |= {max(whole) + len(framed(b""))}
    whole |= {len(JOINED) - len(skippable(b""))}
    for size in range(4, len(JOINED)):
        if size not in whole:
            with pytest.raises(TruncatedError) as caught:
                decode([JOINED[:size]])
            assert caught.value.offset == size


def test_an_older_frame_between_others() -> None:
    older = by_tool("-l", data=b"older" * 100)
    for data in (older + framed(b"x"), older + older, older + skippable(b"abc")):
        assert decode([data]).startswith(b"older" * 100)
    with pytest.raises(TruncatedError):
        decode([older[:-1]])


def test_memory_is_bounded_by_blocks() -> None:
    """A source that never ends: only so many blocks are asked of it before some are taken."""
    asked = 0

    def source() -> Iterator[bytes]:
        nonlocal asked
        yield head(0x60, 0x70)
        for _ in range(1000):
            asked += 1
            yield block(lz4.block.compress(bytes(4 << 20), store_size=False))

    flow = decompress()(source())
    next(flow)
    assert asked < 40
    flow.close()  # type: ignore[attr-defined]
