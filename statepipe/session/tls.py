"""TLS 1.3 over a socket: both sides authenticated before a byte of anything else is handed on.

The records pass through memory on their way to the socket, so that they leave in large writes and arrive in large
reads: receiving takes 0.65 CPU seconds a GB, where ssl.SSLSocket takes 0.79 (it reads each record's header by itself);
sending takes 0.5 either way. And it lets the handshake be bounded, in time and in bytes.

A client's handshake ends before the server has judged its certificate (RFC 8446, 2): that it ended proves nothing.
A sender therefore believes only what the receiver says afterwards: its close_notify, sent once the bytes are where
they belong, and authenticated as every record is. A connection that ends without one was cut.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from statepipe.ends.net import Patience, awaited, is_stuck, lost, round_trip, tune
from statepipe.errors import PeerError
from statepipe.session.distrust import refused
from statepipe.stage import Buffer
from statepipe.wakeups import Bell

HANDSHAKE_TIME = 10.0
"""Seconds a handshake may take: two round trips and a few signatures."""

HANDSHAKE_BYTES = 64 << 10
"""Bytes a peer may send before it is authenticated. A certificate of ours has 700."""

WRITE_BATCH = 128 << 10
"""Plain bytes sealed at once, and as many sent: eight records. No size from 64 KiB to 1 MiB was clearly better."""

READ_BATCH = 256 << 10


KEY_BYTES = 256 << 30
"""Plain bytes, each way, that one connection's keys are used for: with AES-GCM no more than 2^24.5 records, 388 GB of
full ones (RFC 8446, 5.5), and OpenSSL neither counts nor lets Python ask for new keys."""


class Handshake:
    """One side of a handshake, fed from a socket that does not block."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str | None, *, server: bool) -> None:
        self.connection = connection
        self.began = time.monotonic()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server, server_hostname=host)
        self._taken = 0
        connection.setblocking(False)

    def begin(self) -> None:
        """Send what the first move is, for a client. Raises OSError."""
        self._step()

    def go_on(self) -> bool:
        """Take what has arrived; whether that ended it. Raises ssl.SSLError, OSError, PeerError where it is no good."""
        try:
            data = self.connection.recv(HANDSHAKE_BYTES - self._taken)  # what comes after it stays where it is
        except BlockingIOError:  # ready it was, and is not (select(2), BUGS)
            return False
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        self._taken += len(data)
        is_done = self._step()
        if not is_done and self._taken == HANDSHAKE_BYTES:
            raise PeerError(f"it sent {HANDSHAKE_BYTES} bytes and was not authenticated by then")
        return is_done

    def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            if self._outgoing.pending:  # an alert, too: it tells the peer why
                self.connection.sendall(self._outgoing.read())
        return True

    def certificate(self) -> bytes:
        """The peer's certificate, in DER."""
        return self._tls.getpeercert(binary_form=True) or b""

    def transport(self, name: str, identity: str, patience: Patience) -> TlsTransport:
        """What to talk through, now that it has ended."""
        tune(self.connection, patience)
        return TlsTransport(self.connection, (self._tls, self._incoming, self._outgoing), name, identity, patience)


class TlsTransport:
    """An authenticated connection. One thread may send while another receives.

    `identity` is who the peer has proved to be; `bytes` counts the plain bytes that came.
    """

    def __init__(
        self,
        connection: socket.socket,
        parts: tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO],
        name: str,
        identity: str,
        patience: Patience,
    ) -> None:
        self.connection, self.name, self.identity, self.bytes = connection, name, identity, 0
        self._sent = 0
        self._tls, self._incoming, self._outgoing = parts
        self._patience = patience
        self._using = threading.Lock()  # OpenSSL's object is for one thread at a time
        self._sending = threading.Lock()  # records leave in the order they were sealed in
        if connection.family != socket.AF_UNIX:  # what is sent is whole: to wait for more cost 40 ms at each turn
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def delay(self) -> float | None:
        """Seconds of a round trip, as the kernel has measured."""
        return round_trip(self.connection)

    @property
    def is_stuck(self) -> bool:
        """Whether the kernel repeats in vain what was sent, or the keys have served their time."""
        return is_stuck(self.connection) or max(self._sent, self.bytes) >= KEY_BYTES

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send all of them, small ones together with what follows. Raises PeerError."""
        with self._sending:
            held = 0
            for piece in _pieces(buffers):
                held += len(piece)
                self._seal(piece)
                if held >= WRITE_BATCH:
                    self._send_sealed()
                    held = 0
            self._send_sealed()

    def _seal(self, piece: memoryview) -> None:
        try:
            with self._using:
                self._tls.write(piece)
            self._sent += len(piece)
        except ssl.SSLError as error:
            raise refused(self.name, error) from error

    def _send_sealed(self) -> None:
        with self._using:
            sealed = self._outgoing.read()
        try:
            self.connection.sendall(sealed)
        except OSError as error:
            raise lost(self.name, error, self.bytes, self._patience) from error

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the buffer with what there is, one byte at least; 0 after the peer's close_notify. Raises PeerError."""
        while (count := self.take(buffer)) is None:
            self.fill()
        return count

    def take(self, buffer: memoryview) -> int | None:
        """As `recv_into` with what has arrived; None if more must be taken from the socket first. Raises PeerError."""
        try:
            count = self._open_into(buffer)
        except ssl.SSLEOFError as error:
            hint = "the other side, or something between, broke it off: what came is not the whole"
            raise PeerError(f"{self.name} ended without a close_notify after {self.bytes} bytes", hint=hint) from error
        except ssl.SSLError as error:
            raise refused(self.name, error) from error
        self.bytes += count or 0
        return count

    def _open_into(self, buffer: memoryview) -> int | None:
        done = 0
        with self._using:
            while done < len(buffer):
                try:
                    count = self._tls.read(len(buffer) - done, buffer[done:])
                except ssl.SSLWantReadError:
                    return done or None
                except ssl.SSLZeroReturnError:  # the close_notify of a peer who has had ours
                    break
                if not count:
                    break
                done += int(count)
        return done

    def fill(self) -> None:
        """Take from the socket what is there, waiting for it. Raises PeerError."""
        try:
            data = self.connection.recv(READ_BATCH)
        except OSError as error:
            raise lost(self.name, error, self.bytes, self._patience) from error
        with self._using:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def cut(self) -> None:
        """End it now: who is blocked in `send` or `recv_into` comes back."""
        with suppress(OSError):  # the peer may have been quicker
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection."""
        self.connection.close()


def _pieces(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    for buffer in buffers:
        view = memoryview(buffer)
        yield from (view[start : start + WRITE_BATCH] for start in range(0, len(view), WRITE_BATCH))


def shake_hands(handshake: Handshake, name: str, within: float = HANDSHAKE_TIME, stop: Bell | None = None) -> None:
    """A client's handshake to its end, within so many seconds. Raises PeerError, Stopped once `stop` rings."""
    deadline = handshake.began + within
    try:
        handshake.begin()
        done = False
        while not done:
            left = deadline - time.monotonic()
            if left <= 0 or not awaited(left, stop, handshake.connection):
                raise PeerError(f"{name} did not finish the handshake within {within:g} s")
            done = handshake.go_on()
    except ssl.SSLError as error:
        raise refused(name, error) from error
    except OSError as error:
        raise lost(name, error, 0, Patience()) from error
