"""Migration streams to measure with: one made of nothing, and a real one made longer. Both are whole and valid.

QEMU migration/savevm.c and ram.c; statepipe/formats/qemu/stream.py has the layout.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from struct import pack

from statepipe.formats.qemu.stream import Phase, QemuStream
from tests.bench.measure import Broken

PAGE = 4096
RAM_ID = 2
CHUNK = 1 << 20

_WORDS = 4096
_PAGES_IN_SECTION = 1024


def _footer(number: int) -> bytes:
    return b"\x7e" + pack(">I", number)


def _text(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def opening(ram: int) -> bytes:
    """Header, configuration and block list of a guest with `ram` bytes."""
    machine = b"pc-i440fx-7.2"
    head = b"QEVM" + pack(">I", 3) + b"\x07" + pack(">I", len(machine)) + machine
    listed = pack(">Q", ram | 0x04) + _text("pc.ram") + pack(">Q", ram)
    start = b"\x01" + pack(">I", RAM_ID) + _text("ram") + pack(">II", 0, 4)
    return head + start + listed + pack(">Q", 0x10) + _footer(RAM_ID)


def ram_section(records: bytes, kind: int = 2) -> bytes:
    """A section of page records."""
    return bytes([kind]) + pack(">I", RAM_ID) + records + pack(">Q", 0x10) + _footer(RAM_ID)


def record(number: int, page: bytes | None, *, first: bool) -> bytes:
    """A page, ordinary or (None) of zeros; the first of all names its block."""
    flags = (0x02 if page is None else 0x08) | (0 if first else 0x20)
    return pack(">Q", number * PAGE | flags) + (_text("pc.ram") if first else b"") + (b"\0" if page is None else page)


def closing_part() -> bytes:
    """The last, empty round, one device, the end mark and the vmdesc."""
    device = b"\x04" + pack(">I", 3) + _text("timer") + pack(">II", 0, 2) + bytes(24) + _footer(3)
    described = json.dumps({"page_size": PAGE, "devices": [{"name": "timer"}]}).encode()
    return ram_section(b"", kind=3) + device + b"\0\x06" + pack(">I", len(described)) + described


def made_stream(size: int, seed: int = 7) -> Iterator[bytes]:
    """A stream of about `size` bytes: runs of 64 pages, 4 of zeros to 5 like text and 2 random, as in peers' tests."""
    chance = random.Random(seed)
    vocabulary = [chance.randbytes(chance.randint(2, 9)).hex().encode() for _ in range(_WORDS)]
    yield opening((2 * size // PAGE + 8 * _PAGES_IN_SECTION) * PAGE)  # more than it can come to, at any size
    sent = number = 0
    while sent < size:
        section = ram_section(b"".join(_records(chance, vocabulary, number)))
        number += _PAGES_IN_SECTION
        sent += len(section)
        yield section
    yield closing_part()


def _records(chance: random.Random, vocabulary: list[bytes], number: int) -> Iterator[bytes]:
    for run in range(number, number + _PAGES_IN_SECTION, 64):
        kind = chance.choices(("zero", "text", "random"), (4, 5, 2))[0]
        for page in range(run, run + 64):
            yield record(page, _page(chance, vocabulary, kind), first=page == 0)


def _page(chance: random.Random, vocabulary: list[bytes], kind: str) -> bytes | None:
    if kind == "zero":
        return None
    if kind == "random":
        return chance.randbytes(PAGE)
    return b" ".join(chance.choices(vocabulary, k=PAGE // 10))[:PAGE].ljust(PAGE, b"\0")


def chunks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """A file's bytes from `start` to `end`."""
    left = (path.stat().st_size if end is None else end) - start
    with path.open("rb") as file:
        file.seek(start)
        while left and (data := file.read(min(CHUNK, left))):
            left -= len(data)
            yield data


def rounds_of(path: Path) -> tuple[int, int]:
    """Where a stream's rounds of pages begin, and where its final stage does: what lies between may be repeated."""
    head = next(chunks(path))
    stream = QemuStream()
    seen = next((at for at in range(len(head)) if stream.feed(head[at : at + 1]) and stream.phase is Phase.RAM), 0)
    begin = head.rfind(b"\x02" + pack(">I", RAM_ID), 0, seen + 8)
    whole = follow(path)
    if begin < 0 or whole.switchover is None:
        raise Broken(f"{path.name} has no rounds of pages to repeat")
    return begin, whole.switchover


def follow(path: Path) -> QemuStream:
    """Parse a file to its end. Raises what the parser raises."""
    stream = QemuStream()
    for data in chunks(path):
        stream.feed(data)
    stream.close()
    return stream


def lengthened(first: Path, second: Path, size: int) -> Iterator[bytes]:
    """One valid stream of about `size` bytes out of two of the same guest: the rounds of both, again and again."""
    begin, end = rounds_of(first)
    begin2, end2 = rounds_of(second)
    yield from chunks(first, 0, begin)
    for _ in range(max(1, round(size / (end - begin + end2 - begin2)))):
        yield from chunks(first, begin, end)
        yield from chunks(second, begin2, end2)
    yield from chunks(second, end2)
