"""Migration streams built by hand, one function a part of the stream, for tests that need a small one at once."""

from __future__ import annotations

import json
from struct import pack

PAGE = 4096
RAM_ID, BITMAP_ID = 2, 9
EOS = pack(">Q", 0x10)
BLOCKS = (("pc.ram", 64 * PAGE), ("pc.bios", 16 * PAGE))


def footer(number: int) -> bytes:
    return b"\x7e" + pack(">I", number)


def head(machine: str = "pc-i440fx-7.2", *subsections: bytes) -> bytes:
    return b"QEVM\0\0\0\x03\x07" + pack(">I", len(machine)) + machine.encode() + b"".join(subsections)


def text(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def subsection(name: str, payload: bytes) -> bytes:
    return b"\x05" + text("configuration/" + name) + pack(">I", 1) + payload


def capabilities(*names: str) -> bytes:
    return subsection("capabilities", pack(">I", len(names)) + b"".join(text(name) for name in names))


def block_list(blocks: tuple[tuple[str, int], ...] = BLOCKS, extra: bytes = b"") -> bytes:
    listed = b"".join(text(name) + pack(">Q", length) + extra for name, length in blocks)
    return pack(">Q", sum(length for _, length in blocks) | 4) + listed


def start(name: str, number: int, payload: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + pack(">I", number) + text(name) + pack(">II", 0, 4) + payload + footer(number)


def ram_start(listed: bytes | None = None) -> bytes:
    return start("ram", RAM_ID, (block_list() if listed is None else listed) + EOS)


def ram(*records: bytes, kind: int = 2) -> bytes:
    return bytes([kind]) + pack(">I", RAM_ID) + b"".join(records) + EOS + footer(RAM_ID)


def record(flags: int, page: int, block: str | None = None, body: bytes = b"") -> bytes:
    return pack(">Q", page * PAGE | flags | (0 if block else 0x20)) + (text(block) if block else b"") + body


def ordinary(page: int, block: str | None = None) -> bytes:
    return record(0x08, page, block, bytes([page % 251]) * PAGE)


def zero(page: int, block: str | None = None) -> bytes:
    return record(0x02, page, block, b"\0")


def xbzrle(page: int, block: str | None = None) -> bytes:
    return record(0x40, page, block, b"\x01" + pack(">H", 5) + b"diffs")


def compressed(page: int) -> bytes:
    return record(0x100, page, None, pack(">I", 7) + b"deflate")


def command(number: int, payload: bytes = b"") -> bytes:
    return b"\x08" + pack(">HH", number, len(payload)) + payload


def device(name: str, number: int, state: bytes = b"state") -> bytes:
    return start(name, number, state, kind=4)


def globalstate(number: int, state: bytes = b"running") -> bytes:
    return device("globalstate", number, pack(">I", len(state) + 1) + state.ljust(100, b"\0"))


def vmdesc(*names: str) -> bytes:
    described = json.dumps({"page_size": PAGE, "devices": [{"name": name} for name in names]}).encode()
    return b"\x06" + pack(">I", len(described)) + described


def setup() -> bytes:
    return head() + ram_start()


def devices() -> bytes:
    return device("timer", 0) + globalstate(3) + device("0000:00:01.0/ide", 4, b"x" * 50)


DEVICES = ("timer", "globalstate", "0000:00:01.0/ide")
LAST = ordinary(1, "pc.ram")


def whole(*more: bytes) -> bytes:
    """A stream with every usual thing in it, and `more` records of RAM."""
    return (
        head("pc-i440fx-7.2", subsection("uuid", bytes(range(16))))
        + command(1)
        + command(2, pack(">I", 7))
        + ram_start()
        + ram(zero(0, "pc.ram"), ordinary(1), ordinary(2), *map(zero, range(3, 40)), xbzrle(40))
        + ram(ordinary(41), zero(3, "pc.bios"), xbzrle(1, "pc.ram"), *more)
        + ram(ordinary(1), zero(2), kind=3)
        + devices()
        + b"\0"
        + vmdesc(*DEVICES)
    )


FULL = ram(ordinary(0, "pc.ram"), *map(ordinary, range(1, 64)))
"""A section with all pages of the first block."""


def long(sections: int = 12) -> bytes:
    """A stream of 3 MB, which is longer than a pipe, without a return path: so many times the same pages."""
    return setup() + sections * FULL + ram(LAST, kind=3) + devices() + b"\0" + vmdesc(*DEVICES)
