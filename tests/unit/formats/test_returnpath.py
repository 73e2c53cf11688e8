"""The return path: what the destination of a migration tells its source."""

from __future__ import annotations

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.returnpath import Kind, Message, ReturnPath, pong, shut

ENDING = pack(">Q", 0x0123456789ABCDEF)


def message(kind: int, payload: bytes = b"") -> bytes:
    return pack(">HH", kind, len(payload)) + payload


BITMAP = message(5, b"\x06pc.ram") + pack(">Q", 24) + bytes(24) + ENDING
POSTCOPY = [
    (pong(1), Message(Kind.PONG, pack(">I", 1))),
    (message(3, bytes(12) + b"\x06pc.ram"), Message(Kind.REQ_PAGES_ID, bytes(12) + b"\x06pc.ram")),
    (message(4, bytes(12)), Message(Kind.REQ_PAGES, bytes(12))),
    (BITMAP, Message(Kind.RECV_BITMAP, b"\x06pc.ram")),
    (message(6, bytes(4)), Message(Kind.RESUME_ACK, bytes(4))),
    (message(7), Message(Kind.SWITCHOVER_ACK)),
    (shut(0), Message(Kind.SHUT, bytes(4))),
]


def test_shut_and_pong_as_qemu_reads_them() -> None:
    assert shut(1).hex() == "0001000400000001"
    assert pong(0xABCDEF).hex() == "0002000400abcdef"


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_value_beyond_32_bits_is_a_mistake_of_ours(value: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        shut(value)


def test_reads_its_own_messages_back() -> None:
    messages = ReturnPath().feed(pong(7) + shut(1))
    assert [(each.kind, each.value) for each in messages] == [(Kind.PONG, 7), (Kind.SHUT, 1)]


@given(st.lists(st.integers(0, 200), max_size=20))
def test_messages_do_not_depend_on_the_split(cuts: list[int]) -> None:
    data = b"".join(raw for raw, _ in POSTCOPY)
    path, edges = ReturnPath(), [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    got = [each for first, after in pairwise(edges) for each in path.feed(data[first:after])]
    assert got == [expected for _, expected in POSTCOPY]
    assert path.offset == len(data)


@pytest.mark.parametrize(
    "garbage",
    [
        message(0),
        message(8),
        message(0x4854, b"TP/1"),
        message(1, bytes(3)),
        message(7, bytes(1)),
        pack(">HH", 3, 513),
        message(5, b"\x01a") + pack(">Q", 1 << 60),
        message(5, b"\x01a") + pack(">Q", 8) + bytes(16),
    ],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        ReturnPath().feed(pong(1) + garbage)
    assert caught.value.offset is not None and caught.value.offset >= 8


def test_nothing_comes_after_shut() -> None:
    path = ReturnPath()
    path.feed(shut(0))
    assert path.feed(b"") == []
    with pytest.raises(IntegrityError, match="after its SHUT"):
        path.feed(b"\0")
