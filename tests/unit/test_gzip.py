"""Reading gzip: what gzip(1) and its likes write, and every way that it can be damaged."""

from __future__ import annotations

import gzip
import random
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import FLUSH, Buffer
from statepipe.stages.codec import decompress
from statepipe.stages.gzip import gunzip

PLAIN = random.Random(1).randbytes(700) + b"words and words " * 200 + bytes(3000)
MEMBER = gzip.compress(PLAIN, mtime=0)
TWO = MEMBER + gzip.compress(b"the second", mtime=0)


def decode(parts: Iterable[Buffer]) -> bytes:
    return b"".join(gunzip()(iter(parts)))


def by_tool(*command: str) -> bytes:
    return subprocess.run(command, input=PLAIN, capture_output=True, check=True).stdout


@pytest.mark.parametrize("command", ["gzip -c", "gzip -1c", "pigz -c", "pigz -11c", "pigz -ic"])
def test_what_the_tools_write_is_read(command: str) -> None:
    try:
        data = by_tool(*command.split())
    except FileNotFoundError:
        pytest.skip(f"{command} is not to be had")
    assert decode([data]) == PLAIN
    assert b"".join(decompress()(iter([data]))) == PLAIN


def test_members_follow_one_another() -> None:
    assert decode([TWO]) == PLAIN + b"the second"
    assert decode([gzip.compress(b"") + MEMBER + gzip.compress(b"")]) == PLAIN


def test_a_member_with_every_header_field_is_read() -> None:
    fields = b"\x03\0abc" + b"name\0" + b"comment\0"
    header = b"\x1f\x8b\x08\x1e" + bytes(4) + b"\0\x03" + fields
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    assert decode([header + MEMBER[10:]]) == PLAIN
    with pytest.raises(IntegrityError):
        decode([header[:-1] + bytes([header[-1] ^ 1]) + MEMBER[10:]])


@given(st.lists(st.integers(0, len(TWO)), max_size=20))
@settings(max_examples=60, deadline=None)
def test_it_does_not_matter_how_the_stream_is_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TWO)]
    assert decode(TWO[a:b] for a, b in pairwise(edges)) == PLAIN + b"the second"


def test_byte_by_byte() -> None:
    assert decode(TWO[i : i + 1] for i in range(len(TWO))) == PLAIN + b"the second"


def test_flush_marks_go_on_to_those_below() -> None:
    parts = list(gunzip()(iter([TWO[:100], FLUSH, TWO[100:], FLUSH])))
    assert b"".join(parts) == PLAIN + b"the second"
    assert parts.count(FLUSH) == 2 and parts[-1] == FLUSH


def test_a_cut_at_every_byte_is_truncated() -> None:
    for size in range(len(TWO)):
        if size == len(MEMBER):  # a shorter file: gzip cannot tell
            continue
        with pytest.raises(TruncatedError) as caught:
            decode([TWO[:size]])
        assert caught.value.offset == size


@pytest.mark.parametrize("parts", [[], [FLUSH], [b"", b""]])
def test_nothing_is_no_gzip_stream(parts: list[bytes]) -> None:
    with pytest.raises(TruncatedError):
        decode(parts)


def test_a_flipped_bit_is_found_or_changes_nothing() -> None:
    chance = random.Random(2)
    end = len(MEMBER) * 8
    for bit in (*range(14 * 8), *(chance.randrange(end) for _ in range(600)), *range(end - 64, end)):
        data = bytearray(MEMBER)
        data[bit // 8] ^= 1 << bit % 8
        try:
            assert decode([data]) == PLAIN  # the time, the system, a repetition's distance: they change nothing
        except IntegrityError as error:
            assert error.offset is not None


def test_zeros_behind_it_are_padding() -> None:
    assert decode([MEMBER + bytes(512)]) == PLAIN
    assert decode([MEMBER, bytes(512), bytes(3)]) == PLAIN


@pytest.mark.parametrize("behind", [b"garbage", b"\x1f", b"\x1f\x8b", bytes(512) + b"x", bytes(512) + MEMBER])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_garbage_behind_it_is_damage(behind: bytes, size: int) -> None:
    data = MEMBER + behind
    with pytest.raises(IntegrityError) as caught:
        decode(data[i : i + size] for i in range(0, len(data), size))
    assert caught.value.offset is not None and caught.value.offset >= len(MEMBER)


@pytest.mark.parametrize("data", [bytes(100), b"not gzip at all", b"\x1f\x8b\x07" + bytes(20)])
def test_another_format_is_damage(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode([data])


def test_a_bomb_comes_in_bounded_buffers() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    largest = total = 0
    for buffer in gunzip()(iter([bomb])):
        largest, total = max(largest, len(buffer)), total + len(buffer)
    assert total == 64 << 20 and largest <= 1 << 20


def test_it_asks_for_no_more_than_it_needs() -> None:
    asked = 0

    def source() -> Iterator[bytes]:
        nonlocal asked
        for i in range(0, len(MEMBER), 100):
            asked += 1
            yield MEMBER[i : i + 100]

    first = next(gunzip()(source()))
    assert first and asked <= 2
