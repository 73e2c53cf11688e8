"""Which pages were sent: each of them once, whatever overlaps."""

from __future__ import annotations

import random

from statepipe.lazy.sent import PART, Sent

PAGES = 3 * PART + 100


def test_pages_are_marked_once_and_the_new_ones_are_told_in_runs() -> None:
    sent = Sent([PAGES, 10])
    assert sent.mark(0, 5, 3) == [(5, 3)]
    assert sent.mark(0, 4, 10) == [(4, 1), (8, 6)]
    assert sent.mark(0, 4, 10) == []
    assert sent.mark(0, PART - 2, PART + 4) == [(PART - 2, PART + 4)], "a run may go on in the next part"
    assert sent.mark(1, 0, 10) == [(0, 10)]
    assert sent.lacks(0, 0, 20) == 10
    assert sent.lacks(0, 0, PAGES) == PAGES - 10 - PART - 4


def test_any_marks_leave_what_a_set_of_pages_has() -> None:
    chance, sent, expected = random.Random(1), Sent([PAGES]), set[int]()
    for _ in range(300):
        first = chance.randrange(PAGES)
        pages = range(first, min(first + chance.randrange(1, 5000), PAGES))
        new = [page for start, count in sent.mark(0, first, len(pages)) for page in range(start, start + count)]
        assert new == [page for page in pages if page not in expected]
        expected.update(pages)
    assert sent.lacks(0, 0, PAGES) == PAGES - len(expected)


def test_what_has_arrived_is_taken_from_qemus_bitmap() -> None:
    sent = Sent([PAGES])
    sent.mark(0, 0, PAGES)
    bitmap = bytearray(-(-PAGES // 64) * 8)
    bitmap[1], bitmap[PART // 8] = 0b101, 0b1
    sent.take(0, bytes(bitmap))
    assert sent.lacks(0, 0, PAGES) == PAGES - 3
    assert sent.mark(0, 8, 4) == [(9, 1), (11, 1)]
    assert sent.mark(0, PART, 2) == [(PART + 1, 1)]
