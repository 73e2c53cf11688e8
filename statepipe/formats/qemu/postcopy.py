"""Postcopy, from the source's side: what a destination receives that runs its guest before it has all memory.

    QEVM, configuration                          as the state was saved
    OPEN_RETURN_PATH, PING 1, ADVISE             who answers; that pages will come late
    setup                                        RAM's list of blocks, with the page sizes of the destination
    DISCARD                                      at least one page: LISTEN would go back to here
    PACKAGED: LISTEN, the devices, PING 3, RUN   one command with the rest inside: the guest runs
    PART of RAM, again and again                 pages, each once, in any order
    END of RAM, EOF                              the destination answers SHUT 0

A destination that has lost its connection receives RECV_BITMAP for each block on a new one, answers which pages it has,
and continues after RESUME.

Its messages on the return path are `be16 type, be16 length, body`; `Answers` reads them. It already requests pages
while it loads the package, since the devices touch memory.

Sources: QEMU migration/savevm.c (qemu_savevm_send_*, loadvm_process_command), migration/ram.c (ram_load_postcopy,
ram_save_setup), migration/migration.c (source_return_path_thread), the same in 7.2 and 10.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from struct import Struct

from statepipe.errors import IntegrityError
from statepipe.formats.qemu.ram import CONTINUE, EOS, MEM_SIZE, PAGE, ZERO
from statepipe.formats.qemu.returnpath import PONG, SHUT
from statepipe.formats.qemu.sections import (
    COMMAND,
    END,
    EOF,
    FOOTER,
    OPEN_RETURN_PATH,
    PACKAGED,
    PART,
    PING,
    POSTCOPY_ADVISE,
    POSTCOPY_LISTEN,
    POSTCOPY_RUN,
    START,
)
from statepipe.stage import Buffer
from statepipe.typed import NamedTuple

PAGE_SIZE = 4096
"""Bytes of a page of the guest: of every machine whose QEMU knows postcopy on x86."""

RAM_DISCARD, RESUME, RECV_BITMAP = 6, 9, 10
REQUEST_NAMED, REQUEST, BITMAP, RESUME_ACK = 3, 4, 5, 6

READER_LIVES, LOADED = 1, 3
"""The values of the two PINGs: the PONG of the first proves a reader, that of the second comes just before RUN."""

MOST_RANGES = 12
"""Ranges that QEMU itself discards in one command (MAX_DISCARDS_PER_COMMAND)."""

MOST_PACKAGED = 0xFFFFFFFF
"""Bytes of a package (MAX_VM_CMD_PACKAGED_SIZE)."""

RAM_VERSION = 4

_BE16, _BE32, _BE64 = Struct(">H"), Struct(">I"), Struct(">Q")
_COMMAND = Struct(">BHH")
_MESSAGE = Struct(">HH")
_RANGE = Struct(">QQ")
_REQUEST = Struct(">QI")
_BITMAP_END = 0x0123456789ABCDEF


class Block(NamedTuple):
    """A block of RAM at the destination: its name, its length and the size of its host pages, in bytes."""

    name: str
    length: int
    page_size: int = PAGE_SIZE


# --- what is written


def command(number: int, payload: bytes = b"") -> bytes:
    """Return a command, which is sent between sections."""
    return _COMMAND.pack(COMMAND, number, len(payload)) + payload


def _name(text: str) -> bytes:
    encoded = text.encode()
    return bytes([len(encoded)]) + encoded


def footer(section: int) -> bytes:
    """Return the footer of a section, for machine types that have footers (2.4 and later)."""
    return bytes([FOOTER]) + _BE32.pack(section)


def advise(blocks: Sequence[Block]) -> bytes:
    """Return the commands that open a return path, send the first PING, and tell all page sizes, combined with OR."""
    sizes = reduce(or_, (block.page_size for block in blocks), PAGE_SIZE)
    told = _RANGE.pack(sizes, PAGE_SIZE)
    return command(OPEN_RETURN_PATH) + ping(READER_LIVES) + command(POSTCOPY_ADVISE, told)


def ping(value: int) -> bytes:
    """Return a PING, which the destination answers with a PONG of the same value."""
    return command(PING, _BE32.pack(value))


def ram_setup(section: int, blocks: Sequence[Block], ending: bytes) -> bytes:
    """Return RAM's START section, which lists its blocks. `ending` is its footer, or empty."""
    total = sum(block.length for block in blocks)
    listed = b"".join(
        _name(block.name)
        + _BE64.pack(block.length)
        + (_BE64.pack(block.page_size) if block.page_size > PAGE_SIZE else b"")
        for block in blocks
    )
    head = bytes([START]) + _BE32.pack(section) + _name("ram") + _BE32.pack(0) + _BE32.pack(RAM_VERSION)
    return head + _BE64.pack(total | MEM_SIZE) + listed + _BE64.pack(EOS) + ending


def discard(block: str, ranges: Iterable[tuple[int, int]]) -> bytes:
    """Return commands that make the destination count ranges (first byte, bytes) as not received; at least one."""
    pairs = [_RANGE.pack(*pair) for pair in ranges]
    name = block.encode()
    head = b"\0" + bytes([len(name)]) + name + b"\0"
    parts = [pairs[at : at + MOST_RANGES] for at in range(0, len(pairs), MOST_RANGES)]
    return b"".join(command(RAM_DISCARD, head + b"".join(part)) for part in parts)


def package(devices: bytes) -> bytes:
    """Return one command with LISTEN, the devices, a PING and RUN. Raises ValueError beyond MOST_PACKAGED bytes."""
    inside = command(POSTCOPY_LISTEN) + devices + ping(LOADED) + command(POSTCOPY_RUN)
    if len(inside) > MOST_PACKAGED:
        raise ValueError(f"{len(inside)} bytes of devices do not fit into a package")
    return command(PACKAGED, _BE32.pack(len(inside))) + inside


def part_head(section: int) -> bytes:
    """Return the header of a PART section of RAM; records of pages follow."""
    return bytes([PART]) + _BE32.pack(section)


def part_end(ending: bytes) -> bytes:
    """Return the end of a PART section of RAM."""
    return _BE64.pack(EOS) + ending


def stored_head(block: str | None, page: int) -> bytes:
    """Return the header of a page's record; its 4096 bytes follow. `block` is None if the last record had the same."""
    return _record(PAGE, block, page)


def zero_page(block: str | None, page: int) -> bytes:
    """Return the record of a page of zeros."""
    return _record(ZERO, block, page) + b"\0"


def _record(kind: int, block: str | None, page: int) -> bytes:
    if block is None:
        return _BE64.pack(page * PAGE_SIZE | kind | CONTINUE)
    return _BE64.pack(page * PAGE_SIZE | kind) + _name(block)


def ram_end(section: int, ending: bytes) -> bytes:
    """Return the END section of RAM and the end mark of the stream."""
    return bytes([END]) + _BE32.pack(section) + part_end(ending) + bytes([EOF])


def recv_bitmap(block: str) -> bytes:
    """Return the command that asks which pages of a block the destination has."""
    return command(RECV_BITMAP, _name(block))


def resume() -> bytes:
    """Return the command to continue on a new connection; RESUME_ACK answers it."""
    return command(RESUME)


# --- devices as they were saved


def without_return_path(devices: bytes) -> bytes:
    """Return the bytes after RAM's last footer up to the end mark without the commands OPEN_RETURN_PATH and PING.

    Only commands before the first section are found; QEMU 7.2 to 10.1 writes none later.
    """
    kept, at = b"", 0
    while devices[at : at + 1] == bytes([COMMAND]) and at + _COMMAND.size <= len(devices):
        _, number, length = _COMMAND.unpack_from(devices, at)
        after = at + _COMMAND.size + length
        if number not in (OPEN_RETURN_PATH, PING):
            kept += devices[at:after]
        at = after
    return kept + devices[at:]


# --- what is answered


class Shut(NamedTuple):
    """The destination has closed the return path; 0 reports success."""

    value: int


class Pong(NamedTuple):
    """The destination has read a PING of this value."""

    value: int


class Asked(NamedTuple):
    """The guest waits for `pages` pages of a block from `page` on."""

    block: str
    page: int
    pages: int


class Received(NamedTuple):
    """Which pages of a block the destination has: bit n of the little-endian bitmap is page n."""

    block: str
    bitmap: bytes


class Resumed(NamedTuple):
    """The destination continues (1)."""

    value: int


Answer = Shut | Pong | Asked | Received | Resumed


class Answers:
    """Parses the return path of a destination with these `blocks`, piece by piece.

    Raises IntegrityError for messages that QEMU does not send, and for pages outside the blocks. It holds at most the
    bitmap of the largest block: one bit a page.
    """

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self._blocks = blocks
        self._rest = bytearray()
        self._block: Block | None = None  # of the last request

    def feed(self, data: Buffer) -> list[Answer]:
        """Return the messages that are complete now, in order."""
        self._rest += data
        found: list[Answer] = []
        at = 0
        while (message := self._next(at)) is not None:
            answer, at = message
            found.append(answer)
        del self._rest[:at]
        return found

    def _next(self, at: int) -> tuple[Answer, int] | None:
        """Return the message at `at` and the position after it, or None while it is incomplete."""
        if len(self._rest) < at + _MESSAGE.size:
            return None
        kind, length = _MESSAGE.unpack_from(self._rest, at)
        self._demand_length(kind, length)
        at += _MESSAGE.size
        if len(self._rest) < at + length:
            return None
        body = bytes(self._rest[at : at + length])
        at += length
        if kind == BITMAP:
            return self._bitmap(self._named(body, 0), at)
        if kind in (REQUEST_NAMED, REQUEST):
            return self._asked(kind, body), at
        value = _BE32.unpack(body)[0]
        return (Shut(value) if kind == SHUT else Pong(value) if kind == PONG else Resumed(value)), at

    def _demand_length(self, kind: int, length: int) -> None:
        low, high = _LENGTHS.get(kind, (1, 0))
        if not low <= length <= high:
            raise IntegrityError(f"the destination sent a message of type {kind} with {length} bytes")

    def _named(self, body: bytes, at: int) -> Block:
        size = body[at]
        name = body[at + 1 :].decode(errors="replace")
        if len(body) != at + 1 + size or name not in self._blocks:
            raise IntegrityError(f"the destination named a RAM block {name[:80]!r}, which was not announced")
        return self._blocks[name]

    def _asked(self, kind: int, body: bytes) -> Asked:
        start, length = _REQUEST.unpack_from(body)
        if kind == REQUEST_NAMED:
            self._block = self._named(body, _REQUEST.size)
        if (block := self._block) is None:
            raise IntegrityError("the destination asked for a page without naming its block")
        if not length or start % PAGE_SIZE or length % PAGE_SIZE or start + length > block.length:
            what = f"the destination asked for {length} bytes at {start:#x} of the RAM block {block.name!r}"
            raise IntegrityError(f"{what}, which has {block.length}")
        return Asked(block.name, start // PAGE_SIZE, length // PAGE_SIZE)

    def _bitmap(self, block: Block, at: int) -> tuple[Received, int] | None:
        """Read what follows the message: the size of the bitmap, the bitmap, and an end mark."""
        if len(self._rest) < at + 8:
            return None
        size, expected = _BE64.unpack_from(self._rest, at)[0], bitmap_size(block.length)
        if size != expected:
            raise IntegrityError(f"the bitmap of {block.name!r} has {size} bytes, expected {expected}")
        stop = at + 8 + size
        if len(self._rest) < stop + 8:
            return None
        if _BE64.unpack_from(self._rest, stop)[0] != _BITMAP_END:
            raise IntegrityError(f"the bitmap of {block.name!r} has no end mark")
        return Received(block.name, bytes(self._rest[at + 8 : stop])), stop + 8


def bitmap_size(length: int) -> int:
    """Return the bytes of a block's bitmap: a bit a page, rounded up to 64 bits."""
    return (length // PAGE_SIZE + 63) // 64 * 8


_LENGTHS = {
    SHUT: (4, 4),
    PONG: (4, 4),
    REQUEST_NAMED: (_REQUEST.size + 2, _REQUEST.size + 256),
    REQUEST: (_REQUEST.size, _REQUEST.size),
    BITMAP: (2, 256),
    RESUME_ACK: (4, 4),
}
"""The least and most bytes of the body of each type (rp_cmd_args)."""
