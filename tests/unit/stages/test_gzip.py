"""gzip: what gzip(1) and its likes write, and every way that it can be damaged."""

from __future__ import annotations

import gzip
import random
import subprocess
import zlib
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.zstdframe import WHOLE_LIMIT
from statepipe.stage import FLUSH, Buffer
from statepipe.stages import gzip as gzip_stage
from statepipe.stages.codec import decompress
from statepipe.stages.joined import SLICE

PLAIN = random.Random(1).randbytes(700) + b"words and words " * 200 + bytes(3000)
MEMBER = gzip.compress(PLAIN, mtime=0)
TWO = MEMBER + gzip.compress(b"the second", mtime=0)


def decode(parts: Iterable[Buffer]) -> bytes:
    return b"".join(gzip_stage.decompress()(iter(parts)))


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
    parts = list(gzip_stage.decompress()(iter([TWO[:100], FLUSH, TWO[100:], FLUSH])))
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
    bomb = gzip.compress(bytes(2 * WHOLE_LIMIT))
    largest = total = 0
    for buffer in gzip_stage.decompress()(iter([bomb])):
        largest, total = max(largest, len(buffer)), total + len(buffer)
    assert total == 2 * WHOLE_LIMIT and largest <= 1 << 20


def test_nothing_leaves_before_the_checksum() -> None:
    for data in (MEMBER[:-1], MEMBER[:-8] + bytes(8)):
        flow, out = gzip_stage.decompress()(iter([data])), []
        with pytest.raises(IntegrityError):
            out.extend(flow)
        assert out == []


def test_of_a_large_member_the_last_piece_is_kept_back() -> None:
    plain = random.Random(3).randbytes(12 << 20)
    data = gzip.compress(plain, 0)
    flow, out = gzip_stage.decompress()(iter([data[:-8] + bytes(8)])), []
    with pytest.raises(IntegrityError) as caught:
        out.extend(flow)
    came = b"".join(out)
    assert plain.startswith(came) and WHOLE_LIMIT - SLICE <= len(came) < len(plain)
    assert caught.value.offset is not None and "begins at byte 0 is corrupt" in str(caught.value)


@pytest.mark.parametrize("level", range(1, 13))
@pytest.mark.parametrize("data", [b"", b"x", PLAIN * 400, bytes(3 << 20)], ids=["empty", "x", "mixed", "zeros"])
def test_what_we_write_python_reads(level: int, data: bytes) -> None:
    assert gzip.decompress(b"".join(gzip_stage.compress(level)(iter([data])))) == data


def test_a_header_that_does_not_end() -> None:
    with pytest.raises(IntegrityError, match="its header is too long"):
        decode([b"\x1f\x8b\x08\x08" + bytes(6), b"name" * (1 << 17)])


def test_a_size_that_is_another() -> None:
    with pytest.raises(IntegrityError, match="size mismatch"):
        decode([MEMBER[:-4] + bytes(4)])


def test_middling_pages_are_left_to_libdeflate() -> None:
    """Hexadecimal digits, in which ISA-L finds too little: at level 1 they come out no larger than gzip -1's."""
    digits = random.Random(4).randbytes(300_000).hex().encode()
    assert len(b"".join(gzip_stage.compress(1)(iter([digits])))) <= len(gzip.compress(digits, 1))
