"""What a session needs of a connection, and the plainest one: a connected socket."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from statepipe.ends.net import is_stuck, round_trip
from statepipe.errors import PeerError
from statepipe.stage import Buffer


class Transport(Protocol):
    """An authenticated connection. One thread sends, another receives, any may `cut`.

    `identity` is who the peer has proved to be, `name` is for messages, `delay` the round trip in seconds, if it can be
    told, `is_stuck` whether a fresh connection should be tried beside it. Both ways raise OSError or PeerError for a
    connection that is no more.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def delay(self) -> float | None: ...

    @property
    def is_stuck(self) -> bool: ...

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send all of them."""

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; their number, 0 at the end."""

    def cut(self) -> None:
        """End it now: who is blocked in the other two comes back."""

    def close(self) -> None:
        """Let go of it, once nobody uses it any more."""


class SocketTransport:
    """A connected socket, of which the caller knows who is at the other end."""

    def __init__(self, connection: socket.socket, name: str, identity: str) -> None:
        self.connection, self.name, self.identity = connection, name, identity
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def delay(self) -> float | None:
        """What the kernel has measured. Within a host there is none."""
        return 0.0 if self.connection.family == socket.AF_UNIX else round_trip(self.connection)

    @property
    def is_stuck(self) -> bool:
        """What the kernel repeats in vain."""
        return is_stuck(self.connection)

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send all of them. Raises OSError."""
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            count = self.connection.sendmsg(left[:_IOV_MAX])
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left:
                left[0] = left[0][count:]

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for bytes; their number, 0 at the end. Raises OSError."""
        return self.connection.recv_into(buffer)

    def cut(self) -> None:
        """End it now."""
        with suppress(OSError):  # the other side may have been quicker
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket."""
        self.connection.close()


_IOV_MAX = 1024
"""sendmsg takes no more (limits.h)."""


def drain(transport: Transport) -> None:
    """Read on without listening, until the peer has read what we said last and hung up, or it is cut."""
    waste = memoryview(bytearray(1 << 16))
    with suppress(OSError, PeerError):  # it is no use any more
        while transport.recv_into(waste):
            continue
