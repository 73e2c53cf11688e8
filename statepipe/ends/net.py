"""The plain ends: a stream over TCP or a unix socket, byte for byte as nc, socat and QEMU's own tcp: have it.

Two ways to end are told apart. A FIN, which a half-close sends, is the end of the bytes; a reset is a failure, and
we send one ourselves when we give up, so that the other side does not take what it has for the whole. After its
FIN the sender waits until the receiver closes too: one that closed with bytes unread answers with a reset, and
a sender that had left would never hear of it. More than that plain TCP cannot say (stages/prove.py).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from select import POLLIN

from statepipe.ends.fd import FdSource
from statepipe.errors import PeerError
from statepipe.stage import Buffer
from statepipe.wakeups import Bell, polled

KEEP_IDLE, KEEP_INTERVAL, KEEP_COUNT = 15, 5, 4
"""A silent connection is asked after 15 s whether the other host is still there, and given up 20 s later."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `silence` bounds every wait for the peer (None: for ever), `retry` how long to go on connecting (None
    where no option says it)."""

    silence: float | None = None
    retry: float | None = None


class Stopped(PeerError):
    """We have ended the wait ourselves."""

    def __init__(self) -> None:
        super().__init__("it was stopped")


def awaited(seconds: float, stop: Bell | None, connection: socket.socket | None = None, events: int = POLLIN) -> bool:
    """Whether the connection was ready for one of the events within so long. Raises Stopped once `stop` rings."""
    poll = polled() if stop is None else polled(stop.fd)
    if connection is not None:
        poll.register(connection, events)
    ready = poll.poll(seconds * 1000)
    if stop is not None and any(fd == stop.fd for fd, _ in ready):
        raise Stopped
    return bool(ready)


def tune(connection: socket.socket, patience: Patience) -> None:
    """Have the kernel notice a dead peer and bound its own waits, in sends, reads and splices alike."""
    connection.setblocking(True)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_INTERVAL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_COUNT)
    seconds, part = divmod(patience.silence or 0, 1)
    span = struct.pack("ll", int(seconds), int(part * 1e6))  # struct timeval; zero is for ever
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


def round_trip(connection: socket.socket) -> float | None:
    """Seconds there and back as the kernel has them (tcpi_rtt of tcp(7)); None of what is no TCP."""
    if connection.family == socket.AF_UNIX:
        return None
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
    return float(struct.unpack_from("=I", info, 68)[0]) / 1e6


STUCK = 2
"""Repeats, or probes of a full window, in a row that nobody answered (tcpi_retransmits, tcpi_probes of tcp(7)): 0.6 s
on a short way. The pauses double, so that the kernel's next try may be seconds after the network is back, where a
fresh connection needs none."""


def is_stuck(connection: socket.socket) -> bool:
    """Whether what was sent is repeated and not answered, not even by the other host's kernel. A reader that takes
    nothing is none of that: its kernel answers."""
    if connection.family == socket.AF_UNIX:
        return False
    with suppress(OSError):  # it has just been closed
        return max(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[2:4]) >= STUCK
    return False


GREETED = 16 << 10
"""Bytes that a handshake and a greeting may take: a few packets, none of them long."""


def is_fruitless(connection: socket.socket) -> bool:
    """Whether it is stuck and never got more through than a greeting (tcpi_bytes_acked): as where long packets are
    lost without a word, since something on the way lets neither them pass nor the ICMP that would say so."""
    with suppress(OSError):  # it has just been closed
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return is_stuck(connection) and int(struct.unpack_from("=Q", info, 120)[0]) < GREETED
    return False


def is_network(error: OSError) -> bool:
    """Whether a connection failed, and not a file or a pipe at the other end of the same call."""
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
    """What an OSError on a connection means; `done` bytes had passed."""
    if isinstance(error, BlockingIOError | TimeoutError) and error.errno != errno.ETIMEDOUT:
        span = f" for {patience.silence:g} s" if patience.silence is not None else ""
        return PeerError(f"{name} has not moved{span} (after {done} bytes)", hint=_STALLED)
    if isinstance(error, ConnectionResetError | BrokenPipeError) or error.errno == errno.ENOTCONN:
        return PeerError(f"{name} broke the connection off after {done} bytes", hint=_BROKEN)
    return PeerError(f"the connection to {name} failed after {done} bytes: {os.strerror(error.errno or 0)}", hint=_DEAD)


_BROKEN = "it failed, was stopped, or did not want the rest: look at what it said over there"
_STALLED = "it, or what it writes to, stands still; a larger --timeout waits longer"
_DEAD = "the other host or the network between is down"


def _lost(name: str, error: OSError, done: int, patience: Patience) -> PeerError:
    """The same of a plain connection, where somebody who sends nothing may be taken for a probe (ends/firstbyte.py)."""
    told = lost(name, error, done, patience)
    if not done and isinstance(error, ConnectionResetError):
        told.hint = "nothing was sent, and a receiver takes that for nobody unless it has --allow-empty"
    return told


class SocketSource(FdSource):
    """Buffers from a connection until the peer's FIN. Raises PeerError for a reset, a dead peer, and silence.

    `passed` gives the bytes that an error tells of: those that came, unless the stream is what goes the other way.
    """

    def __init__(self, connection: socket.socket, name: str, patience: Patience, idle: int | None = None) -> None:
        silence = None if patience.silence is None else max(int(patience.silence * 1000), 1)
        super().__init__(connection.fileno(), name, idle if silence is None else min(idle or silence, silence))
        self._patience, self._silence = patience, silence
        self._last = time.monotonic()
        self.passed: Callable[[], int] = lambda: self.bytes

    def lost(self, error: OSError) -> PeerError:
        """What an error of the connection means."""
        return _lost(self.name, error, self.passed(), self._patience)

    def wait(self) -> None:
        """As FdSource's, within the patience there is. Raises PeerError."""
        if not self._poll.poll(self._silence):
            raise self.lost(TimeoutError())
        super().wait()

    def _read(self) -> bytes | None:
        try:
            buffer = super()._read()
        except OSError as error:
            raise self.lost(error) from error
        if buffer is not None:
            self._last = time.monotonic()
        elif self._patience.silence is not None and time.monotonic() - self._last >= self._patience.silence:
            raise self.lost(TimeoutError())
        return buffer


class SocketSink:
    """Sends buffers to a connection. `commit` half-closes it and waits until the peer has closed its side too.

    `until_closed` waits for that where another reads what the peer sends; raises OSError as a read would.
    Leaving without `commit` resets the connection, so that the peer takes nothing for complete.
    """

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        patience: Patience,
        until_closed: Callable[[], None] | None = None,
    ) -> None:
        self.connection, self.name, self.bytes = connection, name, 0
        self._patience = patience
        self._until_closed = until_closed or self._drain
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

    def lost(self, error: OSError) -> PeerError:
        """What an error of the connection means."""
        return _lost(self.name, error, self.bytes, self._patience)

    def write(self, buffer: Buffer) -> None:
        """Send it all. Raises PeerError."""
        left = memoryview(buffer)
        try:
            while left:
                count = self.connection.send(left)
                self.bytes += count
                left = left[count:]
        except OSError as error:
            raise self.lost(error) from error

    def commit(self) -> None:
        """Send the FIN, wait for the peer's. Raises PeerError."""
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self._until_closed()
        except OSError as error:
            raise self.lost(error) from error
        self._committed = True

    def _drain(self) -> None:
        while self.connection.recv(1 << 16):
            continue


def reset(connection: socket.socket) -> None:
    """Close it with a reset: no peer takes that for the end of a stream. (A unix socket knows no such thing.)"""
    with suppress(OSError):  # it may be gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
