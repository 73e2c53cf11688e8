"""A stream over TLS: where it enters, where it leaves, and the gate that lets in only who has proved who they are.

The stream ends with a close_notify, and the receiver answers with its own once the bytes are where they belong: the
sender's success. Everything else, a FIN included, is a failure on both sides.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from statepipe.ends.net import Patience, lost
from statepipe.ends.tls import HANDSHAKE_TIME, READ_BATCH, Handshake, TlsTransport, refused, shake_hands
from statepipe.ends.trust import Trust
from statepipe.errors import PeerError
from statepipe.stage import FLUSH, Buffer, Cancelled

AT_THE_GATE = 128
"""Handshakes at a time. When one more comes, the oldest must go: a true peer needs some milliseconds, while those
who only hold a place hold it no longer than it takes others to come. 128 half done take 6.6 MB."""


class TlsSource:
    """Buffers from a connection until the peer's close_notify. With `idle` (milliseconds), flush marks meanwhile."""

    def __init__(self, transport: TlsTransport, patience: Patience, idle: int | None = None) -> None:
        self.bytes = 0
        self._transport, self._patience = transport, patience
        silence = None if patience.silence is None else max(int(patience.silence * 1000), 1)
        self._idle = idle if silence is None else min(idle or silence, silence)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(transport.connection, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._last = time.monotonic()

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        buffer = memoryview(bytearray(READ_BATCH))
        while (count := self._transport.take(buffer)) is None:
            if not self._wait():
                return FLUSH
            self._transport.fill()
        if not count:
            raise StopIteration
        self.bytes += count
        return buffer[:count]

    def _wait(self) -> bool:
        """Until something arrives; False when idle."""
        ready = self._poll.poll(self._idle)
        if any(fd == self._wake for fd, _ in ready):
            raise Cancelled
        silence = self._patience.silence
        if not ready and silence is not None and time.monotonic() - self._last >= silence:
            raise lost(self._transport.name, TimeoutError(), self.bytes, self._patience)
        if ready:
            self._last = time.monotonic()
        return bool(ready)

    def cancel(self) -> None:
        """Wake a blocked read, from any thread."""
        os.eventfd_write(self._wake, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._wake)


class TlsSink:
    """Sends buffers. `commit` says that they were all, and waits with `until_closed` for the peer's close_notify."""

    def __init__(self, transport: TlsTransport, patience: Patience, until_closed: Callable[[], None]) -> None:
        self.bytes = 0
        self._transport, self._patience, self._until_closed = transport, patience, until_closed
        self._committed = False

    def __enter__(self) -> TlsSink:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._committed:
            self._transport.abort()

    def write(self, buffer: Buffer) -> None:
        """Send it all. Raises PeerError."""
        self._transport.send([buffer])
        self.bytes += len(buffer)

    def commit(self) -> None:
        """Nothing more comes; return once the peer has said the same. Raises PeerError."""
        self._transport.finish()
        try:
            self._until_closed()
        except TimeoutError as error:
            raise lost(self._transport.name, error, self.bytes, self._patience) from error
        self._committed = True


def greet(connection: socket.socket, trust: Trust, host: str, patience: Patience) -> TlsTransport:
    """A client's handshake with `host`. That the server believes us too, only its answer shows. Raises PeerError."""
    name = f"tls://{host}"
    handshake = Handshake(connection, trust.context, host if trust.check_host else None, server=False)
    shake_hands(handshake, name)
    return handshake.transport(name, trust.identify(handshake.certificate()), patience)


class Gate:
    """Handshakes with all who come, many at a time; `admit` gives the next who has proved who they are.

    `turned_away` is told of the others, by address and reason.
    """

    def __init__(
        self,
        listener: socket.socket,
        trust: Trust,
        patience: Patience,
        turned_away: Callable[[str, PeerError], object],
    ) -> None:
        listener.setblocking(False)
        self._listener, self._trust, self._patience, self._turned_away = listener, trust, patience, turned_away
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._shaking: dict[Handshake, str] = {}  # oldest first, and where each is from

    def admit(self) -> TlsTransport:
        """Wait for the next. Raises PeerError where none comes within the patience there is."""
        if (transport := self.admit_within(self._patience.silence)) is None:
            raise PeerError(f"nobody who may came within {self._patience.silence:g} s")
        return transport

    def admit_within(self, seconds: float | None) -> TlsTransport | None:
        """Wait so long for the next; None if nobody came."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            for key, _ in self._selector.select(_at_most_a_second(left) if self._shaking else left):
                if key.data is None:
                    self._accept()
                elif key.data in self._shaking and (transport := self._go_on(key.data)):
                    return transport
            self._expire()
            if left == 0:
                return None

    def _accept(self) -> None:
        try:
            connection, where = self._listener.accept()
        except OSError:  # it left again, or we have no descriptor to spare
            self._expire(at_most=AT_THE_GATE // 2)
            return
        handshake = Handshake(connection, self._trust.context, None, server=True)
        self._shaking[handshake] = str(where[0]) if isinstance(where, tuple) else "this host"
        self._selector.register(connection, selectors.EVENT_READ, handshake)
        self._expire(at_most=AT_THE_GATE)

    def _go_on(self, handshake: Handshake) -> TlsTransport | None:
        where = self._shaking[handshake]
        try:
            if not handshake.go_on():
                return None
            identity = self._trust.identify(handshake.certificate())
            self._forget(handshake)
            return handshake.transport(identity, identity, self._patience)
        except ssl.SSLError as error:
            self._turn_away(handshake, where, refused(where, error))
        except OSError as error:
            self._turn_away(handshake, where, lost(where, error, 0, self._patience))
        except PeerError as error:
            self._turn_away(handshake, where, error)
        return None

    def _turn_away(self, handshake: Handshake, where: str, error: PeerError) -> None:
        if handshake in self._shaking:
            self._forget(handshake)
        handshake.connection.close()
        self._turned_away(where, error)

    def _forget(self, handshake: Handshake) -> None:
        self._selector.unregister(handshake.connection)
        del self._shaking[handshake]

    def _expire(self, at_most: int = AT_THE_GATE) -> None:
        """Those who take too long, and the oldest where there are too many."""
        too_long = time.monotonic() - HANDSHAKE_TIME
        for handshake in list(self._shaking):
            if handshake.began > too_long and len(self._shaking) <= at_most:
                return
            self._forget(handshake)
            handshake.connection.close()

    def close(self) -> None:
        """Send away all who are still at it."""
        self._expire(at_most=0)
        self._selector.close()


def _at_most_a_second(left: float | None) -> float:
    """While hands are shaken, those who take too long are looked for."""
    return 1.0 if left is None else min(left, 1.0)


@contextmanager
def gate(
    listener: socket.socket, trust: Trust, patience: Patience, turned_away: Callable[[str, PeerError], object]
) -> Iterator[Gate]:
    """A Gate, closed on leaving."""
    it = Gate(listener, trust, patience, turned_away)
    try:
        yield it
    finally:
        it.close()
