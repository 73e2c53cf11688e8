"""Listening at all addresses that a name stands for: `localhost` is 127.0.0.1 and ::1, and people dial either."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

from statepipe.ends.names import Target

BACKLOG = 128
"""Connections that may wait to be accepted: QEMU opens up to 17 at once, which a tunnel takes one by one."""

PORTS = 20
"""Free ports that are tried, where one address has given us one that is taken at another."""

LULL = 0.1
"""Seconds until it is looked again whether there is a descriptor to spare."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where somebody is from: the address, and what of it is surely one host's."""

    address: str
    host: str


def origin(where: object) -> Origin:
    """From what accept gives. One host of IPv6 may have all the addresses of a /64 (RFC 4291, 2.5.4); one of IPv4 has
    its own address, also at a socket of IPv6."""
    if not isinstance(where, tuple):
        return Origin("this host", "")
    try:
        address = ipaddress.ip_address(str(where[0]).partition("%")[0])
    except ValueError:  # a socket handed over may be of any family: vsock has numbers (vsock(7))
        return Origin(str(where[0]), str(where[0]))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return Origin(str(where[0]), str(int(address) >> 64))
    plain = str(getattr(address, "ipv4_mapped", None) or address)
    return Origin(plain, plain)


class ListeningSocket(Protocol):
    """What is used of a listening socket, and all that several of them have in common."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def fileno(self) -> int: ...

    def settimeout(self, value: float | None, /) -> None: ...

    def setblocking(self, flag: bool, /) -> None: ...

    def accept(self) -> tuple[socket.socket, Any]: ...

    def getsockname(self) -> Any: ...

    def close(self) -> None: ...


def listen_at(targets: Sequence[Target]) -> ListeningSocket:
    """At all of them that are addresses of this host, with one port. Raises OSError where none is, or one is taken."""
    if len(targets) == 1:
        return _at(*targets[0])
    for attempt in range(PORTS):
        try:
            return _Several(targets)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _port(targets[0]) or attempt == PORTS - 1:
                raise
    raise AssertionError("the last attempt has raised")


def _at(family: socket.AddressFamily, where: Any) -> socket.socket:
    return socket.create_server(where, family=family, backlog=BACKLOG)


def _port(target: Target) -> int:
    return 0 if isinstance(target[1], str) else target[1][1]


class _Several:
    """Several as one. Its descriptor is ready when one of theirs is."""

    def __init__(self, targets: Sequence[Target]) -> None:
        """Raises OSError, and nothing listens then."""
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
        """As a socket's: raises TimeoutError, and BlockingIOError where it is not to wait."""
        for fd, _ in self._poll.poll(self._timeout):
            return self._sockets[fd].accept()
        raise TimeoutError if self._timeout else BlockingIOError

    def getsockname(self) -> Any:
        """Of the first; they all have its port."""
        return next(iter(self._sockets.values())).getsockname()

    def close(self) -> None:
        """All of them."""
        self._stack.close()


def _all(targets: Sequence[Target]) -> Iterator[socket.socket]:
    """A socket for each target that is this host's; where any port will do, all have the first one's."""
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
