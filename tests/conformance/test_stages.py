"""What every filter must do as a stage, in one suite over the table of filters."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.cli.filtertable import FILTERS, find
from statepipe.errors import PeerError
from statepipe.stage import FLUSH, Buffer, close
from statepipe.stages.zstd import SPARE_FRAMES
from statepipe.threads import SPARE, cores
from tests.conformance.adapters import ADAPTERS, build, cut, filter_of, thinned, through

PATIENCE = 30

every_filter = pytest.mark.parametrize("name", ADAPTERS)

NOISE = hashlib.shake_128(b"conformance").digest(9 << 20)
THIN = thinned(NOISE)

EDGES = (1, 4 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 4 << 20)
SIZES = sorted({0, *(edge + near for edge in EDGES for near in (-1, 0, 1))})
"""Around a page, age's chunk, zstd's block, a read, a frame, and what is decoded whole."""


def plenty(name: str) -> bytes:
    """Nine mebibytes that the filter is through with soon."""
    return THIN if ADAPTERS[name].slow else NOISE


@cache
def fed(name: str) -> bytes:
    """The filter's input for them."""
    return ADAPTERS[name].feed(plenty(name))


def threads_and_descriptors() -> tuple[set[threading.Thread], set[str], set[str]]:
    """And the children, which the kernel lists by the thread that started them."""
    gc.collect()
    tasks = Path("/proc/self/task")
    started: set[str] = set()
    for task in os.listdir(tasks):
        with suppress(FileNotFoundError):  # a thread that has ended: its children are another's now
            started |= {*(tasks / task / "children").read_text().split()}
    return set(threading.enumerate()), set(os.listdir("/proc/self/fd")), started


def test_every_filter_has_an_adapter() -> None:
    assert {filter_of(name) for name in ADAPTERS} == {row.name for row in FILTERS}


@every_filter
@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=3000), sizes=st.lists(st.integers(0, 700), min_size=1, max_size=8).filter(any))
def test_any_split_gives_the_same(name: str, data: bytes, sizes: list[int]) -> None:
    adapter = ADAPTERS[name]
    assert adapter.undo(through(name, data, cut(adapter.feed(data), sizes))) == data


@every_filter
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_every_boundary(name: str, size: int) -> None:
    data, adapter = (NOISE if size < 1 << 19 else plenty(name))[:size], ADAPTERS[name]
    given = adapter.feed(data)
    for sizes in ([256 << 10], [len(given) or 1], [65521, 0, 300_007]):
        assert adapter.undo(through(name, data, cut(given, sizes))) == data


@every_filter
def test_each_byte_by_itself(name: str) -> None:
    data, adapter = NOISE[:2000], ADAPTERS[name]
    assert adapter.undo(through(name, data, cut(adapter.feed(data), [1]))) == data


@every_filter
def test_every_kind_of_buffer(name: str) -> None:
    data, adapter = NOISE[:200_000], ADAPTERS[name]
    kinds = cycle([bytes, bytearray, memoryview])
    buffers = [kind(part) for part, kind in zip(cut(adapter.feed(data), [30_000]), kinds, strict=False)]
    assert adapter.undo(through(name, data, buffers)) == data


@every_filter
def test_flush_marks_alone_are_no_data(name: str) -> None:
    marks, adapter = [FLUSH] * 5, ADAPTERS[name]
    assert adapter.undo(through(name, b"", [*marks, adapter.feed(b""), *marks])) == b""


@every_filter
def test_a_flush_mark_pushes_everything_out(name: str) -> None:
    """While its source says nothing more, all that came before the mark can be had from below, and the mark."""
    data, adapter = NOISE[:400_000], ADAPTERS[name]
    heard, given = threading.Event(), adapter.feed(data)

    def source() -> Iterator[Buffer]:
        yield from cut(given, [150_000])
        yield FLUSH
        assert heard.wait(PATIENCE), "the flush mark did not arrive below"

    flow = build(name, data)(source())
    out = b""
    for buffer in flow:
        if not len(buffer):
            break
        out += buffer
    plain = adapter.undo(out)
    heard.set()
    out += b"".join(flow)
    assert adapter.undo(out) == data
    assert plain == data or (adapter.holds_back and data.startswith(plain))


@every_filter
def test_an_early_close_leaves_nothing(name: str) -> None:
    given = fed(name)
    before = threads_and_descriptors()
    flow = build(name, plenty(name))(cut(given, [100_000]))
    next(flow)
    close(flow)
    assert threads_and_descriptors() == before


@every_filter
def test_what_is_forgotten_leaves_nothing(name: str) -> None:
    given = fed(name)
    before = threads_and_descriptors()
    flow = build(name, plenty(name))(cut(given, [100_000]))
    next(flow)
    del flow
    assert threads_and_descriptors() == before


@pytest.mark.parametrize("name", [name for name in ADAPTERS if not find(filter_of(name)).is_first])
def test_an_error_from_above_arrives_as_it_is(name: str) -> None:
    given = ADAPTERS[name].feed(plenty(name)[: 3 << 20])
    error = PeerError("the peer is gone")

    def source() -> Iterator[Buffer]:
        yield from cut(given[: len(given) // 2], [100_000])
        raise error

    before = threads_and_descriptors()
    flow = build(name, NOISE)(source())
    with pytest.raises(PeerError) as caught:
        list(flow)
    assert caught.value is error
    del flow, caught
    error.__traceback__ = None
    assert threads_and_descriptors() == before


SPARES = {
    "compress": SPARE,
    "decompress": SPARE_FRAMES,
    "encrypt": SPARE,
    "decrypt": SPARE,
    "encrypt:armor": SPARE,
    "decrypt:armor": SPARE,
}
"""The filters that let more wait than the usual 3 pieces beside those that are worked on."""


@pytest.mark.parametrize("name", [name for name in ADAPTERS if not find(filter_of(name)).is_last])
def test_a_slow_reader_holds_the_source_back(name: str) -> None:
    """What is between them is bounded; the noise passes each filter at its size."""
    taken = behind = 0
    noise = NOISE * 4 if name in SPARES else NOISE

    def source() -> Iterator[Buffer]:
        nonlocal behind
        sent = 0
        for buffer in cut(ADAPTERS[name].feed(noise), [256 << 10]):
            sent += len(buffer)
            behind = max(behind, sent - taken)
            yield buffer

    for buffer in build(name, noise)(source()):
        taken += len(buffer)
    assert behind <= (cores() + SPARES.get(name, 3) + 3) * ADAPTERS[name].block


@pytest.mark.parametrize("row", [row for row in FILTERS if row.inverse], ids=lambda row: row.name)
def test_the_inverse_undoes_it(row: object) -> None:
    """`inverse` names a filter that takes what this one puts out and gives what this one took."""
    name, inverse = row.name, row.inverse  # type: ignore[attr-defined]
    assert find(inverse).inverse == name
    data = NOISE[: 2 << 20]
    given = ADAPTERS[name].feed(data)
    out = through(name, data, cut(given, [256 << 10]))
    assert ADAPTERS[inverse].undo(through(inverse, data, cut(out, [100_003]))) == data


@every_filter
def test_a_filter_that_keeps_the_bytes_keeps_them(name: str) -> None:
    if find(filter_of(name)).keeps_bytes:
        assert through(name, NOISE, cut(NOISE, [1 << 20])) == NOISE
