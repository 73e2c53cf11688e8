"""A TLS link that carries large records after its greetings (protocol/records.py): TLS's own, of 16 KiB, each cost
Python a call, a lock and two copies. CPU seconds a GB for both ends: see docs/measurements.md.

The greeting of each side and its secret are in TLS's own records. What each side sends after its greeting is in large
ones.
"""

from __future__ import annotations

import re
import secrets
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache

from statepipe.ends.config import TLS_ONLY
from statepipe.ends.net import Patience, lost
from statepipe.errors import PeerError
from statepipe.session.protocol.frames import GREETING_SIZE, Frame, FrameReader, Greeting
from statepipe.session.protocol.records import (
    AES,
    CHACHA,
    LENGTH_SIZE,
    MAX_CONTENT,
    MAX_SEALED,
    SECRET_SIZE,
    Agreement,
    Opener,
    Sealer,
    can_use,
    sealed_size,
)
from statepipe.session.protocol.states import Misuse
from statepipe.session.tls import FINISHED, READ_BATCH, Handshake, TlsTransport, ended
from statepipe.session.transport import Transport
from statepipe.stage import Buffer

_CPU = "/proc/cpuinfo"
_CPU_HEAD = 64 << 10
"""Bytes of it that describe the first processor: 1.5 KiB on x86, 0.3 KiB on ARM."""

_FLAGS = re.compile(rb"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)
"""The features of a processor, on x86 and on ARM."""


def offered_protocols(records: str) -> list[str]:
    """Return the names for ALPN, the best first, for one of RECORDS.

    A side whose processor has no AES offers only ChaCha20-Poly1305, so that both use it. Ciphers that the library does
    not make here (FIPS) are not offered.
    """
    if records == TLS_ONLY or FINISHED not in ssl.CHANNEL_BINDING_TYPES:
        return []
    return [name for name in (AES, CHACHA) if (name == CHACHA or _has_aes()) and can_use(name)]


@cache
def _has_aes() -> bool:
    with suppress(OSError), open(_CPU, "rb") as file:  # without /proc it is not known
        found = _FLAGS.search(file.read(_CPU_HEAD))
        return found is not None and b"aes" in found[1].split()
    return False


def transport_of(handshake: Handshake, name: str, identity: str, patience: Patience) -> Transport:
    """Return the connection of a complete handshake, in the way that both sides agreed on. Raises PeerError."""
    tls, chosen = handshake.transport(name, identity, patience), handshake.chosen
    if chosen is None:
        return tls
    if chosen not in (AES, CHACHA):
        raise PeerError(f"{name} chose a protocol that was not offered")
    return RecordTransport(tls, chosen, handshake.finished, dials=not handshake.server)


class RecordTransport:
    """An authenticated connection with large records. One thread may send while another receives.

    The first call of `send` sends the greeting, and the first bytes that are received are the peer's: whichever comes
    second, the greeting that was received or sent, makes the keys.
    """

    def __init__(self, tls: TlsTransport, suite: str, finished: bytes, *, dials: bool) -> None:
        self.connection, self.name, self.identity = tls.connection, tls.name, tls.identity
        self._tls, self._suite, self._finished, self._dials = tls, suite, finished, dials
        self._secret = secrets.token_bytes(SECRET_SIZE)
        self._has_greeted, self._said, self._heard = False, b"", bytearray()
        self._sending = threading.Lock()  # records must be sent in the order in which they were sealed
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._block = memoryview(b"")
        self._start = self._end = self._wanted = 0
        self._opened = memoryview(b"")

    @property
    def delay(self) -> float | None:
        """Seconds of a round trip, as measured by the kernel."""
        return self._tls.delay

    @property
    def is_stuck(self) -> bool:
        """Whether the kernel retransmits without an answer, or the keys were used for tls.RENEWED."""
        return self._tls.is_stuck

    # --- sending

    @property
    def is_behind(self) -> bool:
        """Whether `send_now` has left something."""
        return self._tls.is_behind

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send what is left, and all buffers. Raises PeerError."""
        with self._sending:
            if not self._has_greeted:
                self._greet(b"".join(buffers))
                return
            if self._tls.is_behind:
                self._send_sealed([], self._tls.sender.send)
            self._seal(buffers, self._tls.sender.send)

    def send_now(self, buffers: Iterable[Buffer]) -> None:
        """Send what the socket takes of the buffers without waiting. Raises PeerError."""
        with self._sending:
            self._seal(buffers, self._tls.sender.send_now)

    def _seal(self, buffers: Iterable[Buffer], send: Callable[[list[Buffer]], None]) -> None:
        """Seal the buffers, and pass on each record. Raises PeerError."""
        if self._sealer is None:
            raise Misuse("frames before the peer's greeting")
        for content in _packed(buffers):
            try:
                record = self._sealer.seal(content)
            except PeerError as error:
                raise PeerError(f"{self.name}: {error}", hint=error.hint) from error
            self._send_sealed(record, send)
            self._tls.sent += sum(map(len, record))

    def _send_sealed(self, record: list[Buffer], send: Callable[[list[Buffer]], None]) -> None:
        try:
            send(record)
        except OSError as error:
            raise lost(self.name, error, self._tls.bytes, self._tls.patience) from error

    def _greet(self, greeting: bytes) -> None:
        if len(greeting) != GREETING_SIZE:
            raise Misuse(f"a greeting of {len(greeting)} bytes")
        self._has_greeted, self._said, secret = True, greeting, self._secret
        self._make_keys()
        self._tls.send([greeting + secret])

    def _make_keys(self) -> None:
        """Make both keys once both greetings are known."""
        if not self._said or len(self._heard) < GREETING_SIZE + SECRET_SIZE:
            return
        ours = self._said, self._secret
        theirs = bytes(self._heard[:GREETING_SIZE]), bytes(self._heard[GREETING_SIZE:])
        asked, answered = (ours, theirs) if self._dials else (theirs, ours)
        agreed = Agreement(self._suite, self._finished, *asked, *answered)
        self._sealer = Sealer(*agreed.key(of_dialler=self._dials))
        self._opener = Opener(*agreed.key(of_dialler=not self._dials))
        self._secret = self._said = self._finished = b""
        self._heard.clear()

    # --- receiving

    def recv_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; return the number, 0 if the peer ended TLS and never greeted. Raises PeerError."""
        if not self._opened and self._opener is None and not self._hear_greeting():
            return 0
        while not self._opened:
            self._go_on()
        count = min(len(buffer), len(self._opened))
        buffer[:count] = self._opened[:count]
        self._opened = self._opened[count:]
        return count

    def items(self, reader: FrameReader) -> Iterator[Frame | Greeting | None]:
        """Receive until the connection fails; yield what each record completes, and None whenever bytes arrive:
        over a slow link, a record takes a while.

        Raises PeerError, Violation.
        """
        if not self._opened and self._opener is None and not self._hear_greeting():
            return
        while True:
            if self._opened:
                content, self._opened = self._opened, self._opened[:0]
                yield from reader.cut(content)
            self._go_on()
            if not self._opened:
                yield None

    def _hear_greeting(self) -> bool:
        """Receive the peer's greeting and its secret; return whether they came. Raises PeerError."""
        if self._heard:
            raise Misuse("frames before our greeting")
        block = memoryview(bytearray(GREETING_SIZE + SECRET_SIZE))
        done = 0
        while done < len(block):
            if not (count := self._tls.recv_into(block[done:])):
                return False
            done += count
        early = self._tls.leave()
        self._block = memoryview(bytearray(LENGTH_SIZE + MAX_SEALED + READ_BATCH))  # the last for what came early
        self._block[: len(early)] = early
        self._tls.bytes += len(early)
        self._end = len(early)
        self._heard += block
        self._opened = memoryview(bytes(block[:GREETING_SIZE]))
        self._make_keys()
        return True

    def _go_on(self) -> None:
        """Open the next record if it has arrived, or receive some of it. Raises PeerError."""
        assert self._opener is not None
        try:
            record = self._complete()
            if record is not None:
                self._opened = self._opener.open(*record)
                return
        except PeerError as error:
            raise PeerError(f"{self.name}: {error}", hint=error.hint) from error
        try:
            count = self.connection.recv_into(self._block[self._end : self._wanted])
        except OSError as error:
            raise lost(self.name, error, self._tls.bytes, self._tls.patience) from error
        if not count:
            raise ended(self.name, self._tls.bytes)
        self._end += count
        self._tls.bytes += count

    def _complete(self) -> tuple[bytes, memoryview] | None:
        """Return length and sealed content of a record that has arrived; None if the socket must be read first, up to
        `_wanted`: with the record, the length of the next one. Raises PeerError."""
        have = self._block[self._start : self._end]
        size = LENGTH_SIZE
        if len(have) >= LENGTH_SIZE:
            length = bytes(have[:LENGTH_SIZE])
            size += sealed_size(length)
            if len(have) >= size:
                self._start += size
                return length, have[LENGTH_SIZE:size]
        if self._start:  # four bytes, but for what came with the greeting
            self._block[: len(have)] = bytes(have)
            self._start, self._end = 0, len(have)
        self._wanted = size + LENGTH_SIZE
        return None

    # --- its end

    def cut(self) -> None:
        """End the connection: calls that are blocked in `send` or `recv_into` return."""
        self._tls.cut()

    def close(self) -> None:
        """Close the connection."""
        self._tls.close()


def _packed(buffers: Iterable[Buffer]) -> Iterator[list[Buffer]]:
    """Yield the buffers as contents of records, in order: each is as full as it may be, but for the last."""
    content: list[Buffer] = []
    room = MAX_CONTENT
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view):
            piece, view = view[:room], view[room:]
            content.append(piece)
            room -= len(piece)
            if not room:
                yield content
                content, room = [], MAX_CONTENT
    if content:
        yield content
