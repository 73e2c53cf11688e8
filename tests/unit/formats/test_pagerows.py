"""Rows of ordinary pages: what is compared all at once is what a loop over the headers finds."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.formats.qemu.pagerows import HEADER, REGION, same_headers

FLAGS = 0x28


def row(first: int, page: int, count: int) -> bytearray:
    """So many ordinary pages from an address on."""
    body = bytes(range(256)) * (page // 256)
    return bytearray(b"".join(pack(">Q", first + number * page | FLAGS) + body for number in range(count)))


def by_loop(data: bytes, at: int, end: int, header: int, page: int) -> int:
    """The same without a table."""
    count = 0
    while at + HEADER <= end and unpack_from(">Q", data, at)[0] == header + count * page:
        at += page + HEADER
        count += 1
        if (header + count * page) % REGION < page:
            break
    return count


@settings(deadline=None)
@given(
    st.sampled_from([1024, 4096, 65536]),
    st.integers(0, 1 << 20),
    st.integers(1, 150),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 149), st.integers(0, 7), st.integers(1, 255)), max_size=3),
    st.data(),
)
def test_it_finds_what_a_loop_finds(
    page: int, place: int, count: int, before: int, flips: list[tuple[int, int, int]], drawn: st.DataObject
) -> None:
    count = min(count, (1 << 20) // page)
    data = bytes(before) + row(place * page, page, count)
    changed = bytearray(data)
    for number, column, mask in flips:
        if number < count:
            changed[before + number * (page + HEADER) + column] ^= mask
    end = drawn.draw(st.integers(before, len(changed)))
    for buffer in (bytes(changed), memoryview(changed)):
        found = same_headers(buffer, before, end, place * page | FLAGS, page)
        assert found == by_loop(bytes(changed), before, end, place * page | FLAGS, page)


@pytest.mark.parametrize("lack", range(9))
def test_a_header_counts_only_if_all_of_it_is_there(lack: int) -> None:
    """Its page may end beyond the buffer."""
    data = bytes(row(0, 4096, 20))[: 19 * 4104 + HEADER]
    assert same_headers(data, 0, len(data) - lack, FLAGS, 4096) == (20 if lack == 0 else 19)


def test_it_stops_where_the_table_ends() -> None:
    data = bytes(row(REGION - 8 * 4096, 4096, 20))
    assert same_headers(data, 0, len(data), REGION - 8 * 4096 | FLAGS, 4096) == 8
    assert same_headers(data, 8 * 4104, len(data), REGION | FLAGS, 4096) == 12
