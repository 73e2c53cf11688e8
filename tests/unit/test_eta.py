"""What is left of a migration stream, by its QEMU's memory: true from a fifth of the way on, wherever zeros lie."""

from __future__ import annotations

import os
import random
import statistics

import pytest

from statepipe.formats.qemustream import QemuStream
from statepipe.qemu.touched import touched
from statepipe.stages.eta import LARGE, Remaining
from tests.bench.stream import closing_part, opening, ram_section, record

PAGES = LARGE // 4096 * 6
STEP = 256 << 10


def stream_of(whole: bytes) -> bytes:
    """A guest each of whose pages is whole (1) or zero (0)."""
    parts, page = [opening(len(whole) * 4096)], b"\1" * 4096
    for at in range(0, len(whole), 1024):
        rows = enumerate(whole[at : at + 1024], at)
        parts.append(ram_section(b"".join(record(n, page if it else None, first=not n) for n, it in rows)))
    return b"".join([*parts, closing_part()])


def errors(data: bytes, remaining: Remaining, stream: QemuStream) -> tuple[list[float], list[bool]]:
    """How far each forecast was off, from 20 % of the way on, and whether it was a bound."""
    found, bounds = [], []
    for at in range(0, len(data), STEP):
        stream.feed(data[at : at + STEP])
        remaining.look()
        done, left = at + STEP, remaining.bytes()
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
    remaining = Remaining(stream, lambda size: known if size == len(known) * 4096 else None)
    found, bounds = errors(stream_of(whole), remaining, stream)
    assert statistics.median(found) <= 0.1 and not any(bounds[:-2])


def test_memory_that_is_another_guest_s_is_not_believed() -> None:
    whole = b"\1" * PAGES
    stream = QemuStream()
    remaining = Remaining(stream, lambda size: bytes(PAGES))
    assert all(errors(stream_of(whole), remaining, stream)[1])


def test_what_this_process_has_touched() -> None:
    import mmap

    size = 3 * LARGE + 4096 * 7
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[0:1] = memory[8192:8193] = b"x"
        assert memory[4096] == 0  # reading is no touch
        pages = touched(os.getpid(), size)
    assert pages is not None and len(pages) == size // 4096
    assert pages[:4] == b"\1\0\1\0" and pages.count(1) == 2


def test_where_there_is_nothing_to_look_at() -> None:
    assert touched(os.getpid(), 4096 * 12_345_677) is None
    assert touched(2**22 + 1, LARGE) is None  # more than any process id (proc(5), pid_max)
