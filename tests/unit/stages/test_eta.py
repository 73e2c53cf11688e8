"""What is left of a migration stream, by its QEMU's memory: true from a fifth of the way on, wherever zeros lie."""

from __future__ import annotations

import mmap
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from statepipe.formats.qemu.stream import QemuStream
from statepipe.qemu.memory import Memory, memory
from statepipe.stages.eta import LARGE, Remaining
from tests.bench.stream import closing_part, opening, ram_section, record

PAGES = LARGE // 4096 * 6
STEP = 256 << 10
RATE = 100e6


def stream_of(whole: bytes) -> bytes:
    """A guest each of whose pages is whole (1) or zero (0)."""
    parts, page = [opening(len(whole) * 4096)], b"\1" * 4096
    for at in range(0, len(whole), 1024):
        rows = enumerate(whole[at : at + 1024], at)
        parts.append(ram_section(b"".join(record(n, page if it else None, first=not n) for n, it in rows)))
    return b"".join([*parts, closing_part()])


class Known:
    """What is known from outside of a guest's memory: it was touched, or is whole; and nothing is rewritten."""

    def __init__(self, whole: bytes, touched: bytes) -> None:
        self.touched, self._whole = touched, whole

    def whole(self, first: int) -> float:
        return float(self._whole.count(1, first))

    def rewritten(self) -> float:
        return 0.0


def following(stream: QemuStream, whole: bytes, touched: bytes) -> Remaining:
    """Of a guest that writes nothing."""
    size = len(whole) * 4096
    return Remaining(stream, lambda asked: Known(whole, touched) if asked == size else None, lambda: 0.0)


def errors(data: bytes, remaining: Remaining, stream: QemuStream) -> tuple[list[float], list[bool]]:
    """How far each forecast was off, from 20 % of the way on, and whether it was a bound."""
    found, bounds = [], []
    for at in range(0, len(data), STEP):
        stream.feed(data[at : at + STEP])
        remaining.look()
        done, left = at + STEP, remaining.bytes(RATE)
        if 0.2 * len(data) <= done < len(data) and left is not None:
            bounds.append(remaining.is_bound)
            found.append(abs(left - (len(data) - done)) / (len(data) - done))
    return found, bounds


def scattered(share: float, seed: int = 1) -> bytes:
    chance = random.Random(seed)
    return bytes(chance.random() < share for _ in range(PAGES))


GUESTS = {
    "free in one piece at the end": scattered(0.95)[: PAGES * 6 // 10] + bytes(PAGES * 4 // 10),
    "free in one piece at the beginning": bytes(PAGES // 3) + scattered(0.95)[: PAGES - PAGES // 3],
    "all in use": b"\1" * PAGES,
    "scattered": scattered(0.5),
}


@pytest.mark.parametrize("whole", GUESTS.values(), ids=GUESTS.keys())
def test_it_is_within_a_tenth_where_the_kernel_tells(whole: bytes) -> None:
    """A twentieth of the zero pages was touched all the same."""
    chance = random.Random(7)
    known = bytes(it or chance.random() < 0.05 for it in whole)
    stream = QemuStream()
    found, bounds = errors(stream_of(whole), following(stream, whole, known), stream)
    assert statistics.median(found) <= 0.1 and not any(bounds[:-2])


def test_memory_that_is_another_guest_s_is_not_believed() -> None:
    whole = b"\1" * PAGES
    stream = QemuStream()
    outside = errors(stream_of(whole), following(stream, whole, bytes(PAGES)), stream)[1]
    assert outside and all(outside)


@contextmanager
def own_memory(size: int) -> Iterator[mmap.mmap]:
    """A mapping of this process, in pages of 4 KiB, not joined with its neighbours."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
        yield mapping


def looked_at(size: int, **options: bool) -> Memory:
    found = memory(os.getpid(), size, **options)
    assert found is not None
    return found


def test_what_this_process_has_touched() -> None:
    size = 3 * LARGE + 4096 * 7
    with own_memory(size) as mapping:
        mapping[0:1] = mapping[8192:8193] = b"x"
        assert mapping[4096] == 0  # reading is no touch
        pages = looked_at(size).touched
    assert len(pages) == size // 4096
    assert pages[:4] == b"\1\0\1\0" and pages.count(1) == 2


def test_what_is_zero_though_it_was_touched_is_estimated() -> None:
    """In the first half, three pages of four were touched and two of four are not zero; in the second, all."""
    size = 2 * LARGE
    with own_memory(size) as mapping:
        for page in range(0, size // 8192, 4):
            mapping[page * 4096] = mapping[(page + 1) * 4096] = ord("1")
            mapping[(page + 2) * 4096] = 0
        mapping[size // 2 :] = b"1" * (size // 2)
        found = looked_at(size)
    pages = size // 4096
    assert found.touched.count(1) == pages * 7 // 8
    assert found.whole(0) == pytest.approx(pages * 3 / 4, rel=0.05)
    assert found.whole(pages // 2) == pages // 2


def test_what_this_process_rewrites_is_estimated() -> None:
    """Half of it had been written before: of that, and of the rest, every fourth page is written now."""
    size = 2 * LARGE + 4096 * 5
    with own_memory(size) as mapping:
        mapping[: size // 2] = b"1" * (size // 2)
        found = looked_at(size)
        assert found.rewritten() == 0 and looked_at(size, once=True).rewritten() == 0
        for page in range(0, size // 4096, 4):
            mapping[page * 4096] = ord("2")
        rewritten = found.rewritten()
    assert rewritten == pytest.approx(size // 4096 / 4, rel=0.15)


MAPPING = """
import mmap
size = 12_345 * 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)  # so that it is not joined with its neighbour
memory[0] = 1
print(size, flush=True)
input()
"""


def test_a_process_that_has_ended_has_no_memory() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", MAPPING], **pipes) as process:  # type: ignore[call-overload]
        size = int(process.stdout.readline())
        found = memory(process.pid, size)
        process.kill()
    assert found is not None and found.rewritten() is None


def test_where_there_is_nothing_to_look_at() -> None:
    assert memory(os.getpid(), 4096 * 12_345_677) is None
    assert memory(2**22 + 1, LARGE) is None  # more than any process id (proc(5), pid_max)
