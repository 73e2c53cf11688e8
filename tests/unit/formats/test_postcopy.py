"""Postcopy: the bytes that a source writes, and what the destination answers, as QEMU has them."""

from __future__ import annotations

from struct import pack

import pytest

from statepipe.errors import IntegrityError
from statepipe.formats.qemu import postcopy
from statepipe.formats.qemu.postcopy import Answers, Asked, Block, Pong, Received, Resumed, Shut

RAM = Block("pc.ram", 1 << 20)
HUGE = Block("ram0", 8 << 20, 2 << 20)
BLOCKS = {block.name: block for block in (RAM, HUGE)}


def words(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts))


# --- what is written


def test_the_opening_names_every_page_size_in_one_word() -> None:
    expected = words("08 0001 0000", "08 0002 0004 00000001", "08 0003 0010 0000000000201000 0000000000001000")
    assert postcopy.advise([RAM, HUGE]) == expected


def test_the_list_of_blocks_tells_a_page_size_only_of_huge_pages() -> None:
    assert postcopy.ram_setup(2, [RAM, HUGE], postcopy.footer(2)) == (
        words("01 00000002 03") + b"ram" + words("00000000 00000004", "0000000000900004")
        + b"\x06pc.ram" + words("0000000000100000")
        + b"\x04ram0" + words("0000000000800000 0000000000200000")
        + words("0000000000000010 7e00000002")
    )  # fmt: skip


def test_a_machine_without_footers_gets_none() -> None:
    assert postcopy.ram_setup(2, [RAM], b"").endswith(words("0000000000100000 0000000000000010"))


def test_a_discard_names_the_block_and_at_most_twelve_ranges_a_command() -> None:
    one = postcopy.discard("pc.ram", [(0x1000, 0x2000)])
    assert one == words("08 0006 0019 00 06") + b"pc.ram\0" + words("0000000000001000 0000000000002000")
    many = postcopy.discard("pc.ram", [(0, 4096)] * 13)
    assert len(many) == 2 * (5 + 9) + 13 * 16


def test_the_package_holds_listen_the_devices_a_ping_and_run() -> None:
    inside = words("08 0004 0000") + b"DEVICES" + words("08 0002 0004 00000003", "08 0005 0000")
    assert postcopy.package(b"DEVICES") == words("08 0007 0004") + pack(">I", len(inside)) + inside


def test_pages_the_end_and_what_begins_again() -> None:
    assert postcopy.part_head(2) + postcopy.part_end(b"") == words("02 00000002 0000000000000010")
    assert postcopy.stored_head("pc.ram", 3) == words("0000000000003008 06") + b"pc.ram"
    assert postcopy.stored_head(None, 3) == words("0000000000003028")
    assert postcopy.zero_page(None, 3) == words("0000000000003022 00")
    assert postcopy.ram_end(2, postcopy.footer(2)) == words("03 00000002 0000000000000010 7e00000002 00")
    assert postcopy.recv_bitmap("pc.ram") == words("08 000a 0007 06") + b"pc.ram"
    assert postcopy.resume() == words("08 0009 0000")


def test_a_return_path_is_opened_once() -> None:
    begins = postcopy.command(1) + postcopy.ping(1) + postcopy.command(11)
    assert postcopy.without_return_path(begins + b"\x04DEVICE") == postcopy.command(11) + b"\x04DEVICE"
    assert postcopy.without_return_path(b"\x04DEVICE") == b"\x04DEVICE"


# --- what is answered

NAMED = pack(">HHQIB", 3, 19, 0x5000, 0x1000, 6) + b"pc.ram"
AGAIN = pack(">HHQI", 4, 12, 0x6000, 0x2000)
BITMAP = pack(">HHB", 5, 7, 6) + b"pc.ram" + pack(">Q", 32) + bytes(range(32)) + pack(">Q", 0x0123456789ABCDEF)
SAID = [
    (pack(">HHI", 2, 4, 1), Pong(1)),
    (NAMED, Asked("pc.ram", 5, 1)),
    (AGAIN, Asked("pc.ram", 6, 2)),
    (BITMAP, Received("pc.ram", bytes(range(32)))),
    (pack(">HHI", 6, 4, 1), Resumed(1)),
    (pack(">HHI", 1, 4, 0), Shut(0)),
]


def test_all_that_is_answered_is_read_whole_or_byte_by_byte() -> None:
    data, expected = b"".join(part for part, _ in SAID), [repr(answer) for _, answer in SAID]
    assert list(map(repr, Answers(BLOCKS).feed(data))) == expected
    answers = Answers(BLOCKS)
    assert [repr(each) for byte in data for each in answers.feed(bytes([byte]))] == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pack(">HH", 9, 4), "type 9 with 4 bytes"),
        (pack(">HH", 1, 5), "type 1 with 5 bytes"),
        (pack(">HH", 3, 12), "type 3 with 12 bytes"),
        (AGAIN, "without naming its block"),
        (pack(">HHQIB", 3, 19, 0x5000, 0x1000, 6) + b"pc.rom", "'pc.rom', which was not announced"),
        (pack(">HHQIB", 3, 19, 0x5000, 0x1000, 5) + b"pc.ram", "which was not announced"),
        (pack(">HHQIB", 3, 19, 0x5001, 0x1000, 6) + b"pc.ram", "4096 bytes at 0x5001"),
        (pack(">HHQIB", 3, 19, 0x5000, 0, 6) + b"pc.ram", "0 bytes at 0x5000"),
        (pack(">HHQIB", 3, 19, 0xFF000, 0x2000, 6) + b"pc.ram", "at 0xff000 of the RAM block 'pc.ram', which has"),
        (BITMAP.replace(pack(">Q", 32), pack(">Q", 1 << 62)), "expected 32"),
        (BITMAP[:-1] + b"x", "no end mark"),
    ],
)
def test_what_qemu_does_not_say_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        Answers(BLOCKS).feed(data)
