"""Which pages were sent: each of them once, whatever overlaps."""

from __future__ import annotations

import random

from statepipe.lazy.pageset import PART, PageSet

PAGES = 3 * PART + 100


def test_pages_are_marked_once_and_the_new_ones_are_told_in_runs() -> None:
    sent = PageSet([PAGES, 10])
    assert sent.add(0, 5, 3) == [(5, 3)]
    assert sent.add(0, 4, 10) == [(4, 1), (8, 6)]
    assert sent.add(0, 4, 10) == []
    assert sent.add(0, PART - 2, PART + 4) == [(PART - 2, PART + 4)], "a run may go on in the next part"
    assert sent.add(1, 0, 10) == [(0, 10)]
    assert sent.lacks(0, 0, 20) == 10
    assert sent.lacks(0, 0, PAGES) == PAGES - 10 - PART - 4


def test_any_marks_leave_what_a_set_of_pages_has() -> None:
    chance, sent, expected = random.Random(1), PageSet([PAGES]), set[int]()
    for _ in range(300):
        first = chance.randrange(PAGES)
        pages = range(first, min(first + chance.randrange(1, 5000), PAGES))
        new = [page for start, count in sent.add(0, first, len(pages)) for page in range(start, start + count)]
        assert new == [page for page in pages if page not in expected]
        expected.update(pages)
    assert sent.lacks(0, 0, PAGES) == PAGES - len(expected)


def test_what_has_arrived_is_taken_from_qemus_bitmap() -> None:
    sent = PageSet([PAGES])
    sent.add(0, 0, PAGES)
    bitmap = bytearray(-(-PAGES // 64) * 8)
    bitmap[1], bitmap[PART // 8] = 0b101, 0b1
    sent.take(0, bytes(bitmap))
    assert sent.lacks(0, 0, PAGES) == PAGES - 3
    assert sent.add(0, 8, 4) == [(9, 1), (11, 1)]
    assert sent.add(0, PART, 2) == [(PART + 1, 1)]


def test_pages_are_found_in_runs_across_parts_and_removed() -> None:
    pages = PageSet([PAGES, 10])
    pages.add(0, PART - 1, 2)
    pages.add(0, 7, 2)
    pages.add(1, 9, 1)
    assert list(pages.runs()) == [(0, [(7, 2), (PART - 1, 2)]), (1, [(9, 1)])]
    assert pages.among(0, 8, PART - 8) == [(8, 1), (PART - 1, 1)]
    assert len(pages) == 5
    pages.remove(0, 8)
    pages.remove(0, 9)
    assert dict(pages.runs())[0] == [(7, 1), (PART - 1, 2)]
