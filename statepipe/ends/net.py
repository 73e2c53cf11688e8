"""The plain ends: a bare stream over TCP or a unix socket, as nc, socat and QEMU's tcp: use it.

A connection can end in two ways. A FIN, which a half-close sends, is the end of the bytes. A reset is a failure; we
send one when we give up, so that the other side does not take the bytes so far for the whole. After its FIN the sender
waits until the receiver closes too, because a receiver that closes with unread bytes answers with a reset, which the
sender must see. Plain TCP can report no more than that (stages/prove.py).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from select import POLLIN

from statepipe.ends.fd import FdSource
from statepipe.errors import PeerError
from statepipe.stage import Buffer
from statepipe.typed import NamedTuple
from statepipe.wakeups import Bell, polled

KEEP_IDLE, KEEP_INTERVAL, KEEP_COUNT = 15, 5, 4
"""TCP probes a silent connection after 15 s, and gives it up 20 s later."""


class Patience(NamedTuple):
    """Limits in seconds. `silence` limits every wait for the peer (None: no limit), `retry` the time for attempts to
    connect (None if no option gave it)."""

    silence: float | None = None
    retry: float | None = None


class Stopped(PeerError):
    """The wait was ended on our side."""

    def __init__(self) -> None:
        super().__init__("it was stopped")


def awaited(seconds: float, stop: Bell | None, connection: socket.socket | None = None, events: int = POLLIN) -> bool:
    """Return whether the connection was ready for one of the events in time. Raises Stopped when `stop` rings."""
    poll = polled() if stop is None else polled(stop.fd)
    if connection is not None:
        poll.register(connection, events)
    ready = poll.poll(seconds * 1000)
    if stop is not None and any(fd == stop.fd for fd, _ in ready):
        raise Stopped
    return bool(ready)


def tune(connection: socket.socket, patience: Patience) -> None:
    """Make the kernel detect a dead peer, and limit its waits in sends, reads and splices."""
    connection.setblocking(True)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_INTERVAL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_COUNT)
    seconds, part = divmod(patience.silence or 0, 1)
    span = struct.pack("ll", int(seconds), int(part * 1e6))  # struct timeval; zero means no limit
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


def round_trip(connection: socket.socket) -> float | None:
    """Return the round-trip time in seconds from the kernel (tcpi_rtt of tcp(7)); None if it is not TCP."""
    if connection.family == socket.AF_UNIX:
        return None
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
    return float(struct.unpack_from("=I", info, 68)[0]) / 1e6


STUCK = 2
"""Unanswered retransmissions or window probes in a row (tcpi_retransmits, tcpi_probes of tcp(7)): 0.6 s on a short
path. Their intervals double, so the kernel's next attempt can be seconds after the network has recovered, while a new
connection works at once."""


def is_stuck(connection: socket.socket) -> bool:
    """Return whether the kernel retransmits and the other host's kernel does not answer. A reader that does not read is
    not stuck: its kernel answers."""
    if connection.family == socket.AF_UNIX:
        return False
    with suppress(OSError):  # it was just closed
        return max(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[2:4]) >= STUCK
    return False


GREETED = 16 << 10
"""Bytes of a handshake and a greeting at most: a few packets, none of them long."""


def is_fruitless(connection: socket.socket) -> bool:
    """Return whether it is stuck and no more than a greeting was acknowledged (tcpi_bytes_acked). This happens where
    long packets are lost silently, because something on the path drops them and the ICMP that would report it."""
    with suppress(OSError):  # it was just closed
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return is_stuck(connection) and int(struct.unpack_from("=Q", info, 120)[0]) < GREETED
    return False


def is_network(error: OSError) -> bool:
    """Return whether the error is about a connection, and not about a file or a pipe in the same call."""
    return error.errno in _NETWORK or isinstance(error, BlockingIOError)


_NETWORK = {
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.ENETDOWN,
    errno.ENOTCONN,
    errno.ECONNABORTED,
}


def lost(name: str, error: OSError, done: int, patience: Patience) -> PeerError:
    """Return the error for an OSError on a connection after `done` bytes."""
    if isinstance(error, BlockingIOError | TimeoutError) and error.errno != errno.ETIMEDOUT:
        span = f" for {patience.silence:g} s" if patience.silence is not None else ""
        return PeerError(f"{name} has not moved{span} (after {done} bytes)", hint=_STALLED)
    if isinstance(error, ConnectionResetError | BrokenPipeError) or error.errno == errno.ENOTCONN:
        return PeerError(f"{name} broke the connection off after {done} bytes", hint=_BROKEN)
    return PeerError(f"the connection to {name} failed after {done} bytes: {os.strerror(error.errno or 0)}", hint=_DEAD)


_BROKEN = "it failed, was stopped, or did not want the rest: read its messages on the other host"
_STALLED = "it, or the program that it writes to, has stopped; --timeout sets a longer wait"
_DEAD = "the other host or the network between is down"


def _lost(name: str, error: OSError, done: int, patience: Patience) -> PeerError:
    """As `lost`, for a plain connection: a receiver takes a silent sender for a probe (ends/firstbyte.py)."""
    told = lost(name, error, done, patience)
    if not done and isinstance(error, ConnectionResetError):
        told.hint = "nothing was sent, and a receiver ignores such a connection unless it has --allow-empty"
    return told


class SocketSource(FdSource):
    """Buffers from a connection until the peer's FIN. Raises PeerError for a reset, a dead peer, and silence.

    `passed` returns the bytes that an error reports: those received, unless the stream goes the other way.
    """

    def __init__(self, connection: socket.socket, name: str, patience: Patience, idle: int | None = None) -> None:
        silence = None if patience.silence is None else max(int(patience.silence * 1000), 1)
        super().__init__(connection.fileno(), name, idle if silence is None else min(idle or silence, silence))
        self._patience, self._silence = patience, silence
        self._last = time.monotonic()
        self.passed: Callable[[], int] = lambda: self.bytes

    def lost(self, error: OSError) -> PeerError:
        """Return the error for an OSError on the connection."""
        return _lost(self.name, error, self.passed(), self._patience)

    def wait(self) -> None:
        """As in FdSource, but limited by the patience. Raises PeerError."""
        if not self._await(self._silence):
            raise self.lost(TimeoutError())

    def _read(self) -> bytes | None:
        buffer = super()._read()
        if buffer is not None:
            self._last = time.monotonic()
        elif self._patience.silence is not None and time.monotonic() - self._last >= self._patience.silence:
            raise self.lost(TimeoutError())
        return buffer


class SocketSink:
    """Sends buffers to a connection. `commit` half-closes it and waits until the peer has closed its side too.

    Set `until_closed` to do that wait if other code reads what the peer sends; it raises OSError as a read would.
    An exit without `commit` resets the connection, so that the peer does not take the stream for complete.
    """

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        patience: Patience,
    ) -> None:
        self.connection, self.name, self.bytes = connection, name, 0
        self._patience = patience
        self.until_closed: Callable[[], object] = self._drain
        self._committed = False

    def __enter__(self) -> SocketSink:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._committed:
            reset(self.connection)

    @property
    def fd(self) -> int:
        """The connection's descriptor."""
        return self.connection.fileno()

    @property
    def silence(self) -> float | None:
        """Seconds that a send may wait; None: no limit."""
        return self._patience.silence

    def lost(self, error: OSError) -> PeerError:
        """Return the error for an OSError on the connection."""
        return _lost(self.name, error, self.bytes, self._patience)

    def write(self, buffer: Buffer) -> None:
        """Send the whole buffer. Raises PeerError."""
        left = memoryview(buffer)
        try:
            while left:
                count = self.connection.send(left)
                self.bytes += count
                left = left[count:]
        except OSError as error:
            raise self.lost(error) from error

    def wrote(self, count: int) -> None:
        """Count bytes that a caller wrote to `fd` by other means."""
        self.bytes += count

    def commit(self) -> None:
        """Send the FIN and wait for the peer's. Raises PeerError."""
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.until_closed()
        except OSError as error:
            raise self.lost(error) from error
        self._committed = True

    def _drain(self) -> None:
        while self.connection.recv(1 << 16):
            continue


def reset(connection: socket.socket) -> None:
    """Close with a reset, which no peer takes for the end of a stream. (A unix socket has no reset.)"""
    with suppress(OSError):  # it may be closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
