"""The session's bytes on the wire: one greeting each way, then frames. wire.py says when which may come.

    greeting  magic 8, be16 version, u8 kind, u8 role, be32 link, be32 window, session 16, proof 32, 128 bytes more
    frame     u8 kind, u8 channel, be16 0, be32 length, be64 offset, payload of that length

A PING's channel is 1 where its sender waits to be heard.

Every greeting has the same length, so the bytes taken from a peer before it is known are as many as that and no more.
A frame is read into memory of its own, the payload straight from the socket: nothing is copied, and what a
consumer takes is what arrived.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from struct import Struct

from statepipe.errors import PeerError
from statepipe.stage import Buffer

MAGIC = b"\x89SPW\r\n\x1a\n"
"""As PNG's: a terminal or a text mode between the two ends changes it."""

VERSION = 1

FRAME_SIZE = 256 << 10
"""Bytes of data we put in a frame; what comes in smaller buffers goes as it is. It is the ends' READ_SIZE, and what
one recv of a busy socket gives."""

MAX_DATA = 1 << 20
"""Bytes of data taken in a frame: a link holds one unfinished, and a dead link costs no more than one twice."""

MAX_TEXT = 1024
"""Bytes of a verdict's text: an error of ours is one line, of 100 to 300 bytes."""

MAX_CHANNELS = 16
"""Each way. A migration has one, its return path one, multifd 2 to 8."""

MAX_LINKS = 16
"""At a time. One link carries 750 MB/s on the loopback, and on 2 cores a second one carries no more."""

DIGEST_SIZE = 32

_GREETING = Struct(">8sHBBII16s32s128s")
GREETING_SIZE = _GREETING.size
_OFFSETS = Struct(f">{MAX_CHANNELS}Q")
_HEADER = Struct(">BBHIQ")
HEADER_SIZE = _HEADER.size


class Violation(PeerError):
    """The peer sent what the protocol does not allow. Its fault: what we do wrong ourselves is Misuse."""


class Kind(enum.IntEnum):
    """What a frame is: and what its offset and its payload are."""

    DATA = 1  # where in the channel; the bytes
    ACK = 2  # bytes the consumer has taken
    END = 3  # bytes the channel has had; their BLAKE3
    DONE = 4  # the verdict's code; its text
    ABORT = 5  # the verdict's code; its text
    CLOSE = 6
    PING = 7  # bytes of this link that were heard


LENGTHS = {
    Kind.DATA: range(1, MAX_DATA + 1),
    Kind.ACK: range(1),
    Kind.END: range(DIGEST_SIZE, DIGEST_SIZE + 1),
    Kind.DONE: range(MAX_TEXT + 1),
    Kind.ABORT: range(MAX_TEXT + 1),
    Kind.CLOSE: range(1),
    Kind.PING: range(1),
}
"""The payloads each kind may have."""

CHANNELS = {Kind.ABORT: 1, Kind.CLOSE: 1, Kind.PING: 2}
"""How many channels a kind has that is not about one: 0 alone, and of PING 1, where its sender waits to be heard."""


class Greets(enum.IntEnum):
    """What a greeting is: the dialler's question, or the answer to it."""

    NEW = 1
    RESUME = 2
    WELCOME = 3
    REFUSED = 4


class Role(enum.IntEnum):
    """What a side is there for: a stream from it or to it, a guest that moves, a connection of other programs."""

    SENDS = 1
    RECEIVES = 2
    BOTH = 3
    TUNNELS = 4


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first bytes of a link, each way. `proof` is the session's token in NEW, else made from it (wire.py).

    `received` is how far each channel of the other side's has arrived without a gap; `text` why it was REFUSED.
    """

    kind: Greets
    role: Role
    link: int
    window: int
    session: bytes
    proof: bytes
    received: tuple[int, ...] = (0,) * MAX_CHANNELS
    text: str = ""

    def encode(self) -> bytes:
        """Its bytes on the wire."""
        more = _fit(self.text, _OFFSETS.size) if self.kind is Greets.REFUSED else _OFFSETS.pack(*self.received)
        fixed = (MAGIC, VERSION, self.kind, self.role, self.link, self.window, self.session, self.proof)
        return _GREETING.pack(*fixed, more)


def lane(link: int) -> int:
    """The lane of a link's number: a later link takes the place of an earlier one on its lane."""
    return link % MAX_LINKS


def decode_greeting(data: Buffer) -> Greeting:
    """The greeting in GREETING_SIZE bytes. Raises Violation."""
    magic, version, kind, role, link, window, session, proof, more = _GREETING.unpack(data)
    if magic != MAGIC:
        raise Violation("the other side is no statepipe session", hint="use the same kind of address on both sides")
    if version != VERSION:
        raise Violation(
            f"the other side speaks session version {version}, this one {VERSION}",
            hint="install the same statepipe on both hosts",
        )
    if kind not in set(Greets) or role not in set(Role):
        raise Violation(f"a greeting of kind {kind} and role {role}")
    if kind == Greets.REFUSED:
        return Greeting(Greets.REFUSED, Role(role), link, window, session, proof, text=printable(more.rstrip(b"\0")))
    return Greeting(Greets(kind), Role(role), link, window, session, proof, _OFFSETS.unpack(more))


def _fit(text: str, size: int) -> bytes:
    """As UTF-8 in at most `size` bytes, no letter cut in two; a ? for the bytes of a file's name that are no UTF-8."""
    return text.encode(errors="replace")[:size].decode(errors="ignore").encode()


def printable(text: bytes | bytearray | memoryview) -> str:
    """A peer's text, fit for a terminal: escape sequences and line ends do nothing there."""
    letters = bytes(text).decode(errors="replace")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in letters)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. What `offset` and `payload` mean depends on its kind: see Kind."""

    kind: Kind
    channel: int = 0
    offset: int = 0
    payload: Buffer = b""

    def encode(self) -> list[Buffer]:
        """Its bytes on the wire, the payload not copied."""
        header = _HEADER.pack(self.kind, self.channel, 0, len(self.payload), self.offset)
        return [header, self.payload] if len(self.payload) else [header]


def text_frame(kind: Kind, channel: int, code: int, text: str) -> Frame:
    """A DONE or ABORT; a text too long is cut."""
    return Frame(kind, channel, code, _fit(text, MAX_TEXT))


def _decode_header(header: Buffer, place: int) -> tuple[Kind, int, int, int]:
    """Kind, channel, length and offset. `place` is the header's own, in the link's bytes, for the message."""
    kind, channel, zero, length, offset = _HEADER.unpack(header)
    if kind not in _KINDS or zero:
        raise Violation(f"a frame of unknown kind {kind}", offset=place)
    if channel >= (channels := CHANNELS.get(Kind(kind), MAX_CHANNELS)):
        raise Violation(f"a {Kind(kind).name} frame for channel {channel}, of {channels} there are", offset=place)
    if length not in LENGTHS[kind]:
        raise Violation(f"a {Kind(kind).name} frame of {length} bytes", offset=place)
    if kind == Kind.CLOSE and offset:
        raise Violation(f"a CLOSE frame with offset {offset}", offset=place)
    return Kind(kind), channel, length, offset


_KINDS = set(Kind)


class FrameReader:
    """Cuts a link's bytes into a greeting and frames. `offset` counts what came, a greeting that another took as well.

    The caller reads into `room()`, which is never empty, and says how much came.
    """

    def __init__(self, *, greeted: bool = False) -> None:
        self.offset = GREETING_SIZE if greeted else 0
        self._head: tuple[Kind, int, int, int] | None = None
        self._greeted = greeted
        self._expect(HEADER_SIZE if greeted else GREETING_SIZE)

    def _expect(self, size: int) -> None:
        self._block = memoryview(bytearray(size))
        self._room = self._block

    def room(self) -> memoryview:
        """Where the next bytes belong."""
        return self._room

    def filled(self, count: int) -> Frame | Greeting | None:
        """Count bytes that were put into `room()`; what they complete, if anything. Raises Violation."""
        self.offset += count
        self._room = self._room[count:]
        return None if self._room else self._complete()

    def _complete(self) -> Frame | Greeting | None:
        block = self._block
        if self._head is not None:
            kind, channel, _, offset = self._head
            self._head = None
            self._expect(HEADER_SIZE)
            return Frame(kind, channel, offset, block)
        if not self._greeted:
            self._greeted = True
            self._expect(HEADER_SIZE)
            return decode_greeting(block)
        kind, channel, length, offset = _decode_header(block, self.offset - HEADER_SIZE)
        if not length:
            self._expect(HEADER_SIZE)
            return Frame(kind, channel, offset)
        self._head = kind, channel, length, offset
        self._expect(length)
        return None
