"""A connection as a session needs it, and the simplest one: a connected socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from statepipe.ends.net import is_stuck, round_trip
from statepipe.errors import PeerError
from statepipe.session.protocol.frames import Frame, FrameReader, Greeting
from statepipe.stage import Buffer
from statepipe.typed import Protocol


class Transport(Protocol):
    """An authenticated connection. One thread sends at a time, another receives, any thread may `cut` it.

    `identity` is who the peer has proved to be; `name` is for messages; `delay` is the round trip in seconds, if it is
    known; `is_stuck` says that a new connection should be tried. `send` and `recv_into` raise OSError or PeerError if
    the connection has failed.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def delay(self) -> float | None: ...

    @property
    def is_stuck(self) -> bool: ...

    @property
    def is_behind(self) -> bool:
        """Whether `send_now` has left something for the next `send`."""

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send what is left, and all buffers."""

    def send_now(self, buffers: Iterable[Buffer]) -> None:
        """Send what the connection takes of the buffers without waiting; the rest is left."""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; return their number, 0 at the end."""

    def items(self, reader: FrameReader) -> Iterator[Frame | Greeting | None]:
        """Wait for bytes until the end; yield what they complete, and None for a part. Raises Violation, too."""

    def cut(self) -> None:
        """End the connection: calls that are blocked in it return."""

    def close(self) -> None:
        """Close the connection, once nobody uses it any more."""


class Unframed:
    """The part of a transport whose bytes arrive without bounds: they are received into the reader's own memory."""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; return their number, 0 at the end."""
        raise NotImplementedError

    def items(self, reader: FrameReader) -> Iterator[Frame | Greeting | None]:
        """Wait for bytes until the end; yield what they complete, and None for a part. Raises Violation, too."""
        while count := self.recv_into(reader.room()):
            yield reader.filled(count)


class SocketTransport(Unframed):
    """A connected socket. The caller knows who is at the other end."""

    def __init__(self, connection: socket.socket, name: str, identity: str) -> None:
        self.connection, self.name, self.identity = connection, name, identity
        self._sender = Sender(connection)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def delay(self) -> float | None:
        """The kernel's measurement; zero within a host."""
        return 0.0 if self.connection.family == socket.AF_UNIX else round_trip(self.connection)

    @property
    def is_stuck(self) -> bool:
        """Whether the kernel retransmits without an answer."""
        return is_stuck(self.connection)

    @property
    def is_behind(self) -> bool:
        """Whether `send_now` has left something."""
        return self._sender.is_behind

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send what is left, and all buffers. Raises OSError."""
        self._sender.send(buffers)

    def send_now(self, buffers: Iterable[Buffer]) -> None:
        """Send what the socket takes of the buffers without waiting. Raises OSError."""
        self._sender.send_now(buffers)

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; return their number, 0 at the end. Raises OSError."""
        return self.connection.recv_into(buffer)

    def cut(self) -> None:
        """End the connection."""
        with suppress(OSError):  # the other side may have been faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.connection.close()


IOV_MAX = 1024
"""Buffers that sendmsg and writev take at most (limits.h)."""


def send_all(send: Callable[[list[memoryview]], int], buffers: Iterable[Buffer]) -> None:
    """Call `send` until it has sent all buffers; it returns the number of bytes that it sent."""
    left = [memoryview(buffer) for buffer in buffers]
    while left:
        left = after(left, send(left[:IOV_MAX]))


def after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return what follows the first `count` bytes of the buffers."""
    for place, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[place + 1 :]]
        count -= len(buffer)
    return []


class Sender:
    """The sending side of a connected socket, which keeps what it could not send at once. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left: list[memoryview] = []

    @property
    def is_behind(self) -> bool:
        """Whether `send_now` has left something."""
        return bool(self._left)

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send what is left, and all buffers. Raises OSError."""
        left, self._left = self._left, []
        send_all(self._connection.sendmsg, [*left, *buffers])

    def send_now(self, buffers: Iterable[Buffer]) -> None:
        """Send what the socket takes without waiting, in order; the rest is left. Raises OSError."""
        left = [*self._left, *(memoryview(buffer) for buffer in buffers)]
        try:
            while left:
                left = after(left, self._connection.sendmsg(left[:IOV_MAX], (), socket.MSG_DONTWAIT))
        except BlockingIOError:  # it is full
            pass
        self._left = left


def drain(transport: Transport) -> None:
    """Read and drop everything, until the peer has read our last frame and hung up, or the connection is cut."""
    waste = memoryview(bytearray(1 << 16))
    with suppress(OSError, PeerError):  # the connection has ended
        while transport.recv_into(waste):
            continue
