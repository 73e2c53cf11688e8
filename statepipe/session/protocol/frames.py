"""The session's bytes on the wire: one greeting in each direction, then frames. Their order is in wire.py.

    greeting  magic 8, be16 version, u8 kind, u8 role, be32 link, be32 window, session 16, proof 32, 128 bytes more
    frame     u8 kind, u8 channel, be16 0, be32 length, be64 offset, payload of that length

A PING's channel is 1 if its sender waits for acknowledgements.

Every greeting has the same length, so no more bytes than that are read from a peer before it has greeted. Each frame is
read into its own memory, directly from the socket, so nothing is copied.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from struct import Struct

from statepipe.errors import PeerError
from statepipe.stage import Buffer
from statepipe.typed import NamedTuple

MAGIC = b"\x89SPW\r\n\x1a\n"
"""Like PNG's: a terminal or a text mode between the two ends would change it."""

VERSION = 1

FRAME_SIZE = 256 << 10
"""Bytes of data in a frame that we send; smaller buffers are sent as they are. It is the ends' READ_SIZE, and what one
recv of a busy socket returns."""

MAX_DATA = 1 << 20
"""Bytes of data accepted in a frame: a link holds one incomplete frame, and a dead link costs one at most."""

MAX_TEXT = 1024
"""Bytes of a verdict's text; our errors are lines of 100 to 300 bytes."""

MAX_CHANNELS = 16
"""In each direction."""

MAX_LINKS = 16
"""At a time. One link carries 750 MB/s on the loopback, and on 2 cores a second one adds nothing."""

DIGEST_SIZE = 32

_GREETING = Struct(">8sHBBII16s32s128s")
GREETING_SIZE = _GREETING.size
_OFFSETS = Struct(f">{MAX_CHANNELS}Q")
_HEADER = Struct(">BBHIQ")
HEADER_SIZE = _HEADER.size


class Violation(PeerError):
    """The peer sent what the protocol does not allow. (Our own mistakes are Misuse.)"""


class Kind(enum.IntEnum):
    """The kind of a frame; beside each, its offset and its payload."""

    DATA = 1  # where in the channel; the bytes
    ACK = 2  # bytes that the consumer has taken
    END = 3  # bytes of the whole channel; their BLAKE3
    DONE = 4  # the verdict's code; its text
    ABORT = 5  # the verdict's code; its text
    CLOSE = 6
    PING = 7  # bytes of this link that were received


LENGTHS = {
    Kind.DATA: range(1, MAX_DATA + 1),
    Kind.ACK: range(1),
    Kind.END: range(DIGEST_SIZE, DIGEST_SIZE + 1),
    Kind.DONE: range(MAX_TEXT + 1),
    Kind.ABORT: range(MAX_TEXT + 1),
    Kind.CLOSE: range(1),
    Kind.PING: range(1),
}
"""The allowed lengths of the payload of each kind."""

CHANNELS = {Kind.ABORT: 1, Kind.CLOSE: 1, Kind.PING: 2}
"""The number of channels of a kind that concerns none: only 0, and for PING 1 if its sender waits."""


class Greets(enum.IntEnum):
    """The kind of a greeting: the dialler's, or an answer to it."""

    NEW = 1
    RESUME = 2
    WELCOME = 3
    REFUSED = 4


class Role(enum.IntEnum):
    """The purpose of a side: it sends or receives a stream, moves a guest, or tunnels connections of other programs.

    LIBVIRT is a tunnel with several targets, one of which each session names.
    """

    SENDS = 1
    RECEIVES = 2
    BOTH = 3
    TUNNELS = 4
    LIBVIRT = 5


class Greeting(NamedTuple):
    """The first bytes of a link, in each direction. `proof` is the session's token in NEW, else made from it.

    `received`: the bytes of each of the other side's channels that have arrived without a gap. `text`: the reason of
    REFUSED.
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
        """Return its bytes on the wire."""
        more = _fit(self.text, _OFFSETS.size) if self.kind is Greets.REFUSED else _OFFSETS.pack(*self.received)
        fixed = (MAGIC, VERSION, self.kind, self.role, self.link, self.window, self.session, self.proof)
        return _GREETING.pack(*fixed, more)


def lane(link: int) -> int:
    """Return the lane of a link: a link replaces an earlier one of the same lane."""
    return link % MAX_LINKS


def decode_greeting(data: Buffer) -> Greeting:
    """Return the greeting in GREETING_SIZE bytes. Raises Violation."""
    magic, version, kind, role, link, window, session, proof, more = _GREETING.unpack(data)
    if magic != MAGIC:
        raise Violation("the other side is not a statepipe session", hint="use the same kind of address on both sides")
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
    """Return the text as at most `size` bytes of UTF-8, cut between letters; a ? replaces what is not UTF-8."""
    return text.encode(errors="replace")[:size].decode(errors="ignore").encode()


def printable(text: bytes | bytearray | memoryview) -> str:
    """Return a peer's text with escape sequences and line ends replaced, safe for a terminal."""
    letters = bytes(text).decode(errors="replace")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in letters)


class Frame(NamedTuple):
    """One frame. The meaning of `offset` and `payload` depends on the kind: see Kind."""

    kind: Kind
    channel: int = 0
    offset: int = 0
    payload: Buffer = b""

    def encode(self) -> list[Buffer]:
        """Return its bytes on the wire, without copying the payload."""
        header = _HEADER.pack(self.kind, self.channel, 0, len(self.payload), self.offset)
        return [header, self.payload] if len(self.payload) else [header]


def text_frame(kind: Kind, channel: int, code: int, text: str) -> Frame:
    """Return a DONE or ABORT; a long text is cut."""
    return Frame(kind, channel, code, _fit(text, MAX_TEXT))


def _decode_header(header: Buffer, place: int) -> tuple[Kind, int, int, int]:
    """Return kind, channel, length and offset. `place` is the position of the header on the link, for messages."""
    kind, channel, zero, length, offset = _HEADER.unpack(header)
    if kind not in _KINDS or zero:
        raise Violation(f"a frame of unknown kind {kind}", offset=place)
    if channel >= (channels := CHANNELS.get(Kind(kind), MAX_CHANNELS)):
        raise Violation(f"a {Kind(kind).name} frame for channel {channel}; there are {channels}", offset=place)
    if length not in LENGTHS[kind]:
        raise Violation(f"a {Kind(kind).name} frame of {length} bytes", offset=place)
    if kind == Kind.CLOSE and offset:
        raise Violation(f"a CLOSE frame with offset {offset}", offset=place)
    return Kind(kind), channel, length, offset


_KINDS = set(Kind)


class FrameReader:
    """Cuts a link's bytes into a greeting and frames. `offset` counts the bytes, including a greeting read elsewhere.

    The caller reads into `room()`, which is never empty, and reports how much it has read.
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
        """Return the memory for the next bytes."""
        return self._room

    def cut(self, data: memoryview) -> Iterator[Frame | Greeting]:
        """Take note of bytes that lie in memory of their own; yield what they complete. Raises Violation.

        A payload stays there if it is whole, and most of that memory: less would hold too much of it.
        """
        most = len(data) // 2
        while data:
            if len(self._room) == HEADER_SIZE and self._head is None and self._greeted and len(data) >= HEADER_SIZE:
                kind, channel, length, offset = _decode_header(data[:HEADER_SIZE], self.offset)
                end = HEADER_SIZE + length
                if most < length <= len(data) - HEADER_SIZE:
                    self.offset += end
                    yield Frame(kind, channel, offset, data[HEADER_SIZE:end])
                    data = data[end:]
                    continue
            count = min(len(self._room), len(data))
            self._room[:count] = data[:count]
            data = data[count:]
            if (item := self.filled(count)) is not None:
                yield item

    def filled(self, count: int) -> Frame | Greeting | None:
        """Take note of `count` bytes in `room()`; return what they complete, if anything. Raises Violation."""
        self.offset += count
        self._room = self._room[count:]
        if self._room:
            return None
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
