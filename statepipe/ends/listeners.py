"""Listen at all addresses of a name: `localhost` is 127.0.0.1 and ::1, and clients use either."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from statepipe.ends.names import Target
from statepipe.typed import Any, NamedTuple, Protocol, Self

BACKLOG = 128
"""Connections that can wait to be accepted: QEMU opens up to 17 at once, and a tunnel accepts them one by one."""

PORTS = 20
"""Free ports to try, because a port that is free at one address can be in use at another."""

LULL = 0.1
"""Seconds until the next check for a free descriptor."""


class Origin(NamedTuple):
    """The origin of a connection: its address, and the part of it that identifies one host."""

    address: str
    host: str


def origin(where: object) -> Origin:
    """Return the origin for an address from accept. An IPv6 host can have all addresses of a /64 (RFC 4291, 2.5.4); an
    IPv4 host has one address, also on an IPv6 socket."""
    if not isinstance(where, tuple):
        return Origin("this host", "")
    try:
        address = ipaddress.ip_address(str(where[0]).partition("%")[0])
    except ValueError:  # a socket from systemd can be of any family: vsock has numbers (vsock(7))
        return Origin(str(where[0]), str(where[0]))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return Origin(str(where[0]), str(int(address) >> 64))
    plain = str(getattr(address, "ipv4_mapped", None) or address)
    return Origin(plain, plain)


class ListeningSocket(Protocol):
    """The part of a socket's interface that one listening socket and several have in common."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def fileno(self) -> int: ...

    def settimeout(self, value: float | None, /) -> None: ...

    def setblocking(self, flag: bool, /) -> None: ...

    def accept(self) -> tuple[socket.socket, Any]: ...

    def getsockname(self) -> Any: ...

    def close(self) -> None: ...


def listen_at(targets: Sequence[Target]) -> ListeningSocket:
    """Listen at all targets that this host has, with one port. Raises OSError if it has none, or one is in use."""
    if len(targets) == 1:
        return _at(*targets[0])
    for attempt in range(PORTS):
        try:
            return _Several(targets)
        except OSError as error:
            where = targets[0][1]
            if error.errno != errno.EADDRINUSE or attempt == PORTS - 1 or (not isinstance(where, str) and where[1]):
                raise
    raise AssertionError("the last attempt has raised")


def _at(family: socket.AddressFamily, where: Any) -> socket.socket:
    return socket.create_server(where, family=family, backlog=BACKLOG)


class _Several:
    """Several listening sockets as one. Its descriptor is ready when one of theirs is."""

    def __init__(self, targets: Sequence[Target]) -> None:
        """Raises OSError, and then none of them listens."""
        with ExitStack() as stack:
            self._poll = stack.enter_context(select.epoll())
            self._sockets = {each.fileno(): stack.enter_context(each) for each in _all(targets)}
            for fd, each in self._sockets.items():
                each.setblocking(False)
                self._poll.register(fd, select.EPOLLIN)
            self._stack = stack.pop_all()
        self._timeout: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select and its kind."""
        return self._poll.fileno()

    def settimeout(self, value: float | None) -> None:
        """As a socket's."""
        self._timeout = value

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._timeout = None if flag else 0

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's: raises TimeoutError, and BlockingIOError if it must not wait."""
        for fd, _ in self._poll.poll(self._timeout):
            return self._sockets[fd].accept()
        raise TimeoutError if self._timeout else BlockingIOError

    def getsockname(self) -> Any:
        """Return the first one's address; they all have its port."""
        return next(iter(self._sockets.values())).getsockname()

    def close(self) -> None:
        """Close all of them."""
        self._stack.close()


def _all(targets: Sequence[Target]) -> Iterator[socket.socket]:
    """Yield a socket for each target on this host; with port 0, all get the port of the first."""
    port, absent = 0, OSError(errno.EADDRNOTAVAIL, "")
    for family, where in dict.fromkeys(targets):
        assert not isinstance(where, str)
        try:
            listener = _at(family, (where[0], where[1] or port, *where[2:]))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            absent = error
            continue
        port = listener.getsockname()[1]
        yield listener
    if not port:
        raise absent
