"""A channel's two halves: what was written and is not acknowledged yet, and what arrived and is not taken yet.

Data is cut into pieces that keep their bounds for ever: one that went over a link that died goes again, whole, over
another. So the receiver meets a piece as a whole or not at all; one it has is a repeat and is dropped, one that
overlaps another by a part is no repeat of ours. What either half keeps is bounded by the window, in bytes and pieces.
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
"""Bytes on their way that either side keeps: 10 Gbit/s over 50 ms of round trip."""

MIN_WINDOW = MAX_DATA
MAX_WINDOW = 1 << 30

LOST = -1
"""In place of a link's number: it died."""

MAX_PIECES = 4096
"""Pieces on their way: of 16 KiB, they fill the default window. A piece of one byte takes 300 in memory, so without
a bound of their own a window of them would take 20 GB."""

ACK_PARTS = 8
"""An ACK for each such part of the window: the sender goes on long before it stands still."""


class Sending(enum.Enum):
    """Where an outgoing channel stands."""

    OPEN = "open"
    ENDED = "ended"
    JUDGED = "judged"


class Receiving(enum.Enum):
    """Where an incoming channel stands."""

    OPEN = "open"
    ENDED = "ended"
    JUDGED = "judged"


OUTGOING = {
    (Sending.OPEN, Kind.ACK): Sending.OPEN,
    (Sending.OPEN, Kind.DONE): Sending.JUDGED,  # only a failure: nobody may praise what has not ended
    (Sending.ENDED, Kind.ACK): Sending.ENDED,
    (Sending.ENDED, Kind.DONE): Sending.JUDGED,
    (Sending.JUDGED, Kind.ACK): Sending.JUDGED,  # overtaken on another link
    (Sending.JUDGED, Kind.DONE): Sending.JUDGED,  # a repeat
}
"""What may come for a channel we write, and where it leads."""

INCOMING = {
    (Receiving.OPEN, Kind.DATA): Receiving.OPEN,
    (Receiving.OPEN, Kind.END): Receiving.ENDED,
    (Receiving.ENDED, Kind.DATA): Receiving.ENDED,  # what END overtook on another link
    (Receiving.ENDED, Kind.END): Receiving.ENDED,  # a repeat
    (Receiving.JUDGED, Kind.DATA): Receiving.JUDGED,  # repeats, and what was under way when we gave up
    (Receiving.JUDGED, Kind.END): Receiving.JUDGED,
}
"""What may come for a channel we read, and where it leads."""


@dataclass(frozen=True, slots=True)
class ChannelVerdict:
    """How it ended: an exit code (errors.py), 0 for good, and a line of text."""

    code: int = 0
    text: str = ""


def verdict_in(frame: Frame) -> ChannelVerdict:
    """The verdict of a DONE or ABORT. Raises Violation for a code that no program ends with."""
    if frame.offset > 255:
        raise Violation(f"a verdict of {frame.offset}: an exit code is 255 at most")
    return ChannelVerdict(frame.offset, printable(frame.payload))


@dataclass(slots=True, eq=False)
class _Piece:
    offset: int
    data: Buffer
    link: int | None = None  # the one it went over last

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Outgoing:
    """A channel we write. `written`, `acked` and `resent` count bytes; `verdict` is the far consumer's."""

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
        """Take a buffer into the digest. By the one thread that writes; needs no lock."""
        self._hash.update(buffer)

    def has_room(self, count: int) -> bool:
        """Whether that many bytes may be written now."""
        return self.written + count <= self.acked + self.window and len(self._kept) < MAX_PIECES

    def write(self, buffer: Buffer) -> None:
        """Keep a piece and queue it."""
        piece = _Piece(self.written, buffer)
        self.written = piece.end
        self._kept.append(piece)
        heapq.heappush(self._waiting, (piece.offset, piece))

    @property
    def waits(self) -> bool:
        """Whether a piece is to go that the peer has room for."""
        while self._waiting and not self._is_missing(self._waiting[0][1]):
            heapq.heappop(self._waiting)
        return bool(self._waiting) and self._waiting[0][1].end <= self.acked + self.peer_window

    def _is_missing(self, piece: _Piece) -> bool:
        return piece.end > max(self.acked, self.arrived) and self.state is not Sending.JUDGED

    def pull(self, link: int) -> Frame | None:
        """The next piece to go, over that link; None if there is none the peer has room for."""
        if not self.waits:
            return None
        _, piece = heapq.heappop(self._waiting)
        self.resent += len(piece.data) if piece.link is not None else 0
        piece.link = link
        return Frame(Kind.DATA, self.number, piece.offset, piece.data)

    def lost(self, link: int) -> None:
        """That link died: what went over it and is not acknowledged waits again."""
        for piece in self._kept:
            if piece.link == link:
                piece.link = LOST
                heapq.heappush(self._waiting, (piece.offset, piece))

    def has_arrived(self, offset: int) -> bool:
        """The peer has everything before `offset`; whether that is news. Raises Violation if it was never written."""
        self._check(offset)
        before, self.arrived = self.arrived, max(self.arrived, offset)
        return self.arrived > max(before, self.acked)

    def ack(self, offset: int) -> bool:
        """The peer's consumer has taken everything before `offset`; whether that is news. Raises Violation."""
        self._check(offset)
        before, self.acked = self.acked, max(self.acked, offset)
        while self._kept and self._kept[0].end <= self.acked:
            self._kept.popleft()
        return self.acked > before

    def _check(self, offset: int) -> None:
        if offset > self.written:
            raise Violation(f"it acknowledges byte {offset} of channel {self.number}, which has {self.written}")

    def end_frame(self) -> Frame:
        """END, as often as it must be said."""
        return Frame(Kind.END, self.number, self.written, self._hash.digest())

    def judge(self, verdict: ChannelVerdict) -> None:
        """Take the far consumer's verdict; the first holds. Raises Violation for praise before the end."""
        if not verdict.code and self.state is Sending.OPEN:
            raise Violation(f"it calls channel {self.number} complete before its end")
        self.verdict = self.verdict or verdict
        self.drop()

    def drop(self) -> None:
        """Nothing is kept any more."""
        self._kept.clear()
        self._waiting.clear()


class Incoming:
    """A channel we read. `arrived` and `taken` count bytes without a gap; `held` those that wait for the consumer."""

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
        """A piece came; whether the consumer has more to take now. Raises Violation."""
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
            raise self._violation(f"more than {MAX_PIECES} pieces on their way")
        place = bisect_left(self._early_offsets, offset)
        before = self._early_offsets[place - 1] if place else None
        floor = self.arrived if before is None else before + len(self._early[before])
        ceiling = self._early_offsets[place] if place < len(self._early_offsets) else end
        if offset < floor or end > ceiling:
            raise self._violation(f"bytes {offset} to {end}, which overlap others")

    def _violation(self, what: str) -> Violation:
        return Violation(f"channel {self.number}: it sent {what}", offset=self.taken)

    def end(self, total: int, digest: bytes) -> None:
        """END came. Raises Violation if it contradicts what came before."""
        known = max([self.arrived] + [each + len(self._early[each]) for each in self._early_offsets[-1:]])
        if total < known or (self.total is not None and (total, digest) != (self.total, self._digest)):
            raise self._violation(f"an end at byte {total} that contradicts what came before")
        self.total, self._digest = total, digest

    @property
    def is_whole(self) -> bool:
        """The end is known and everything before it was taken."""
        return self.taken == self.total

    def take(self) -> Buffer | None:
        """The next buffer for the consumer; None if there is none yet."""
        if not self._ready:
            return None
        data = self._ready.popleft()
        self.taken += len(data)
        self.held -= len(data)
        self._pieces += 1
        return data

    def absorb(self, buffer: Buffer) -> None:
        """Take a buffer into the digest. By the one thread that takes; needs no lock."""
        self._hash.update(buffer)

    def prove(self) -> None:
        """Once whole and absorbed: raises IntegrityError unless the digest agrees."""
        if self._hash.digest() != self._digest:
            raise IntegrityError(f"the {self.taken} bytes that came are not those that were sent", offset=self.taken)

    def ack_due(self) -> bool:
        """Whether the consumer has taken so much that the sender should hear of it."""
        return self.taken - self._acked >= self.window // ACK_PARTS or self._pieces >= MAX_PIECES // ACK_PARTS

    def ack_frame(self) -> Frame:
        """ACK, as things are."""
        self._acked, self._pieces = self.taken, 0
        return Frame(Kind.ACK, self.number, self.taken)

    def drop(self) -> None:
        """Nothing is kept any more."""
        self.held = 0
        self._ready.clear()
        self._early.clear()
        self._early_offsets.clear()
