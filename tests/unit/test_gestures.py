"""What stages have in common: look at the beginning, hold the end back, cut into pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from statepipe.errors import IntegrityError
from statepipe.stage import FLUSH, Buffer, cut, hold_last, joined, peek


def test_peek_takes_no_more_than_it_needs() -> None:
    source = iter([b"ab", FLUSH, b"cd", b"ef"])
    head, whole = peek(source, lambda head: len(head) >= 3)
    assert head == b"abcd" and next(source) == b"ef"
    assert list(whole) == [b"ab", FLUSH, b"cd"]


def test_peek_at_a_short_stream_has_all_of_it() -> None:
    head, whole = peek(iter([b"a", b"b"]), lambda head: False)
    assert head == b"ab" and list(whole) == [b"a", b"b"]


def test_the_last_buffer_waits_for_a_clean_end() -> None:
    def source() -> Iterator[Buffer]:
        yield from (b"a", FLUSH, b"b", FLUSH)
        raise IntegrityError("not the end")

    flow, out = hold_last(source()), []
    with pytest.raises(IntegrityError):
        for buffer in flow:
            out.append(buffer)
    assert out == [FLUSH, b"a", FLUSH]
    assert list(hold_last(iter([b"a", b"b"]))) == [b"a", b"b"]
    assert list(hold_last(iter([]))) == []


CUTS = [
    (True, [[b"abc"], [b"d"], [], [b"e"]]),
    (False, [[b"abc"], [], [b"d", b"e"]]),
]


@pytest.mark.parametrize(("early", "pieces"), CUTS)
def test_a_flush_mark_ends_a_piece_early_or_not(early: bool, pieces: list[list[bytes]]) -> None:
    out = list(cut(iter([b"ab", b"cd", FLUSH, b"e"]), 3, early=early))
    assert [b"".join(each) for each in out] == [b"".join(each) for each in pieces]


def test_what_is_large_is_not_copied() -> None:
    data = bytes(10 << 10)
    (first,), (second,) = cut(iter([data]), 5 << 10, early=True)
    assert isinstance(first, memoryview) and first.obj is data
    assert isinstance(second, memoryview) and second.obj is data
    assert joined([first]) is first and joined([first, second]) == data
