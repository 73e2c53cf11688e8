"""The boot sector is well formed, takes its parameters and refuses what cannot run; tests/qemu shows that it works."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests import guest


def test_a_boot_sector_is_512_bytes_and_signed() -> None:
    sector = guest.boot_sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"


def test_code_leaves_room_for_parameters_and_signature() -> None:
    assert len(guest.assemble(guest.LISTING)) <= guest.CODE_LIMIT == 512 - 2 - 2 * 4


@pytest.mark.parametrize(("fill_mb", "dirty_mb"), [(24, 16), (0, 0), (1, 2), (guest.LARGEST_MB, 0)])
def test_parameters_are_the_two_dwords_before_the_signature(fill_mb: int, dirty_mb: int) -> None:
    sector = guest.boot_sector(fill_mb, dirty_mb)
    assert struct.unpack_from("<II", sector, guest.CODE_LIMIT) == (fill_mb, dirty_mb)
    assert sector[: guest.CODE_LIMIT] == guest.boot_sector()[: guest.CODE_LIMIT]


@pytest.mark.parametrize(("fill_mb", "dirty_mb"), [(-1, 1), (1, -1), (guest.LARGEST_MB, 1), (1 << 32, 0)])
def test_sizes_that_no_guest_can_have_are_refused(fill_mb: int, dirty_mb: int) -> None:
    with pytest.raises(ValueError, match="at most"):
        guest.boot_sector(fill_mb, dirty_mb)


def test_image_is_a_disk_of_one_mebibyte(tmp_path: Path) -> None:
    guest.write_image(tmp_path / "disk", 3, 4)
    image = (tmp_path / "disk").read_bytes()
    assert image[:512] == guest.boot_sector(3, 4)
    assert image[512:] == bytes((1 << 20) - 512)


@pytest.mark.parametrize(
    ("listing", "code"),
    [
        ("here: EB here:rel8 ; jmp here", "EB FE"),
        ("E8 there:rel32\n90\nthere: C3", "E8 01 00 00 00 90 C3"),
        ("BE text:abs32\ntext: 41 00", "BE 05 7C 00 00 41 00"),
        ("0F 01 16 table:abs16\ntable:", "0F 01 16 05 7C"),
        ("8B 0D fill_mb:abs32", "8B 0D F6 7D 00 00"),
    ],
)
def test_references_become_distances_and_addresses(listing: str, code: str) -> None:
    assert guest.assemble(listing) == bytes.fromhex(code)


def test_a_jump_too_far_is_refused() -> None:
    with pytest.raises(ValueError, match="far:rel8: 128 does not fit"):
        guest.assemble("EB far:rel8\n" + "90\n" * 128 + "far:")


def test_code_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="there is room for 502"):
        guest.assemble("90\n" * 503)


def test_ticks_are_parsed_and_torn_lines_left_out() -> None:
    text = "CK 00000009 SUM 31C2BB1B\r\nTICK 0000000A SUM 31C2BB1B\r\nTICK 0000000B SUM 31C2"
    assert guest.parse_ticks(text) == [(10, 0x31C2BB1B)]


def test_a_line_torn_by_a_move_is_whole_again_when_both_sides_are_joined() -> None:
    assert guest.parse_ticks("TICK 000000" + "0B SUM 31C2BB1B\r\n") == [(11, 0x31C2BB1B)]
