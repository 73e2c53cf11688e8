"""TLS 1.3 over a socket: both sides are authenticated before any other byte is passed on.

The records pass through memory on their way to the socket, so that they are sent in large writes and received in large
reads: receiving takes 0.65 CPU seconds a GB, ssl.SSLSocket takes 0.79 (it reads each record's header separately);
sending takes 0.5 in both cases. This also allows a limit for the handshake, in time and in bytes.

A client's handshake ends before the server has checked its certificate (RFC 8446, 2): its end proves nothing. A sender
therefore relies only on the session's verdict, which the receiver sends later.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from statepipe.ends.net import Patience, awaited, is_stuck, lost, round_trip, tune
from statepipe.errors import PeerError
from statepipe.session.distrust import refused
from statepipe.session.transport import Sender, Unframed
from statepipe.stage import Buffer
from statepipe.typed import Any
from statepipe.wakeups import Bell

HANDSHAKE_TIME = 10.0
"""Seconds that a handshake may take: two round trips and a few signatures."""

HANDSHAKE_BYTES = 64 << 10
"""Bytes that a peer may send before it is authenticated. Our certificates have 700."""

WRITE_BATCH = 128 << 10
"""Plain bytes sealed and sent at once: eight records. No size from 64 KiB to 1 MiB was clearly better."""

READ_BATCH = 256 << 10

FINISHED = "tls-unique"
"""What Python calls the client's Finished, in TLS 1.3, too (a channel binding: RFC 5929)."""

RENEWED = 256 << 30
"""Plain bytes in each direction for one connection's keys: AES-GCM allows 2^24.5 records, 388 GB of full ones (RFC
8446, 5.5), and OpenSSL neither counts them nor lets Python request new keys."""


class Handshake:
    """One side of a handshake on a non-blocking socket."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, host: str | None, *, server: bool) -> None:
        self.connection, self.server = connection, server
        self.began = time.monotonic()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server, server_hostname=host)
        self._taken = 0
        connection.setblocking(False)

    def begin(self) -> None:
        """Send the client's first message. Raises OSError."""
        self._step()

    def go_on(self) -> bool:
        """Process what has arrived; return whether the handshake is complete. Raises SSLError, OSError, PeerError."""
        try:
            data = self.connection.recv(HANDSHAKE_BYTES - self._taken)
        except BlockingIOError:  # reported as ready, but is not (select(2), BUGS)
            return False
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        self._taken += len(data)
        is_done = self._step()
        if not is_done and self._taken == HANDSHAKE_BYTES:
            raise PeerError(f"it sent {HANDSHAKE_BYTES} bytes and was not authenticated")
        return is_done

    def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            if self._outgoing.pending:  # also an alert, which tells the peer why
                self.connection.sendall(self._outgoing.read())
        return True

    def certificate(self) -> bytes:
        """Return the peer's certificate in DER."""
        return self._tls.getpeercert(binary_form=True) or b""

    def fields(self) -> Mapping[str, Any] | None:
        """Return what OpenSSL reads in the peer's certificate, as ssl.SSLSocket.getpeercert does. Raises ValueError,
        OSError."""
        return self._tls.getpeercert()

    @property
    def chosen(self) -> str | None:
        """What ALPN chose (RFC 7301); None if one side has offered nothing that the other knows. Raises PeerError."""
        try:
            return self._tls.selected_alpn_protocol()
        except UnicodeDecodeError as error:
            raise PeerError("it chose a protocol that was not offered") from error

    @property
    def finished(self) -> bytes:
        """The client's Finished, which depends on the whole handshake (RFC 8446, 4.4.4): equal on both sides, and only
        there. Raises PeerError if OpenSSL does not tell it."""
        if not (finished := self._tls.get_channel_binding(FINISHED)):
            raise PeerError("OpenSSL does not tell the handshake's Finished", hint="use --records tls")
        return finished

    def transport(self, name: str, identity: str, patience: Patience) -> TlsTransport:
        """Return the connection of a complete handshake."""
        tune(self.connection, patience)
        return TlsTransport(self.connection, (self._tls, self._incoming, self._outgoing), name, identity, patience)


class TlsTransport(Unframed):
    """An authenticated connection. One thread may send while another receives.

    `identity` is who the peer has proved to be; `bytes` counts the plain bytes received.
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
        self.sent = 0
        self.sender = Sender(connection)
        self._tls, self._incoming, self._outgoing = parts
        self.patience = patience
        self._using = threading.Lock()  # OpenSSL's object is for one thread at a time
        self._sending = threading.Lock()  # records must be sent in the order in which they were sealed
        if connection.family != socket.AF_UNIX:  # each send is complete: waiting for more would cost 40 ms
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def delay(self) -> float | None:
        """Seconds of a round trip, as measured by the kernel."""
        return round_trip(self.connection)

    @property
    def is_stuck(self) -> bool:
        """Whether the kernel retransmits without an answer, or the keys were used for RENEWED."""
        return is_stuck(self.connection) or max(self.sent, self.bytes) >= RENEWED

    @property
    def is_behind(self) -> bool:
        """Whether `send_now` has left something."""
        return self.sender.is_behind

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send what is left, and all buffers, small ones together with the next. Raises PeerError."""
        self._seal(buffers, self.sender.send)

    def send_now(self, buffers: Iterable[Buffer]) -> None:
        """Send what the socket takes of the buffers without waiting. Raises PeerError."""
        self._seal(buffers, self.sender.send_now)

    def _seal(self, buffers: Iterable[Buffer], send: Callable[[list[Buffer]], None]) -> None:
        """Seal the buffers, and pass on the records of each WRITE_BATCH bytes. Raises PeerError."""
        with self._sending:
            held = 0
            for buffer in buffers:
                view = memoryview(buffer)
                for start in range(0, len(view), WRITE_BATCH):
                    piece = view[start : start + WRITE_BATCH]
                    try:
                        with self._using:
                            self._tls.write(piece)
                    except ssl.SSLError as error:
                        raise refused(self.name, error) from error
                    self.sent += len(piece)
                    held += len(piece)
                    if held >= WRITE_BATCH:
                        self._send_sealed(send)
                        held = 0
            self._send_sealed(send)

    def _send_sealed(self, send: Callable[[list[Buffer]], None]) -> None:
        with self._using:
            sealed = self._outgoing.read()
        try:
            send([sealed])
        except OSError as error:
            raise lost(self.name, error, self.bytes, self.patience) from error

    def recv_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; return the number, 0 after the peer's close_notify. Raises PeerError."""
        while (count := self._open_into(buffer)) is None:
            try:
                data = self.connection.recv(READ_BATCH)
            except OSError as error:
                raise lost(self.name, error, self.bytes, self.patience) from error
            with self._using:
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
        return count

    def _open_into(self, buffer: memoryview) -> int | None:
        """Decrypt what has arrived; None if the socket must be read first. Raises PeerError."""
        done = 0
        try:
            with self._using:
                while done < len(buffer) and (count := self._tls.read(len(buffer) - done, buffer[done:])):
                    done += int(count)
        except ssl.SSLWantReadError:
            if not done:
                return None
        except ssl.SSLZeroReturnError:  # the close_notify of a peer that has received ours
            pass
        except ssl.SSLEOFError as error:
            raise ended(self.name, self.bytes) from error
        except ssl.SSLError as error:
            raise refused(self.name, error) from error
        self.bytes += done
        return done

    def leave(self) -> bytes:
        """Return the bytes after the last one of TLS that was received: TLS is not used for what follows.

        Raises PeerError if TLS itself holds more.
        """
        with self._using:
            if self._tls.pending():
                raise PeerError(f"{self.name} sent more in TLS's own records than was agreed")
            return self._incoming.read()

    def cut(self) -> None:
        """End the connection: calls that are blocked in `send` or `recv_into` return."""
        with suppress(OSError):  # the peer may have been faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def ended(name: str, count: int) -> PeerError:
    """Return the error for a connection that has ended after so many bytes, without TLS's own end."""
    hint = "the other side, or something between, broke the connection off: the data is not complete"
    return PeerError(f"{name} closed the connection without ending TLS, after {count} bytes", hint=hint)


def shake_hands(handshake: Handshake, name: str, within: float = HANDSHAKE_TIME, stop: Bell | None = None) -> None:
    """Complete a client's handshake within so many seconds. Raises PeerError, Stopped when `stop` rings."""
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
