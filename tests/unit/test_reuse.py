"""Memory that is used again: never while anybody has it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import closing

import pytest

from statepipe.formats.age.x25519 import X25519Identity
from statepipe.reuse import Buffers
from statepipe.stage import Buffer, Stage
from statepipe.stages.encrypt import decrypt, encrypt

SIZE = 100


def test_a_buffer_that_nobody_has_is_used_again() -> None:
    buffers = Buffers(SIZE, 4)
    first = buffers.get(SIZE)
    first[:] = b"x" * SIZE
    where = id(first)
    del first
    again = buffers.get(SIZE)
    assert id(again) == where and again == b"x" * SIZE


def test_a_buffer_that_somebody_has_is_not_used_again() -> None:
    """Whole, in a list, or by a view of a part of it."""
    buffers = Buffers(SIZE, 8)
    kept = [buffers.get(SIZE)]
    view = memoryview(buffers.get(SIZE))[3:5]
    wheres = {id(kept[0]), id(view.obj)}
    others = [buffers.get(SIZE) for _ in range(20)]
    assert len({id(each) for each in others} | wheres) == 22


def test_another_size_is_made_anew_and_zeroed() -> None:
    buffers = Buffers(SIZE, 4)
    buffers.get(SIZE)[:] = b"x" * SIZE
    assert buffers.get(SIZE - 1) == bytes(SIZE - 1)


def test_no_more_are_kept_than_was_said() -> None:
    buffers = Buffers(SIZE, 2)
    had = [buffers.get(SIZE) for _ in range(5)]
    wheres = [id(each) for each in had]
    had.clear()
    assert {id(each) for each in [buffers.get(SIZE), buffers.get(SIZE)]} == set(wheres[-2:])


PLAIN = os.urandom(20 << 20)


def lagging(stage: Stage, data: bytes, behind: int) -> bytes:
    """What a stage gives, for a reader that looks at each buffer only when it has that many after it."""
    pieces: Iterator[Buffer] = iter([data[at : at + (300 << 10)] for at in range(0, len(data), 300 << 10)])
    held: deque[Buffer] = deque()
    read = bytearray()
    flow = stage(pieces)
    with closing(flow):  # type: ignore[type-var]
        for buffer in flow:
            held.append(buffer)
            if len(held) > behind:
                read += held.popleft()
    return bytes(read + b"".join(held))


@pytest.mark.parametrize("behind", [0, 1, 3, 100])
def test_a_reader_that_keeps_what_it_was_given_finds_it_unchanged(behind: int) -> None:
    identity = X25519Identity.generate()
    sealed = lagging(encrypt([identity.recipient]), PLAIN, behind)
    assert lagging(decrypt([identity]), sealed, behind) == PLAIN
