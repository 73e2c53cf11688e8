"""The migration stream parser, on streams built here and, where they are at hand, on two real ones."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.qemu.stream import Phase, QemuStream, RamBlock
from tests.streams import (
    BITMAP_ID,
    BLOCKS,
    DEVICES,
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
    subsection,
    text,
    vmdesc,
    whole,
    zero,
)


def parse(*parts: bytes) -> QemuStream:
    stream = QemuStream()
    for part in parts:
        assert stream.feed(part) == len(part)
    return stream


def refused(data: bytes) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        parse(data).close()
    assert not isinstance(caught.value, TruncatedError)
    return caught.value


def counts(**found: int) -> dict[str, int]:
    return dict.fromkeys(("normal", "zero", "xbzrle", "compressed", "repeated"), 0) | found


# --- what is read


def test_tells_everything_of_a_usual_stream() -> None:
    data = whole(compressed(2))
    stream = parse(data)
    stream.close()
    assert stream.complete and stream.proof == "vmdesc" and stream.phase is Phase.END
    assert stream.machine == "pc-i440fx-7.2"
    assert stream.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert stream.blocks == {name: RamBlock(name, length) for name, length in BLOCKS}
    assert (stream.ram_bytes, stream.page_size, stream.offset) == (80 * PAGE, PAGE, len(data))
    assert stream.pages.by_name() == counts(normal=4, zero=40, xbzrle=2, compressed=1, repeated=4)
    assert stream.switchover == data.index(b"\x03" + pack(">I", RAM_ID))
    assert stream.end_mark == data.index(b"\0\x06" + vmdesc("timer")[1:3])
    assert stream.devices == DEVICES and stream.run_state == "running"
    assert stream.return_path and stream.take_pings() == [7] and stream.take_pings() == []
    assert json.loads(json.dumps(stream.facts()))["pages"]["zero"] == 40


def test_bytes_after_the_end_are_not_taken() -> None:
    data, stream = whole(), QemuStream()
    assert stream.feed(data + b"\x7e\0\0\0\x04 more") == len(data)
    assert stream.feed(b"more") == 0
    assert stream.offset == len(data)


def test_switchover_command_begins_the_final_stage() -> None:
    before = setup() + ram(LAST)
    stream = parse(before + command(11) + ram(kind=3) + devices())
    assert stream.switchover == len(before)
    assert stream.phase is Phase.DEVICES


def test_background_snapshot_has_no_last_ram_section() -> None:
    before = setup() + ram(LAST, ordinary(9)) + ram(ordinary(3), ordinary(5))
    stream = parse(before + devices() + b"\0" + vmdesc(*DEVICES))
    assert stream.complete and stream.switchover == len(before) and stream.rounds == 1


def test_machine_before_2_4_has_neither_configuration_nor_footers() -> None:
    def bare(section: bytes) -> bytes:
        return section[:-5]

    body = b"".join(map(bare, (ram_start(), ram(LAST), ram(zero(2), kind=3), device("timer", 0), device("x/ide", 4))))
    stream = parse(b"QEVM\0\0\0\x03" + body + b"\0" + vmdesc("timer", "x/ide"))
    assert stream.complete and stream.machine is None and stream.devices == ("timer", "x/ide")


def test_hugepage_blocks_and_guest_addresses_in_the_block_list() -> None:
    advise = command(3, pack(">QQ", 0x200000 | PAGE, PAGE))
    listed = pack(">Q", 0x401000 | 4) + text("huge") + pack(">QQ", 0x400000, 0x200000) + text("rom") + pack(">Q", PAGE)
    stream = parse(head() + advise + ram_start(listed) + ram(ordinary(3, "huge")))
    assert stream.blocks == {"huge": RamBlock("huge", 0x400000, 0x200000), "rom": RamBlock("rom", PAGE)}
    shared = head("pc", capabilities("x-ignore-shared")) + ram_start(block_list(extra=pack(">Q", 0xC0000)))
    assert len(parse(shared + ram(LAST)).blocks) == 2


def test_page_size_of_the_guest() -> None:
    listed = pack(">Q", 0x40000 | 4) + text("pc.ram") + pack(">Q", 0x40000)
    pages = pack(">Q", 8) + text("pc.ram") + bytes(65536) + pack(">Q", 0x10028) + bytes(65536)
    zeros = b"".join(pack(">QB", page << 16 | 0x22, 0) for page in (2, 3))
    stream = parse(head("virt", subsection("target-page-bits", pack(">I", 16))) + ram_start(listed) + ram(pages, zeros))
    assert stream.page_size == 65536 and stream.pages.by_name() == counts(normal=2, zero=2)


@pytest.mark.parametrize("flush", [b"", pack(">Q", 0x200)])
def test_flush_marks_of_multifd(flush: bytes) -> None:
    assert parse(setup() + ram(LAST, flush)).pages.normal == 1


def test_opaque_live_sections_end_at_their_footer() -> None:
    noise = footer(BITMAP_ID) + b"\x55" + footer(8) + b"\x01" + footer(BITMAP_ID)[:3]
    live = [start("dirty-bitmap", BITMAP_ID, noise), b"\x02" + pack(">I", BITMAP_ID) + noise + footer(BITMAP_ID)]
    final = b"\x03" + pack(">I", BITMAP_ID) + noise + footer(BITMAP_ID)
    body = head() + live[0] + ram_start() + live[1] + ram(LAST) + live[1] + ram(kind=3) + final
    stream = parse(body + devices() + b"\0" + vmdesc(*DEVICES))
    assert stream.complete and stream.devices == DEVICES


def test_devices_saved_during_setup_are_told_too() -> None:
    early = device("virtio-mem-early", 5, b"plugged")
    stream = parse(head() + early + ram_start() + ram(LAST) + ram(kind=3) + device("timer", 0))
    assert stream.devices == ("virtio-mem-early", "timer")
    assert stream.feed(b"\0" + vmdesc("virtio-mem-early", "timer")) and stream.complete


@pytest.mark.parametrize("pings", [(), (3,), (3, 0x42)], ids=["none", "7.2", "10.2"])
def test_postcopy_ends_after_ram(pings: tuple[int, ...]) -> None:
    """10.2 has a second PING in the package, whose PONG says that the devices are loaded: the destination sends it."""
    package = command(4) + device("timer", 0) + b"".join(command(2, pack(">I", ping)) for ping in pings) + command(5)
    body = setup() + ram(LAST) + command(7, pack(">I", len(package))) + package
    stream = parse(body + ram(ordinary(1)) + ram(kind=3) + b"\0")
    assert stream.complete and stream.postcopy and stream.proof == "end mark"
    assert stream.switchover == len(setup() + ram(LAST))
    assert stream.take_pings() == []


# --- rounds


def test_a_round_is_a_reading_of_the_dirty_bitmap() -> None:
    first = ram(LAST, ordinary(2), ordinary(3))
    assert parse(setup()).rounds == 1
    assert parse(setup() + first).rounds == 1
    assert parse(setup() + first + ram(ordinary(1), ordinary(3))).rounds == 2
    assert parse(setup() + first + ram(ordinary(1)) + ram(ordinary(4), ordinary(2), kind=3)).rounds == 4


def test_final_pass_from_the_start_of_ram_is_one_round() -> None:
    assert parse(setup() + ram(LAST, ordinary(2)) + ram(ordinary(1), kind=3)).rounds == 2


# --- the end


def test_false_ends_in_device_state_are_passed_over() -> None:
    fake = [
        footer(4) + b"\0" + vmdesc("nobody"),  # lists a device that is not here
        footer(4) + b"\0\x06" + pack(">I", 9) + b'{"a": 1}}',  # not JSON
        footer(4) + b"\0\x06" + pack(">I", 8) + b'{"a": 1}',  # not a vmdesc
        footer(4) + b"\0\x06" + pack(">I", 60) + b'{"devices": [',  # reaches into what follows
        footer(4) + b"\0\x06" + pack(">I", 0xFFFFFFFF) + b"{",
        footer(4) + b"\0\x06" + pack(">I", 1 << 20) + b"{",
        footer(4) + b"\0\x06" + pack(">I", 40_000) + b"{" + b"[" * 39_998 + b"}",
    ]
    body = setup() + ram(LAST, kind=3) + device("timer", 0, b"--".join(fake)) + device("ide", 4)
    assert parse(body).phase is Phase.DEVICES
    stream = parse(body + b"\0" + vmdesc("timer", "ide"))
    assert stream.complete and stream.end_mark == len(body) and stream.devices == ("timer", "ide")


def test_made_up_sections_do_not_hide_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statepipe.formats.qemu.devices.MAX_SECTIONS", 10)
    body = setup() + ram(LAST, kind=3) + device("gpu", 0, device("made-up", 4) * 20) + device("ide", 4)
    assert parse(body + b"\0" + vmdesc("gpu", "ide")).devices == ("gpu", "ide")


def test_suppressed_vmdesc_is_accepted_by_close_alone() -> None:
    stream = parse(setup() + ram(LAST, kind=3) + devices())
    assert not stream.could_end_here
    stream.feed(b"\0")
    assert stream.could_end_here and not stream.complete
    stream.close()
    assert stream.complete and stream.proof == "end mark" and stream.end_mark == stream.offset - 1
    assert stream.devices == DEVICES


def test_end_mark_after_an_unknown_footer_is_none() -> None:
    stream = parse(setup() + ram(LAST, kind=3) + devices() + footer(77) + b"\0")
    assert not stream.could_end_here


def test_cut_at_every_byte_is_truncated() -> None:
    data = setup() + ram(LAST, zero(2), kind=3) + devices() + b"\0" + vmdesc(*DEVICES)
    mark = len(data) - len(vmdesc(*DEVICES))
    for cut in [*range(300), *range(mark - 250, len(data))]:
        stream = parse(data[:cut])
        assert not stream.complete
        if cut == mark:  # what a stream without vmdesc looks like
            assert stream.could_end_here
            continue
        with pytest.raises(TruncatedError, match=f"at byte {cut}, in round"):
            stream.close()
    assert parse(data).complete


# --- what is refused


def test_empty_input_is_truncated_in_the_header() -> None:
    with pytest.raises(TruncatedError, match="in the header phase, at byte 0, in round 0"):
        QemuStream().close()


@pytest.mark.parametrize("data", [b"#!/bin/sh", b"Q", b"QEVM\0\0\0\x02", b"\x28\xb5\x2f\xfd"])
def test_something_else_is_not_a_migration_stream(data: bytes) -> None:
    if b"QEVM\0\0\0\x03".startswith(data):
        parse(data)
    else:
        said = (
            "unsupported version 2 of QEMU's migration stream"
            if data[:1] == b"Q"
            else "not a QEMU migration stream: it begins"
        )
        assert said in str(refused(data))


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        (b"QEVM\0\0\0\x03\x07", pack(">I", 100_000), "a machine name of 100000 bytes"),
        (head(), b"\x09", "found the byte 0x09, expected the next section"),
        (head(), subsection("colour", bytes(40)), "unknown subsection of the configuration"),
        (head(), command(0, bytes(20)), "command 0 "),
        (head(), command(2, bytes(20)), "command 2 with 20 bytes"),
        (head(), b"\x02" + pack(">I", 5), "never began"),
        (head(), b"\0", "found the byte 0x00"),
        (setup(), ram_start(), "begins twice"),
        (setup()[:-5], footer(3), "expected the footer of section 2"),
        (setup()[:-5], b"\x55" * 5, "expected the footer of section 2"),
        (setup() + ram(LAST)[:-13], zero(64), "page 0x40 is outside the RAM block 'pc.ram'"),
        (setup() + ram(LAST)[:-13], record(0x80, 1), "RDMA hook"),
        (setup() + ram(LAST)[:-13], record(0x01, 1), "flags 0x21"),
        (setup() + ram(LAST)[:-13], record(0x0A, 1), "flags 0x2a"),
        (setup() + ram(LAST)[:-13], block_list(), "a second list of RAM blocks"),
        (setup() + ram()[:-13], zero(1), "a page without a RAM block"),
    ],
)
def test_wrong_structure_is_named_with_its_offset(good: bytes, bad: bytes, says: str) -> None:
    error = refused(good + bad + bytes(64))
    assert says in str(error)
    assert error.offset is not None and len(good) <= error.offset + 8 and error.offset <= len(good) + 8


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (zero(1, "pc.rom"), "RAM block 'pc.rom', which was not announced"),
        (record(0x02, 1, "pc.ram", b"\x07"), "a zero page holds the byte 0x07"),
        (zero(1, "pc.ram") + record(0x02, 2, None, b"\x07"), "a zero page holds the byte 0x07"),
        (record(0x40, 1, "pc.ram", b"\x02\0\x05hello"), "an XBZRLE page of encoding 2"),
        (record(0x40, 1, "pc.ram", b"\x01\xff\xff"), "65535 bytes"),
        (record(0x100, 1, "pc.ram", pack(">I", 9000)), "a compressed page of 9000 bytes"),
    ],
)
def test_wrong_page_is_named(bad: bytes, says: str) -> None:
    assert says in str(refused(setup() + ram(bad)))


@pytest.mark.parametrize(
    "listed",
    [
        block_list((("", PAGE),)),
        block_list((("a", PAGE), ("a", PAGE))),
        pack(">Q", PAGE | 4) + text("a") + pack(">Q", 2 * PAGE),
        pack(">Q", 1 << 62 | 4),
    ],
)
def test_wrong_block_list_is_refused(listed: bytes) -> None:
    assert "RAM" in str(refused(head() + ram_start(listed)))


def test_mapped_ram_is_refused_with_what_to_do() -> None:
    error = refused(head("pc", capabilities("mapped-ram")) + bytes(30))
    assert "mapped-ram stream" in str(error) and error.hint


@pytest.mark.parametrize(("machine", "size"), [("sun4u", 8192), ("clipper", 8192), ("tricore_testboard", 16384)])
def test_a_machine_of_large_pages_does_not_tell_their_size(machine: str, size: int) -> None:
    listed = pack(">Q", 8 * size | 4) + text("ram") + pack(">Q", 8 * size)
    pages = pack(">Q", 8) + text("ram") + bytes(size) + pack(">Q", size | 0x28) + bytes(size)
    zeros = b"".join(pack(">QB", page * size | 0x22, 0) for page in range(2, 8))
    tail = ram(kind=3) + devices() + b"\0" + vmdesc(*DEVICES)
    stream = parse(head(machine) + ram_start(listed) + ram(pages, zeros) + tail)
    assert stream.complete and stream.page_size == size and stream.pages.by_name() == counts(normal=2, zero=6)


@pytest.mark.parametrize(
    ("stream", "names"),
    [
        (whole(), ()),
        (whole(compressed(2)), ("compress",)),
        (head("pc", capabilities("x-ignore-shared")) + start("x", 1, b""), ("x-ignore-shared",)),
        (head("pc", capabilities("x-of-later")) + ram_start(), ("x-of-later",)),
        (head() + command(3, pack(">QQ", PAGE, PAGE)), ("postcopy-ram",)),
        (head() + command(3), ()),
        (setup() + command(8), ("x-colo",)),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else "+".join(value) or "none",
)
def test_the_capabilities_that_a_qemu_needs_to_load_it(stream: bytes, names: tuple[str, ...]) -> None:
    assert parse(stream).demanded == names


# --- any split, and cost


def facts_of(data: bytes, cuts: list[int]) -> dict[str, object]:
    edges = [0, *sorted(cuts), len(data)]
    stream = QemuStream()
    for first, after in pairwise(edges):
        stream.feed(memoryview(data)[first:after])
    return stream.facts()


SPLIT = whole(compressed(2))
EXPECTED = facts_of(SPLIT, [])


@given(st.lists(st.integers(0, len(SPLIT)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_facts_do_not_depend_on_the_split(cuts: list[int]) -> None:
    assert facts_of(SPLIT + b"trailing", cuts) == EXPECTED


@given(st.integers(0, len(SPLIT)), st.lists(st.integers(0, len(SPLIT)), max_size=10))
@settings(max_examples=100, deadline=None)
def test_facts_of_a_part_do_not_depend_on_the_split(end: int, cuts: list[int]) -> None:
    data = SPLIT[:end]
    assert facts_of(data, [cut for cut in cuts if cut < end]) == facts_of(data, [])


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_facts_do_not_depend_on_the_size_of_buffers(size: int) -> None:
    assert facts_of(SPLIT, list(range(size, len(SPLIT), size))) == EXPECTED


@given(st.integers(0, len(SPLIT) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_raises_nothing_but_integrity_errors(at: int, byte: int) -> None:
    data = bytearray(SPLIT)
    data[at] = byte
    try:
        stream = QemuStream()
        stream.feed(data)
        stream.close()
    except IntegrityError:
        pass


@pytest.mark.parametrize("rows", [[30_000], [8, 9, 10, 25, 26, 4095, 4096, 4097, 9000], [1] * 300, [20] * 300])
@pytest.mark.parametrize("size", [64 * 1024, 1000])
def test_rows_of_zero_pages_are_counted_exactly(rows: list[int], size: int) -> None:
    pages: list[int] = []
    for row in rows:
        first = pages[-1] + 2 if pages else 4000
        pages.extend(range(first, first + row))
    total = (pages[-1] + 1) * PAGE
    records = [zero(pages[0], "pc.ram"), *map(zero, pages[1:]), ordinary(0)]
    data = head() + ram_start(block_list((("pc.ram", total),))) + ram(*records) + ram(*map(zero, pages[-9000:]))
    stream = parse(*(data[at : at + size] for at in range(0, len(data), size)))
    again = min(len(pages), 9000)
    assert stream.pages.by_name() == counts(normal=1, zero=len(pages) + again, repeated=again)


def test_zero_pages_cost_no_parsing_each() -> None:
    count = 300_000
    records = zero(0, "pc.ram") + b"".join(map(zero, range(1, count)))
    data = head() + ram_start(block_list((("pc.ram", count * PAGE),))) + ram(records)
    before = time.process_time()
    stream = parse(*(data[at : at + 65536] for at in range(0, len(data), 65536)))
    spent = time.process_time() - before
    assert stream.pages.zero == count
    assert spent / count < 100e-9  # measured 7 ns; a loop over them would take more than 100


# --- real streams

REAL = Path(os.environ.get("STATEPIPE_SAMPLES") or Path(__file__).parents[4] / "shared" / "samples")


def real_stream() -> Iterator[bytes]:
    zstandard = pytest.importorskip("zstandard", reason="the real stream is compressed with zstd")
    path = REAL / "linux256.qevm.zst"
    if not path.exists():
        pytest.skip(f"no real streams: {path} does not exist, set STATEPIPE_SAMPLES to the folder of the real streams")
    with path.open("rb") as file:
        yield from zstandard.ZstdDecompressor(max_window_size=2**31).read_to_iter(file, write_size=100_001)


def test_real_stream_of_qemu_7_2() -> None:
    stream = QemuStream()
    for buffer in real_stream():
        assert stream.feed(buffer) == len(buffer)
    stream.close()
    assert (stream.pages.normal, stream.pages.zero, stream.rounds) == (38_386, 27_763, 3)
    assert stream.machine == "pc-i440fx-7.2" and stream.run_state == "running" and len(stream.devices) == 32
    assert stream.offset == 157_945_668 and stream.proof == "vmdesc"
