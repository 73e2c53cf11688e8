"""A channel's two halves: data written and not yet acknowledged, and data arrived and not yet taken.

Data is cut into pieces whose bounds never change: a piece that was sent over a dead link is sent again, whole, over
another. So the receiver gets a piece completely or not at all. One that it has already is dropped; one that overlaps
another is a violation. Both halves are limited by the window, in bytes and pieces.
"""

from __future__ import annotations

import enum
import heapq
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from blake3 import blake3

from statepipe.errors import IntegrityError
from statepipe.session.protocol.frames import MAX_DATA, Frame, Kind, Violation, printable
from statepipe.stage import Buffer

WINDOW = 64 << 20
"""Bytes in flight that each side keeps: 10 Gbit/s with a round trip of 50 ms."""

MIN_WINDOW = MAX_DATA
MAX_WINDOW = 1 << 30

LOST = -1
"""The link of a piece whose link has died."""

MAX_PIECES = 4096
"""Pieces in flight: of 16 KiB, they fill the default window. A piece of one byte takes 300 bytes of memory, so without
this limit a window of them would take 20 GB."""

ACK_PARTS = 8
"""There is an ACK for each such part of the window, long before the sender has to wait."""


class Sending(enum.Enum):
    """The state of an outgoing channel."""

    OPEN = "open"
    ENDED = "ended"
    JUDGED = "judged"


class Receiving(enum.Enum):
    """The state of an incoming channel."""

    OPEN = "open"
    ENDED = "ended"
    JUDGED = "judged"


OUTGOING = {
    (Sending.OPEN, Kind.ACK): Sending.OPEN,
    (Sending.OPEN, Kind.DONE): Sending.JUDGED,  # only a failure, as the channel has not ended
    (Sending.ENDED, Kind.ACK): Sending.ENDED,
    (Sending.ENDED, Kind.DONE): Sending.JUDGED,
    (Sending.JUDGED, Kind.ACK): Sending.JUDGED,  # overtaken on another link
    (Sending.JUDGED, Kind.DONE): Sending.JUDGED,  # a repeat
}
"""The frames that may arrive for a channel that we write, and the next state."""

INCOMING = {
    (Receiving.OPEN, Kind.DATA): Receiving.OPEN,
    (Receiving.OPEN, Kind.END): Receiving.ENDED,
    (Receiving.ENDED, Kind.DATA): Receiving.ENDED,  # overtaken by END on another link
    (Receiving.ENDED, Kind.END): Receiving.ENDED,  # a repeat
    (Receiving.JUDGED, Kind.DATA): Receiving.JUDGED,  # repeats, and data in flight when we gave up
    (Receiving.JUDGED, Kind.END): Receiving.JUDGED,
}
"""The frames that may arrive for a channel that we read, and the next state."""


@dataclass(frozen=True, slots=True)
class ChannelVerdict:
    """The result of a channel: an exit code (errors.py), 0 for success, and a line of text."""

    code: int = 0
    text: str = ""


def verdict_in(frame: Frame) -> ChannelVerdict:
    """Return the verdict of a DONE or ABORT. Raises Violation for a code that is not an exit code."""
    if frame.offset > 255:
        raise Violation(f"a verdict of {frame.offset}: an exit code is 255 at most")
    return ChannelVerdict(frame.offset, printable(frame.payload))


@dataclass(slots=True, eq=False)
class _Piece:
    offset: int
    data: Buffer
    link: int | None = None  # the one that it was last sent over

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Outgoing:
    """A channel that we write. `written`, `acked` and `resent` count bytes; `verdict` is the remote consumer's."""

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = self.peer_window = window
        self.state = Sending.OPEN
        self.written = self.acked = self.arrived = self.resent = 0
        self.verdict: ChannelVerdict | None = None
        self._kept: deque[_Piece] = deque()  # not acknowledged, by offset
        self._waiting: list[tuple[int, _Piece]] = []  # a heap of those to send
        self._hash = blake3()

    def absorb(self, buffer: Buffer) -> None:
        """Add a buffer to the digest. Only the thread that writes calls this, without the lock."""
        self._hash.update(buffer)

    def has_room(self, count: int) -> bool:
        """Return whether so many bytes may be written now."""
        return self.written + count <= self.acked + self.window and len(self._kept) < MAX_PIECES

    def write(self, buffer: Buffer) -> None:
        """Keep a piece and queue it."""
        piece = _Piece(self.written, buffer)
        self.written = piece.end
        self._kept.append(piece)
        heapq.heappush(self._waiting, (piece.offset, piece))

    @property
    def waits(self) -> bool:
        """Whether there is a piece to send for which the peer has room."""
        done = max(self.acked, self.arrived)
        while self._waiting and (self._waiting[0][1].end <= done or self.state is Sending.JUDGED):
            heapq.heappop(self._waiting)
        return bool(self._waiting) and self._waiting[0][1].end <= self.acked + self.peer_window

    def pull(self, link: int) -> Frame | None:
        """Return the next piece to send over this link; None if there is none for which the peer has room."""
        if not self.waits:
            return None
        _, piece = heapq.heappop(self._waiting)
        self.resent += len(piece.data) if piece.link is not None else 0
        piece.link = link
        return Frame(Kind.DATA, self.number, piece.offset, piece.data)

    def lost(self, link: int) -> None:
        """Queue again what was sent over a dead link and is not acknowledged."""
        for piece in self._kept:
            if piece.link == link:
                piece.link = LOST
                heapq.heappush(self._waiting, (piece.offset, piece))

    def has_arrived(self, offset: int) -> bool:
        """Note that the peer has all bytes before `offset`; return whether that is new. Raises Violation."""
        self._check(offset)
        before, self.arrived = self.arrived, max(self.arrived, offset)
        return self.arrived > max(before, self.acked)

    def ack(self, offset: int) -> bool:
        """Note that the peer's consumer has all bytes before `offset`; return whether that is new. Raises Violation."""
        self._check(offset)
        before, self.acked = self.acked, max(self.acked, offset)
        while self._kept and self._kept[0].end <= self.acked:
            self._kept.popleft()
        return self.acked > before

    def _check(self, offset: int) -> None:
        if offset > self.written:
            raise Violation(f"it acknowledges byte {offset} of channel {self.number}, which has {self.written}")

    def end_frame(self) -> Frame:
        """Return END, which may be sent repeatedly."""
        return Frame(Kind.END, self.number, self.written, self._hash.digest())

    def judge(self, verdict: ChannelVerdict) -> None:
        """Take the remote consumer's verdict; the first one counts. Raises Violation for success before the end."""
        if not verdict.code and self.state is Sending.OPEN:
            raise Violation(f"it reports channel {self.number} complete before its end")
        self.verdict = self.verdict or verdict
        self.drop()

    def drop(self) -> None:
        """Forget all data."""
        self._kept.clear()
        self._waiting.clear()


class Incoming:
    """A channel that we read. `arrived` and `taken` count bytes without a gap, `held` those that were not taken yet."""

    def __init__(self, number: int, window: int) -> None:
        self.number, self.window = number, window
        self.state = Receiving.OPEN
        self.arrived = self.taken = self.held = self.repeated = 0
        self.total: int | None = None
        self.verdict: ChannelVerdict | None = None
        self._ready: deque[Buffer] = deque()
        self._early: dict[int, Buffer] = {}  # beyond a gap, by offset
        self._early_offsets: list[int] = []
        self._acked = 0
        self._pieces = 0  # taken since the last ACK
        self._digest = b""
        self._hash = blake3()

    def arrive(self, offset: int, data: Buffer) -> bool:
        """Add a piece; return whether the consumer can take more now. Raises Violation."""
        end = offset + len(data)
        if self.state is Receiving.JUDGED or end <= self.arrived or self._early.get(offset, b"") == data:
            self.repeated += len(data)
            return False
        self._check(offset, end)
        self.held += len(data)
        if offset > self.arrived:
            self._early[offset] = data
            insort(self._early_offsets, offset)
            return False
        self._append(data)
        while self._early_offsets and self._early_offsets[0] == self.arrived:
            self._append(self._early.pop(self._early_offsets.pop(0)))
        return True

    def _append(self, data: Buffer) -> None:
        self._ready.append(data)
        self.arrived += len(data)

    def _check(self, offset: int, end: int) -> None:
        if end > self.taken + self.window:
            raise self._violation(f"bytes {offset} to {end}, beyond the window at {self.taken + self.window}")
        if self.total is not None and end > self.total:
            raise self._violation(f"bytes {offset} to {end}, beyond its end at {self.total}")
        if len(self._ready) + len(self._early) >= MAX_PIECES:
            raise self._violation(f"more than {MAX_PIECES} pieces in flight")
        place = bisect_left(self._early_offsets, offset)
        before = self._early_offsets[place - 1] if place else None
        floor = self.arrived if before is None else before + len(self._early[before])
        ceiling = self._early_offsets[place] if place < len(self._early_offsets) else end
        if offset < floor or end > ceiling:
            raise self._violation(f"bytes {offset} to {end}, which overlap others")

    def _violation(self, what: str) -> Violation:
        return Violation(f"channel {self.number}: it sent {what}", offset=self.taken)

    def end(self, total: int, digest: bytes) -> None:
        """Note END. Raises Violation if it contradicts earlier frames."""
        known = max([self.arrived] + [each + len(self._early[each]) for each in self._early_offsets[-1:]])
        if total < known or (self.total is not None and (total, digest) != (self.total, self._digest)):
            raise self._violation(f"an end at byte {total} that contradicts earlier frames")
        self.total, self._digest = total, digest

    @property
    def is_whole(self) -> bool:
        """Whether the end is known and everything before it was taken."""
        return self.taken == self.total

    def take(self) -> Buffer | None:
        """Return the next buffer for the consumer; None if there is none yet."""
        if not self._ready:
            return None
        data = self._ready.popleft()
        self.taken += len(data)
        self.held -= len(data)
        self._pieces += 1
        return data

    def absorb(self, buffer: Buffer) -> None:
        """Add a buffer to the digest. Only the thread that takes calls this, without the lock."""
        self._hash.update(buffer)

    def prove(self) -> None:
        """Raises IntegrityError if the digest of the whole channel does not match."""
        if self._hash.digest() != self._digest:
            raise IntegrityError(
                f"checksum mismatch: the {self.taken} bytes received are not those that were sent", offset=self.taken
            )

    def ack_due(self) -> bool:
        """Return whether the consumer has taken enough for an ACK."""
        return self.taken - self._acked >= self.window // ACK_PARTS or self._pieces >= MAX_PIECES // ACK_PARTS

    def ack_frame(self) -> Frame:
        """Return the present ACK."""
        self._acked, self._pieces = self.taken, 0
        return Frame(Kind.ACK, self.number, self.taken)

    def drop(self) -> None:
        """Forget all data."""
        self.held = 0
        self._ready.clear()
        self._early.clear()
        self._early_offsets.clear()
