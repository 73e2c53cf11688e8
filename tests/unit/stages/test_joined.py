"""bzip2, xz and the streams of all codecs that were joined: cut at what looks like a beginning, right or not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.zstdframe import WHOLE_LIMIT
from statepipe.stage import FLUSH, Buffer
from statepipe.stages import joined, xz
from statepipe.stages.codec import decompress
from statepipe.stages.joined import SLICE

NOISE = random.Random(5).randbytes(3 << 20)

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "stored": lambda data: gzip.compress(data, 0, mtime=0),
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
}

every_codec = pytest.mark.parametrize("pack", PACK.values(), ids=PACK)


def decode(parts: Iterable[Buffer]) -> bytes:
    return b"".join(decompress()(iter(parts)))


def pieces(data: bytes, size: int) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def refused(data: bytes) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        decode(pieces(data, 1 << 18))
    assert caught.value.offset is not None
    return caught.value


@every_codec
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=12), sizes=st.lists(st.integers(0, 400), min_size=1, max_size=6))
def test_joined_streams_split_anywhere(pack: Callable[[bytes], bytes], cuts: list[int], sizes: list[int]) -> None:
    """An empty cut is a flush mark, in the middle of a stream too."""
    data = b"".join(pack(NOISE[:size]) for size in sizes)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert decode(data[a:b] for a, b in pairwise(edges)) == b"".join(NOISE[:size] for size in sizes)


@every_codec
@pytest.mark.parametrize("inner", PACK.values(), ids=PACK)
def test_a_beginning_inside_a_stream_is_none(pack: Callable[[bytes], bytes], inner: Callable[[bytes], bytes]) -> None:
    """What is packed holds streams of its own, and some codecs store what they cannot make smaller as it is."""
    packed = inner(NOISE[:5000]) + inner(NOISE[:100]) + inner(b"")
    data = pack(packed) + pack(packed * 3)
    assert decode([data]) == packed * 4
    assert decode(pieces(data, 1000)) == packed * 4


@every_codec
def test_streams_too_large_to_keep(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they decode to, by their own size, and small ones around them."""
    monkeypatch.setattr(joined, "WHOLE_LIMIT", 1 << 20)  # more of it proves no more, and takes longer
    monkeypatch.setattr(xz, "BLOCK_SIZE", 1 << 20)
    large, small = NOISE[: 9 << 18], NOISE[:100]  # what is kept of a stream is now 1 MiB, or 2 of gzip
    zeros = bytes(joined.WHOLE_LIMIT + 1)
    data = pack(small) + pack(large) + pack(small) + pack(zeros) + pack(small)
    assert decode(pieces(data, 1 << 18)) == small + large + small + zeros + small


@every_codec
def test_a_bomb_comes_in_bounded_buffers(pack: Callable[[bytes], bytes]) -> None:
    largest = total = 0
    for buffer in decompress()(iter([pack(bytes(2 * WHOLE_LIMIT))])):
        largest, total = max(largest, len(buffer)), total + len(buffer)
    assert total == 2 * WHOLE_LIMIT and largest <= SLICE


@every_codec
@pytest.mark.parametrize("size", [1, 1000, 1 << 18])
def test_a_flush_mark_hands_on_what_is_whole(pack: Callable[[bytes], bytes], size: int) -> None:
    first, second = pack(NOISE[:300]), pack(NOISE[300:600])
    out = list(decompress()(iter([*pieces(first, size), FLUSH, *pieces(second, size), FLUSH])))
    assert b"".join(out) == NOISE[:600]
    assert b"".join(out[: out.index(FLUSH)]) == NOISE[:300]
    assert out.count(FLUSH) == 2 and out[-1] == FLUSH


@every_codec
def test_damage_says_in_which_stream(pack: Callable[[bytes], bytes]) -> None:
    first, second = pack(NOISE[:50_000]), bytearray(pack(NOISE[50_000:100_000]))
    second[20_000] ^= 8
    error = refused(first + second)
    assert f"begins at byte {len(first)} is corrupt" in str(error)
    assert error.offset is not None and error.offset >= len(first)


@every_codec
def test_garbage_says_where_it_begins(pack: Callable[[bytes], bytes]) -> None:
    data = pack(NOISE[:5000])
    for garbage in (b"garbage", b"\x1f", b"x" * 100_000, pack(b"")[:5], b"BZh", b"\xfd7zXZ\0"):
        error = refused(data + garbage)
        assert error.offset is not None and len(data) <= error.offset <= len(data) + len(garbage)


MAGIC_ALONE = (b"BZh9" + b"x" * 30, b"BZh0" + b"1AY&SY" * 4, b"\xfd7zXZ\0" + b"x" * 30, b"\xfd7zXYY")


@pytest.mark.parametrize("data", MAGIC_ALONE)
def test_a_magic_alone_is_damage(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("data", [b"BZh", b"BZh9", b"\xfd7zX", b"\xfd7zXZ\0"])
def test_a_magic_and_no_more_is_cut(data: bytes) -> None:
    assert isinstance(refused(data), TruncatedError)


def test_xz_padding_is_multiples_of_four() -> None:
    stream = lzma.compress(b"one")
    assert decode([stream + bytes(4), bytes(8), stream, stream + bytes(512)]) == b"one" * 3
    for size in (1, 2, 3, 5, 511):
        assert refused(stream + bytes(size)).offset == len(stream) + size
        refused(stream + bytes(size) + stream)
    refused(bytes(4) + stream)
    refused(stream + bytes(4) + b"garbage")


def test_bzip2_has_no_padding() -> None:
    assert refused(bz2.compress(b"one") + bytes(4)).offset == len(bz2.compress(b"one"))


def test_xz_without_a_checksum_is_read() -> None:
    """`xz --check=none`: there is nothing to prove it by."""
    assert decode([lzma.compress(NOISE[:1000], check=lzma.CHECK_NONE)]) == NOISE[:1000]


def test_lzma_alone_is_no_xz() -> None:
    refused(lzma.compress(b"old", format=lzma.FORMAT_ALONE))


def test_an_xz_dictionary_that_is_too_large() -> None:
    """The header of a block asks for 4 GiB: nothing is given."""
    stream = bytearray(lzma.compress(NOISE[:1000]))
    assert stream[12:16] == b"\x02\0\x21\x01"  # sizes and flags, LZMA2, one byte of properties, which is next
    stream[16] = 40
    stream[20:24] = zlib.crc32(stream[12:20]).to_bytes(4, "little")
    with pytest.raises(IntegrityError, match="needs more memory, of 128 MiB allowed") as caught:
        list(decompress()(iter([bytes(stream)])))
    assert "--memory SIZE" in str(caught.value.hint)
