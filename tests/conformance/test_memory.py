"""How much memory a stream may make its reader take: no more than was allowed, and it says how to allow more."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import subprocess
import sys
from collections.abc import Callable

import lz4.frame
import pytest

from statepipe.cli.filtertable import find
from statepipe.errors import IntegrityError
from statepipe.formats.zstdframe import WHOLE_LIMIT
from statepipe.migration.negotiation import UNDOING
from statepipe.stages.codec import CODECS, compress, decompress
from statepipe.units import parse_size
from tests.unit.formats.test_zstdframe import EMPTY_LAST, RLE, block, frame

THERE = 8 << 20
"""What `receive` allows a peer's stream."""

FAR = b"\xa8"
"""The window of 2 GiB in a frame's header (RFC 8878, 3.1.1.1.2)."""

FAR_BOMB = frame(*[RLE] * 17_000, EMPTY_LAST, rest=FAR)
"""70 KB of zstd that decode to 2.1 GiB, of which a reader is to keep 2."""

MEASURE = """
import re, sys
from statepipe.errors import StatepipeError
from statepipe.stages.codec import decompress
data = sys.stdin.buffer.read()
flow = iter([data[at : at + 65536] for at in range(0, len(data), 65536)])
for _ in range(int(sys.argv[1])):
    flow = decompress(*map(eval, sys.argv[2:]))(flow)
try:
    for _ in flow:
        pass
    outcome = "whole"
except StatepipeError as error:
    outcome = f"{type(error).__name__}: {error}"
resident = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(resident // 1024, outcome)
"""
"""Decompresses so many times over; VmHWM in MiB, for ru_maxrss is inherited, and what came of it."""


def measured(data: bytes, times: int = 1, *limits: str) -> tuple[int, str]:
    command = [sys.executable, "-c", MEASURE, str(times), *limits]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    resident, _, outcome = done.stdout.decode().strip().partition(" ")
    return int(resident), outcome


@pytest.mark.parametrize("limits", [(), ("8 << 20",)], ids=["unasked", "there"])
def test_a_window_of_2_gigabytes_is_refused_before_it_is_made(limits: tuple[str, ...]) -> None:
    resident, outcome = measured(FAR_BOMB, 1, *limits)
    allowed = "8.0 MiB" if limits else "128 MiB"
    assert outcome == f"IntegrityError: the zstd frame at byte 0 needs 2.0 GiB of memory, of {allowed} allowed"
    assert resident < 100, f"{resident} MiB"


def test_the_refusal_says_how_to_allow_more() -> None:
    data = frame(EMPTY_LAST, rest=FAR)
    with pytest.raises(IntegrityError) as caught:
        list(decompress()(iter([data])))
    assert "statepipe decompress --memory 2048M" in str(caught.value.hint)
    assert b"".join(decompress(memory=parse_size("2048M"))(iter([data]))) == b""


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_what_our_own_compress_makes_fits_at_every_level(codec: object) -> None:
    """In what `receive` allows, which is less than the tools of other making need."""
    plain = random.Random(1).randbytes(1 << 18) + b"words and words " * (1 << 16)
    assert isinstance(codec, type(CODECS[0]))
    for level in {codec.levels[0], codec.level, codec.levels[-1]}:
        packed = compress(f"{codec.name}:{level}")(iter([plain]))
        assert b"".join(decompress(memory=THERE)(packed)) == plain


def test_what_is_allowed_there_is_what_the_word_says() -> None:
    assert UNDOING["decompress"] == f"decompress:memory={THERE >> 20}M"
    assert any(param.name == "--memory" for param in find("decompress").params)


def test_stages_over_one_another_stay_within_their_bounds() -> None:
    """As many as a peer may ask for, each with the largest window that it may have, full of noise."""
    data, size = random.Random(1).randbytes(24 << 20), 128 << 10
    for _ in range(4):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        data = frame(*[block(0, len(part), part, last=False) for part in parts], EMPTY_LAST, rest=b"\x68")
    resident, outcome = measured(data, 4, "8 << 20")
    assert outcome == "whole" and resident < 300, f"{resident} MiB: {outcome}"


# --- bombs: little that decodes to much


POUR = """
import re, sys
from statepipe.stages.codec import decompress
data = sys.stdin.buffer.read()
largest = total = 0
for part in decompress()(data[i:i + 262144] for i in range(0, len(data), 262144)):
    largest, total = max(largest, len(part)), total + len(part)
    if total > 2 << 30:
        break
print(largest, total, int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""
"""Decompresses; the largest buffer, all of them, and VmHWM in MiB."""


def poured(data: bytes) -> tuple[int, int, int]:
    done = subprocess.run([sys.executable, "-c", POUR], input=data, capture_output=True, check=True)
    largest, total, resident = map(int, done.stdout.split())
    return largest, total, resident


ZEROS = bytes(32 << 20)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=1),
    "lz4": lambda data: lz4.frame.compress(data, block_size=7, block_linked=False),
    "lz4, linked": lambda data: lz4.frame.compress(data, block_size=7),
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_bombs_of_hundreds_of_mebibytes_stay_within_their_bounds(pack: Callable[[bytes], bytes]) -> None:
    _, total, resident = poured(pack(ZEROS) * 8)
    assert total == 8 * len(ZEROS)
    assert resident < 150, f"{resident} MiB"


BOMBS = {
    "no content size": frame(*[RLE] * 80_000, EMPTY_LAST),
    "many frames": frame(*[RLE] * 120, EMPTY_LAST) * 660,
    "a content size that is true": frame(
        *[RLE] * 80_000, EMPTY_LAST, descriptor=0xC0, rest=b"\x58" + (80_000 * 131072).to_bytes(8, "little")
    ),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_of_10_gigabytes_stays_within_its_bounds(bomb: bytes) -> None:
    largest, total, resident = poured(bomb)
    assert total > 2 << 30
    assert largest <= WHOLE_LIMIT + (256 << 10)
    assert resident < 150, f"{resident} MiB"
