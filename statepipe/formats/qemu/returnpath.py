"""The return path: what the destination of a migration tells its source, on the way back.

    be16 type, be16 length, payload

SHUT ends it, with 0 if the destination has it all: then the source completes, else it takes the guest back and
fails the migration. PONG answers a PING. The others belong to postcopy and are only told apart here.
RECV_BITMAP alone is followed by data outside its length: be64 n, a bitmap of n bytes, be64 end mark.

Sources: QEMU migration/migration.c, rp_cmd_args and source_return_path_thread; ram.c, ramblock_recv_bitmap_send.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from struct import Struct, error

from statepipe.errors import IntegrityError
from statepipe.stage import Buffer

MAX_PAYLOAD = 512  # the buffer QEMU reads a message into
# A bit a page: a block of 32 TiB, beyond any guest (ramstream.MAX_RAM), takes 1 GiB.
MAX_BITMAP = 1 << 30
BITMAP_END = 0x0123456789ABCDEF

_HEADER, _BE32, _BE64 = Struct(">HH"), Struct(">I"), Struct(">Q")


class Kind(enum.IntEnum):
    """The type of a message."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


LENGTHS = {Kind.SHUT: 4, Kind.PONG: 4, Kind.REQ_PAGES: 12, Kind.RESUME_ACK: 4, Kind.SWITCHOVER_ACK: 0}


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `value` is that of SHUT, PONG and RESUME_ACK; for the others, see `payload`."""

    kind: Kind
    payload: bytes = b""

    @property
    def value(self) -> int | None:
        """The be32 it carries; None for a message that carries something else."""
        return int.from_bytes(self.payload, "big") if LENGTHS.get(self.kind) == 4 else None


def shut(value: int) -> bytes:
    """The last message: 0 says that the destination has everything, anything else that it failed.

    Raises ValueError unless `value` fits 32 bits.
    """
    return _with_value(Kind.SHUT, value)


def pong(value: int) -> bytes:
    """The answer to PING `value`. Raises ValueError unless `value` fits 32 bits."""
    return _with_value(Kind.PONG, value)


def _with_value(kind: Kind, value: int) -> bytes:
    try:
        return _HEADER.pack(kind, 4) + _BE32.pack(value)
    except error:
        raise ValueError(f"{value} does not fit 32 bits") from None


class ReturnPath:
    """Reads messages from bytes as they come. `offset` is that of the next message."""

    def __init__(self) -> None:
        self.offset = 0
        self._held = bytearray()
        self._bitmap = False  # a bitmap's length comes next
        self._skip = 0  # bytes of it to come
        self._shut = False

    def feed(self, data: Buffer) -> list[Message]:
        """The messages that `data` completes.

        Raises IntegrityError, with the offset in the return path, if it is not one, or goes on after SHUT.
        """
        self._held += data
        messages: list[Message] = []
        while self._skip_bitmap():
            message = self._take()
            if message is None:
                break
            messages.append(message)
        return messages

    def _take(self) -> Message | None:
        if self._held and self._shut:
            raise IntegrityError("the return path goes on after its SHUT", offset=self.offset)
        if len(self._held) < _HEADER.size:
            return None
        kind, length = _HEADER.unpack_from(self._held)
        if not 0 < kind <= Kind.SWITCHOVER_ACK or length > MAX_PAYLOAD or length != LENGTHS.get(kind, length):
            raise IntegrityError(f"a return path message of type {kind} and {length} bytes", offset=self.offset)
        if len(self._held) < _HEADER.size + length:
            return None
        payload = bytes(self._held[_HEADER.size : _HEADER.size + length])
        self._drop(_HEADER.size + length)
        self._shut, self._bitmap = kind == Kind.SHUT, kind == Kind.RECV_BITMAP
        return Message(Kind(kind), payload)

    def _skip_bitmap(self) -> bool:
        """Pass over the bitmap after RECV_BITMAP; whether a message comes next."""
        if self._bitmap and len(self._held) >= 8:
            length = _BE64.unpack_from(self._held)[0]
            if length > MAX_BITMAP:
                raise IntegrityError(f"a bitmap of {length} bytes, expected {MAX_BITMAP} at most", offset=self.offset)
            self._drop(8)
            self._bitmap, self._skip = False, length + 8
        if self._skip > 8:
            self._skip -= self._drop(min(self._skip - 8, len(self._held)))
        if self._skip == 8 and len(self._held) >= 8:
            self._check_bitmap_end()
        return not self._bitmap and not self._skip

    def _check_bitmap_end(self) -> None:
        mark = _BE64.unpack_from(self._held)[0]
        if mark != BITMAP_END:
            raise IntegrityError(f"a bitmap ends in {mark:#018x}, expected {BITMAP_END:#018x}", offset=self.offset)
        self._skip -= self._drop(8)

    def _drop(self, count: int) -> int:
        del self._held[:count]
        self.offset += count
        return count
