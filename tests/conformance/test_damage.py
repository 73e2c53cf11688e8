"""One byte short, one bit flipped: decompress and verify refuse it, say where, and let nothing wrong out before."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from functools import cache

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import Stage, chain, close
from tests.conformance.adapters import build, cut, frames, through
from tests.conformance.running import assert_one_error, run

DATA = b"".join(hashlib.sha256(bytes([number])).digest()[: number % 31] for number in range(40))
SHORT = DATA[:90]
LONG = hashlib.shake_128(b"damage").digest(1_300_000)


def one_frame(data: bytes) -> bytes:
    """As `zstd` writes from a pipe: checksum, but no size."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


FORMATS = {
    "ours": lambda data: through("compress", data, cut(data, [500_000, 0])),
    "frames": frames,
    "one frame": one_frame,
    "our gzip": lambda data: through("compress:gzip", data, cut(data, [500_000, 0])),
    "gzip": gzip.compress,
    "our bzip2": lambda data: through("compress:bzip2", data, cut(data, [500_000, 0])),
    "bzip2": bz2.compress,
    "our xz": lambda data: through("compress:xz", data, cut(data, [500_000, 0])),
    "xz": lzma.compress,
    "our lz4": lambda data: through("compress:lz4", data, cut(data, [500_000, 0])),
    "lz4": lambda data: lz4.frame.compress(data, content_checksum=True, block_checksum=True, block_size=4),
}

every_format = pytest.mark.parametrize("name", FORMATS)

UNUSED = {
    "one frame": (4, 5),  # an unused bit, and the window's size
    "frames": (4,),
    "our gzip": range(3, 11),  # whether it is text, when and where it was made; a stored block's unused bits
    "gzip": range(3, 11),
    "our bzip2": range(3, 1000),  # the level, codes for what does not occur, the last bits of the last byte
    "bzip2": range(3, 1000),
}
"""Bytes in which a flip may change nothing, by the format. Then the data are what they were."""


def attempt(stage: Stage, data: bytes) -> tuple[bytes, IntegrityError | None]:
    """What comes out, and the refusal."""
    flow = chain(iter(cut(data, [40, 1 << 20])), [("it", stage)])
    out = b""
    try:
        for buffer in flow:
            out += buffer
    except IntegrityError as error:
        return out, error
    finally:
        close(flow)
    return out, None


@every_format
def test_every_cut_is_found(name: str) -> None:
    packed = FORMATS[name](DATA)
    for size in range(len(packed)):
        out, error = attempt(build("decompress", b""), packed[:size])
        assert isinstance(error, TruncatedError) or (error and size < 4), size
        assert error.offset is not None and 0 <= error.offset <= size
        assert DATA.startswith(out)


@every_format
def test_every_flip_is_found(name: str) -> None:
    packed = FORMATS[name](SHORT)
    for bit in range(8 * len(packed)):
        at = bit // 8
        flipped = bytearray(packed)
        flipped[at] ^= 1 << bit % 8
        out, error = attempt(build("decompress", b""), bytes(flipped))
        if error is None:
            assert at in UNUSED.get(name, ()) and out == SHORT, at
        else:
            assert error.offset is not None and 0 <= error.offset <= len(packed), at
            assert SHORT.startswith(out), at


DAMAGE = {
    "zeros": lambda data, a, b: data[:a] + bytes(b - a) + data[b:],
    "lost": lambda data, a, b: data[:a] + data[b:],
    "repeated": lambda data, a, b: data[:b] + data[a:b] + data[b:],
    "turned round": lambda data, a, b: data[:a] + data[a:b][::-1] + data[b:],
    "moved to the end": lambda data, a, b: data[:a] + data[b:] + data[a:b],
}


@every_format
@settings(deadline=None, max_examples=60)
@given(damage=st.sampled_from(sorted(DAMAGE)), edges=st.lists(st.integers(0, 2000), min_size=2, max_size=2))
def test_any_damage_is_found_or_is_none(name: str, damage: str, edges: list[int]) -> None:
    packed = FORMATS[name](DATA)
    first, last = sorted(min(edge, len(packed)) for edge in edges)
    damaged = DAMAGE[damage](packed, first, last)
    out, error = attempt(build("decompress", b""), damaged)
    if error is None:
        assert out == DATA or (damaged == packed * 2 and out == DATA * 2)
    else:
        assert error.offset is not None and 0 <= error.offset <= len(damaged)
        assert (DATA * 2).startswith(out)


@every_format
def test_what_follows_the_end_is_found(name: str) -> None:
    out, error = attempt(build("decompress", b""), FORMATS[name](DATA) + b"garbage")
    assert error is not None and error.offset is not None
    assert DATA.startswith(out)


@cache
def long(name: str) -> bytes:
    return FORMATS[name](LONG)


@every_format
@pytest.mark.parametrize("at", [0.0, 0.3, 0.7, 0.999999])
def test_the_command_says_where(name: str, at: float) -> None:
    packed = long(name)
    position = int(len(packed) * at)
    flipped = packed[:position] + bytes([packed[position] ^ 4]) + packed[position + 1 :]
    for damaged in (flipped, packed[:position] or packed[:1]):
        done = run("decompress", data=damaged)
        assert done.returncode == 3
        assert_one_error(done.stderr, "decompress", "byte ")
        assert b"statepipe: hint: " in done.stderr
        assert name == "one frame" or LONG.startswith(done.stdout)


def test_verify_finds_every_flip_and_cut_before_the_last_byte() -> None:
    for at in range(len(DATA)):
        flipped = DATA[:at] + bytes([DATA[at] ^ 1 << at % 8]) + DATA[at + 1 :]
        for damaged in (flipped, DATA[:at], DATA + b"x"):
            out, error = attempt(build("verify", DATA), damaged)
            assert error is not None
            assert len(out) < max(len(damaged), 1)


def test_a_file_of_ours_that_lost_its_trailer_is_cut_short() -> None:
    """To zstd it is whole: gzip and zstd accept a file cut at a member's boundary."""
    packed = FORMATS["ours"](LONG)
    trailer = packed.rindex(b"\x55\x2a\x4d\x18")
    _, error = attempt(build("decompress", b""), packed[:trailer])
    assert isinstance(error, TruncatedError)
