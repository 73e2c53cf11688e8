"""The index of pages: where each page of a stream is, recorded on the way, written, and read again."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from random import Random
from struct import pack

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError
from statepipe.formats.qemu import pages
from statepipe.formats.qemu.pageframes import decode_index, difference, encode_index
from statepipe.formats.qemu.pages import (
    KIND_BITS,
    KINDS,
    MOST,
    PAGE_SHIFT,
    STORED,
    WINDOW_BITS,
    ZERO,
    Outline,
    PageIndex,
    PageRecorder,
    Run,
)
from statepipe.formats.qemu.ram import RamBlock
from statepipe.formats.qemu.stream import QemuStream
from tests.streams import (
    BITMAP_ID,
    BLOCKS,
    DEVICES,
    EOS,
    LAST,
    PAGE,
    RAM_ID,
    block_list,
    capabilities,
    command,
    compressed,
    device,
    devices,
    footer,
    head,
    ordinary,
    ram,
    ram_start,
    record,
    setup,
    start,
    vmdesc,
    whole,
    xbzrle,
    zero,
)

NAMES = [name for name, _ in BLOCKS]
ENDING = b"\0" + vmdesc(*DEVICES)
Pages = dict[tuple[str, int], int | None]
"""Where each page's bytes are in a stream; None for zeros."""


def indexed(*parts: bytes) -> PageIndex:
    stream = QemuStream()
    stream.record_pages()
    for part in parts:
        stream.feed(part)
    stream.close()
    return stream.page_index()


def pages_of(index: PageIndex) -> Pages:
    """Every page of an index, one by one."""
    found: Pages = {}
    for run in index:
        for at in range(run.pages):
            key = index.outline.blocks[run.block].name, run.page + at
            assert key not in found
            found[key] = run.place + at * index.stride if run.kind == STORED else None
    return found


def again(index: PageIndex) -> PageIndex:
    """Written and read."""
    read = decode_index(list(encode_index(index)), 0)
    assert difference(index, read) is None and difference(read, index) is None
    return read


class Made:
    """A stream of sections of pages, and where the last copy of each page is."""

    def __init__(self) -> None:
        self.data = setup()
        self.latest: Pages = {}

    def section(self, sent: Sequence[tuple[int, int, bool]], kind: int = 2) -> None:
        """A section with pages: (block, page, whether it is stored)."""
        self.data += bytes([kind]) + pack(">I", RAM_ID)
        last = None
        for block, page, is_stored in sent:
            name = NAMES[block]
            body = bytes([page + 1]) * PAGE if is_stored else b"\0"
            self.data += record(0x08 if is_stored else 0x02, page, None if name == last else name, body)
            self.latest[name, page] = len(self.data) - PAGE if is_stored else None
            last = name
        self.data += EOS + footer(RAM_ID)

    def whole(self) -> bytes:
        self.section([], kind=3)
        return self.data + devices() + ENDING


SENT = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 12), st.integers(1, 4), st.booleans()).map(
        lambda it: [(it[0], it[1] + at, it[3]) for at in range(it[2])]
    ),
    max_size=8,
).map(lambda runs: [page for run in runs for page in run])


@settings(deadline=None)
@given(st.lists(SENT, max_size=5), st.integers(1, 9000), st.randoms(use_true_random=False))
def test_each_page_is_where_its_last_copy_is(
    sections: list[list[tuple[int, int, bool]]], size: int, by: Random
) -> None:
    made = Made()
    for sent in sections:
        made.section(sent)
    data = made.whole()
    size = max(size, len(data) >> 12)  # byte by byte where that is not all the time that this takes
    index = again(indexed(*(data[at : at + size] for at in range(0, len(data), size))))
    assert pages_of(index) == made.latest
    for (name, page), place in made.latest.items():
        run = index.find(NAMES.index(name), page)
        assert run is not None and (run.kind == STORED) == (place is not None)
    start, stop = sorted((by.randrange(len(data)), by.randrange(len(data))))
    found = {}
    for run in index.stored_between(start, stop):
        found |= {(NAMES[run.block], run.page + at): run.place + at * index.stride for at in range(run.pages)}
    within = {key: place for key, place in made.latest.items() if place is not None and start <= place < stop}
    assert found == within and list(found.values()) == sorted(within.values())


def test_a_page_that_was_never_sent_is_in_no_run() -> None:
    index = indexed(setup() + ram(LAST, zero(2)) + ram(kind=3) + devices() + ENDING)
    assert index.find(0, 0) is None and index.find(0, 3) is None and index.find(1, 0) is None
    assert index.find(0, 1) == Run(0, 1, 1, STORED, len(setup()) + 5 + 8 + len("pc.ram") + 1)
    assert index.find(0, 2) is not None and index.find(0, 64) is None and index.find(0, -1) is None
    assert (index.runs, index.stored, index.zero) == (2, 1, 1)


def test_pages_in_a_row_are_one_run_across_buffers_and_none_across_blocks() -> None:
    blocks = block_list((("a", 4 * PAGE), ("b", 4 * PAGE)))
    data = head() + ram_start(blocks) + ram(zero(0, "a"), zero(1), zero(2), zero(3)) + ram(zero(0, "b"), zero(1))
    data += ram(ordinary(2, "b"), ordinary(3), kind=3) + devices() + ENDING
    runs = list(indexed(*(data[at : at + 1] for at in range(len(data)))))
    assert [run[:4] for run in runs] == [(0, 0, 4, ZERO), (1, 0, 2, ZERO), (1, 2, 2, STORED)]


def test_the_outline_leads_to_everything_but_pages() -> None:
    advise, first = command(1), command(2, pack(">I", 7))
    memory = start("0000:00:03.0/virtio-mem", 7, b"plugged", kind=4)
    bitmap = start("dirty-bitmap", BITMAP_ID, b"names")
    more = b"\x02" + pack(">I", BITMAP_ID) + b"bits" + footer(BITMAP_ID)
    switch = command(11)
    parts = [head(), advise, first, memory, ram_start(), bitmap, ram(LAST), more, switch, ram(kind=3), devices()]
    outline = indexed(b"".join(parts) + ENDING).outline
    at = [sum(map(len, parts[:number])) for number in range(len(parts) + 1)]
    assert outline.head == at[1] and outline.devices == (at[10], at[11])
    kinds = [(8, 1), (8, 2), (4, 7), (1, RAM_ID), (1, BITMAP_ID), (2, BITMAP_ID), (8, 11)]
    where = [1, 2, 3, 4, 5, 7, 8]
    assert outline.pieces == tuple((*kind, at[it], at[it + 1]) for kind, it in zip(kinds, where, strict=True))
    assert (outline.ram_section, outline.footers, outline.page_size) == (RAM_ID, True, PAGE)
    assert outline.blocks == tuple(RamBlock(name, length) for name, length in BLOCKS)


def test_a_background_snapshot_has_its_devices_right_behind_the_pages() -> None:
    before = setup() + ram(LAST, ordinary(9)) + ram(ordinary(3), ordinary(5))
    index = again(indexed(before + devices() + ENDING))
    assert index.outline.devices == (len(before), len(before + devices()))
    assert index.stored == 4 and index.by_place is not None


def test_a_machine_before_2_4_has_no_footers() -> None:
    parts = [ram_start(), ram(LAST), ram(zero(2), kind=3), device("timer", 0), device("x/ide", 4)]
    body = b"".join(part[:-5] for part in parts)
    index = indexed(b"QEVM\0\0\0\x03" + body + b"\0" + vmdesc("timer", "x/ide"))
    assert not index.outline.footers and index.outline.head == 8 and index.stored == 1


def test_larger_pages_have_a_larger_stride() -> None:
    body = b"x" * 8192
    pages = pack(">Q", 8192 | 0x08) + b"\x01r" + body + pack(">Q", 2 * 8192 | 0x28) + body
    data = head("sun4u") + ram_start(block_list((("r", 4 * 8192),))) + ram(pages) + ram(kind=3) + devices() + ENDING
    index = again(indexed(data))
    assert [run[:4] for run in index] == [(0, 1, 2, STORED)] and index.stride == 8200


UNSERVED = {
    "XBZRLE": setup() + ram(LAST, xbzrle(3, "pc.ram")) + ram(kind=3) + devices() + ENDING,
    "compressed": setup() + ram(LAST, compressed(3)) + ram(kind=3) + devices() + ENDING,
    "x-ignore-shared": head("pc", capabilities("x-ignore-shared"))
    + ram_start(block_list(extra=pack(">Q", 0xC0000)))
    + ram(LAST)
    + ram(kind=3)
    + devices()
    + ENDING,
    "names": head()
    + ram_start(block_list((*((f"{number:0250}", 0) for number in range(263)), ("pc.ram", 9 * PAGE))))
    + ram(LAST)
    + ram(kind=3)
    + devices()
    + ENDING,
    "postcopy": setup() + command(4) + command(5) + ram(LAST) + ram(kind=3) + b"\0",
    "8192 sections": setup() + (1 << 13) * command(11) + ram(LAST) + ram(kind=3) + devices() + ENDING,
}


@pytest.mark.parametrize("why", UNSERVED)
def test_what_cannot_be_served_page_by_page_says_why_and_has_no_runs(why: str) -> None:
    index = indexed(UNSERVED[why])
    assert index.outline.unserved is not None and why in index.outline.unserved
    assert (index.runs, index.stored) == (0, 0) and index.find(0, 1) is None


# --- many runs


def recorded(runs: Sequence[tuple[int, int, int]], most: int = 1000) -> tuple[PageRecorder, list[tuple[int, int, int]]]:
    """The runs (page, pages, place; -1 for zeros) that come out of a recorder."""
    recorder = PageRecorder(most)
    recorder.begin(PAGE)
    for page, count, place in runs:
        if place < 0:
            recorder.zeros(page, count)
        else:
            recorder.stored(page, count, place)
    keys, places = recorder.take()
    made = PageIndex(Outline(blocks=(RamBlock("r", 1 << 44),)), keys, places)
    return recorder, [(run.page, run.pages, run.place if run.kind else -1) for run in made]


def test_a_run_longer_than_a_key_can_say_is_two() -> None:
    _, found = recorded([(7, MOST + 5, 0), (MOST + 20, 2 * MOST, -1)])
    assert found[:2] == [(7, MOST, 0), (7 + MOST, 5, MOST * 4104)]
    assert found[2:] == [(MOST + 20, MOST, -1), (2 * MOST + 20, MOST, -1)]


def joined(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Runs that go on where the one before ended as one."""
    found: list[tuple[int, int, int]] = []
    for page, count, place in runs:
        if found:
            first, before, start = found[-1]
            if page == first + before and place == (start + before * 4104 if start >= 0 else -1):
                found[-1] = (first, before + count, start)
                continue
        found.append((page, count, place))
    return found


@pytest.mark.parametrize("shift", [0, 5, -3])
def test_last_copies_across_windows(shift: int) -> None:
    edge = (1 << WINDOW_BITS) + shift
    sent = [(0, 3 * edge, 1000), (edge - 2, 4, -1), (edge, 1, 10**9), (5, 1, 2 * 10**9)]
    _, found = recorded(sent)
    assert joined(found) == [
        (0, 5, 1000),
        (5, 1, 2 * 10**9),
        (6, edge - 8, 1000 + 6 * 4104),
        (edge - 2, 2, -1),
        (edge, 1, 10**9),
        (edge + 1, 1, -1),
        (edge + 2, 2 * edge - 2, 1000 + (edge + 2) * 4104),
    ]


def test_a_recorder_that_is_full_drops_what_was_sent_again_and_goes_on() -> None:
    again_and_again = [(page, 1, 10_000 * (1 + page + 20 * time)) for time in range(100) for page in range(0, 40, 2)]
    recorder, found = recorded(again_and_again, most=50)
    assert recorder.unserved is None
    assert found == [(page, 1, 10_000 * (1 + page + 20 * 99)) for page in range(0, 40, 2)]


def test_a_recorder_gives_up_where_the_pages_are_in_too_many_runs() -> None:
    recorder, found = recorded([(2 * page, 1, 10_000 * page) for page in range(51)], most=50)
    assert recorder.unserved == "its pages are in more than 25 runs" and found == []


def test_a_stream_longer_than_a_place_can_say_has_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_PLACE", 4000)
    assert indexed(setup() + ram(LAST) + ram(kind=3) + devices() + ENDING).outline.unserved == "it is too long"


def test_runs_in_several_frames_are_read_as_they_were() -> None:
    """The first is full."""
    recorder = PageRecorder()
    recorder.begin(PAGE)
    random = Random(3)
    page, place = 0, 200
    for _ in range(34_000):
        page += random.randrange(1, 4)
        if random.random() < 0.5:
            recorder.stored(page, 2, place)
            place += 2 * 4104 + random.randrange(3) * 18
        else:
            recorder.zeros(page, 2)
        page += 2
    index = recorder.finish(Outline(head=100, devices=(place, place + 9), blocks=(RamBlock("r", 1 << 40),)))
    frames = list(encode_index(index))
    assert len(frames) == 1 + -(-index.runs // (1 << 15)) == 3 and index.by_place is None
    again(index)


# --- what is refused


GOOD = indexed(
    setup() + ram(LAST, zero(2), ordinary(9), zero(3, "pc.bios"), ordinary(4)) + ram(kind=3) + devices() + ENDING
)


def repacked(change: Callable[[list[bytearray]], object]) -> list[bytes]:
    """The frames of GOOD, their contents changed."""
    contents = [bytearray(zstandard.decompress(frame)) for frame in encode_index(GOOD)]
    change(contents)
    return [zstandard.compress(bytes(content)) for content in contents]


def facts(**changed: object) -> Callable[[list[bytearray]], object]:
    def change(contents: list[bytearray]) -> None:
        contents[0][:] = json.dumps(json.loads(contents[0]) | changed).encode()

    return change


def number(column: int, run: int, value: int) -> Callable[[list[bytearray]], object]:
    """Set a number in a column of the runs."""
    width = (1, 4, 5, 8)[column]

    def change(contents: list[bytearray]) -> None:
        runs = GOOD.runs
        for byte, part in enumerate(value.to_bytes(width, "little", signed=value < 0)):
            contents[1][runs * (sum((1, 4, 5, 8)[:column]) + byte) + run] = part

    return change


def cases() -> Iterator[tuple[str, Callable[[list[bytearray]], object]]]:
    yield "and 6 are announced", facts(runs=GOOD.runs + 1)
    yield "footers is missing", lambda contents: contents[0].__setitem__(slice(None), b'{"page_size":4096}')
    yield "not JSON", lambda contents: contents[0].pop()
    yield "where a whole number from 1024", facts(page_size=512)
    yield "power of two", facts(page_size=4097)
    yield "larger than a guest's", facts(blocks=[["a", 32 << 40, None], ["b", 4096, None]])
    yield "not in order", facts(devices=[10, 5])
    yield "outside the stream", facts(devices=[GOOD.outline.devices[0] - PAGE, GOOD.outline.devices[1]])
    yield "a list of 4 to 4", facts(pieces=[[1, 2, 3]])
    yield "outside the memory", facts(blocks=[["pc.ram", 10 * PAGE, None], ["pc.bios", 3 * PAGE, None]])
    yield "with 127 bytes", lambda contents: contents[1].extend(b"x" * (127 - len(contents[1])))
    yield "content of 0 bytes", lambda contents: contents[1].clear()
    yield "kind 2", number(0, 1, 2)
    yield "of a length", number(1, 0, 0)
    yield "of a length", number(1, 0, 1 << 26)
    yield "in two blocks", number(2, 3, 54)
    yield "outside the memory", number(2, 4, (1 << 40) - 1)
    yield "outside the stream", number(3, 0, -5)
    yield "outside the stream", number(3, 0, (1 << 63) - 1)
    yield "overlaps", number(3, 0, 20)
    yield "overlaps", number(3, 2, -100)
    yield "66 frames", lambda contents: contents.extend([contents[1]] * 64)
    yield "not full", lambda contents: contents.append(contents[1])


@pytest.mark.parametrize(("words", "change"), [pytest.param(*case, id=str(at)) for at, case in enumerate(cases())])
def test_an_index_that_is_never_written_is_refused(words: str, change: Callable[[list[bytearray]], object]) -> None:
    with pytest.raises(IntegrityError, match="the page index of the file is damaged: .*" + words) as caught:
        decode_index(repacked(change), 77)
    assert caught.value.offset == 77


def test_frames_that_are_no_zstd_or_do_not_tell_their_size_are_refused() -> None:
    first, second = encode_index(GOOD)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(zstandard.decompress(second))
    for frames in ([], [first, b"x"], [first, second + b"x"], [first, second[:-3]], [first, unsized]):
        with pytest.raises(IntegrityError, match="the page index of the file is damaged"):
            decode_index(frames, 0)


def test_runs_divided_in_another_way_are_no_difference() -> None:
    index = indexed(setup() + ram(LAST, ordinary(2), zero(3), zero(4), ordinary(5)) + ram(kind=3) + devices() + ENDING)
    keys, places = array("Q"), array("Q")
    for key, place in zip(index.keys, index.places, strict=True):
        for page in range(key >> KIND_BITS & MOST):
            kind = key & KINDS
            keys.append((key >> PAGE_SHIFT) + page << PAGE_SHIFT | 1 << KIND_BITS | kind)
            places.append(place + page * index.stride if kind else 7)
    divided = PageIndex(index.outline, keys, places)
    assert (index.runs, divided.runs) == (3, 5) and difference(index, divided) is None
    assert pages_of(again(divided)) == pages_of(index)


def test_a_difference_names_the_page() -> None:
    other = decode_index(repacked(number(3, 2, 18)), 0)
    assert difference(GOOD, other) is not None and difference(other, GOOD) is not None
    assert (difference(GOOD, other) or ("", 0))[0] == "the run at page 0x9 of the RAM block 'pc.ram'"
    fewer = PageIndex(GOOD.outline, GOOD.keys[:-1], GOOD.places[:-1])
    assert (difference(GOOD, fewer) or ("", 0))[0] == "the run at page 0x4 of the RAM block 'pc.bios'"
    outline = decode_index(repacked(facts(head=25)), 0)
    assert difference(GOOD, outline) == ("the sections of the stream", 0)


def test_the_usual_stream_of_the_tests_is_not_served() -> None:
    assert indexed(whole()).outline.unserved == "it has XBZRLE pages"
