"""zstd at levels that adapt, as a stage: real frames, a clock that the test moves, and zstd itself to read them."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import zstandard

from statepipe.errors import UsageError
from statepipe.stage import Buffer, chain, links
from statepipe.stages.adapt import Adaptive, pack
from statepipe.stages.codec import decompress
from statepipe.stages.levels import KNOWN
from statepipe.stages.packing import choose

FRAME = 1 << 20
CHANCE = Random(1)
WORDS = [CHANCE.randbytes(CHANCE.randint(2, 9)).hex().encode() for _ in range(3000)]
TEXT = b" ".join(CHANCE.choices(WORDS, k=FRAME // 2))[: 5 * FRAME]
NOISE = CHANCE.randbytes(3 * FRAME)


class Clock:
    """Stands still unless it is moved; for the workers always: to them no frame takes time."""

    def __init__(self) -> None:
        self._now = 0.0
        self._owner = threading.get_ident()

    def __call__(self) -> float:
        return self._now if threading.get_ident() == self._owner else 0.0

    def move(self, seconds: float) -> None:
        self._now += seconds


def taken_slowly(flow: Iterator[Buffer], clock: Clock, rate: float) -> bytes:
    """All that comes, by a sink that takes `rate` bytes a second of the clock's."""
    out = bytearray()
    for buffer in flow:
        out += buffer
        clock.move(len(buffer) / rate)
    return bytes(out)


def buffers(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 200_000] for at in range(0, len(data), 200_000))


def unzstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    return subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout


def test_a_slow_sink_raises_the_level_and_zstd_reads_it_all() -> None:
    clock, data = Clock(), TEXT * 6 + NOISE + TEXT
    stage = pack(-7, 12, clock, {"kind": "stream"}, lambda: {})
    flow = chain(buffers(data), [("compress", stage)])
    out = taken_slowly(flow, clock, 1e6)
    facts = links(flow)[0].facts()
    assert facts["level"] > 1 and facts["waits_for"] == "sink"
    assert unzstd(out) == data
    assert len(out) < len(b"".join(pack(1, 1, clock, {"kind": "stream"}, lambda: {})(buffers(data))))


def test_frames_made_for_a_quick_sink_are_made_again_for_a_slow_one() -> None:
    """The first ones are compressed at level 1 before anything is known; only what had left stays so."""
    clock, sizes = Clock(), []
    block = TEXT[:FRAME]
    for frame in Adaptive((1, 9), FRAME, clock)(iter([block] * 12)):
        assert frame is not None
        sizes.append(len(frame[0]))
        clock.move(0.5)
    quick, slow = (len(zstandard.ZstdCompressor(level=level, write_checksum=True).compress(block)) for level in (1, 9))
    assert sizes == [quick] + [slow] * 11


def test_what_looks_like_noise_is_not_searched() -> None:
    """A block whose sampled pages are random gets level 1's bytes, where text around it gets level 9's."""
    clock, frames = Clock(), []
    text = TEXT[:FRAME]
    step = (FRAME - 4096) // 15
    page = b"".join(NOISE[at : at + 4096] + TEXT[at + 4096 : at + step] for at in range(0, 16 * step, step))[:FRAME]
    for frame in Adaptive((1, 9), FRAME, clock)(iter([text] * 12 + [page, text])):
        assert frame is not None
        frames.append(frame[0])
        clock.move(0.5)
    quick, slow = (zstandard.ZstdCompressor(level=level, write_checksum=True) for level in (1, 9))
    assert quick.compress(page) != slow.compress(page)
    assert frames[-2:] == [quick.compress(page), slow.compress(text)]


def test_our_own_reader_proves_it() -> None:
    stage = choose("zstd:auto").stage(Clock())
    assert b"".join(decompress()(stage(buffers(TEXT)))) == TEXT


def test_small_frames_teach_nothing() -> None:
    """A flush mark after each few bytes, as from an idle source."""
    clock = Clock()
    stage = Adaptive(tuple(KNOWN), FRAME, clock)
    plain = b"".join(
        zstandard.decompress(frame[0]) for frame in stage(iter([b"few bytes", b""] * 50)) if frame is not None
    )
    assert plain == b"few bytes" * 50
    assert stage.facts()["level"] == 1


Given = dict[str, Any]


def parameters(codec: str = "zstd", adapt: bool = False, low: str | None = None, high: str | None = None) -> Given:
    return {"codec": codec, "adapt": adapt, "min": low, "max": high, "one_frame": False}


@pytest.mark.parametrize("values", [parameters("zstd:auto"), parameters(adapt=True), parameters("auto", low="1")])
def test_ways_to_ask_for_it(values: Given) -> None:
    assert choose(**values).packing(Clock()).word == "compress:zstd:auto"


def test_a_level_is_fixed() -> None:
    assert choose("zstd:5").packing(Clock()).word == "compress:zstd:5"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (parameters("gzip", adapt=True), "--adapt chooses zstd's level, so it cannot be combined with 'gzip'"),
        (parameters("zstd:3", adapt=True), "cannot be combined with 'zstd:3'"),
        (parameters("zstd:3", low="1"), "only limit the levels of zstd:auto"),
        (parameters("zstd:auto", low="x"), "--min 'x' is not a level"),
        (parameters("zstd:auto", low="0"), "--min '0' is not a level"),
        (parameters("zstd:auto", high="22"), "--max '22' is not a level"),
        (parameters("zstd:auto", low="5", high="3"), "--min 5 is above --max 3"),
        (parameters("gzip"), "save cannot compress with gzip"),
    ],
)
def test_contradictions(values: Given, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(**values).packing(Clock())
