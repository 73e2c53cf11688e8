"""Resolve an address: find the IP addresses of a host's name."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from statepipe.ends.address import UNIX, Address
from statepipe.errors import PeerError
from statepipe.threads import start

Target = tuple[socket.AddressFamily, str | tuple[str, int] | tuple[str, int, int, int]]
"""An address in the form that the kernel takes."""

Place = tuple[Address, Target]
"""An address as the user gave it, and one of its targets."""


class Unanswered(PeerError):
    """No name server answers at present."""

    may_pass = True


def find_targets(address: Address, *, passive: bool) -> list[Target]:
    """Return the targets of an address. An empty host means all addresses of this host, or, to connect, the loopback.

    Raises PeerError; Unanswered if a later attempt may succeed.
    """
    if address.scheme == UNIX:
        return [(socket.AF_UNIX, address.path)]
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:
        raise PeerError(f"cannot find {address}: it is not a valid host name", hint="check the host name") from error
    except socket.gaierror as error:
        what = f"cannot find {address}: {error.strerror}"
        if error.errno == socket.EAI_AGAIN:
            hint = "the name server does not answer: check /etc/resolv.conf, or give an IP address"
            raise Unanswered(what, hint=hint) from error
        raise PeerError(what, hint="check the host name") from error
    return [(family, where) for family, _, _, _, where in found]  # type: ignore[misc]


def find_places(addresses: Sequence[Address]) -> list[Place]:
    """Return the targets of all addresses, in order. Raises PeerError if none of them can be resolved."""
    places: list[Place] = []
    unknown: PeerError | None = None
    for address in addresses:
        try:
            places += [(address, target) for target in find_targets(address, passive=False)]
        except PeerError as error:
            unknown = error
    if not places and unknown is not None:
        raise unknown
    return places


class LookupCache:
    """Keeps the last result of `find`. A further `ask` looks it up again in the background: the name server is often
    unreachable together with the host, and a query can then take longer than the network needs to recover."""

    def __init__(self, find: Callable[[], list[Place]]) -> None:
        self._find = find
        self._found: list[Place] = []
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None

    def ask(self) -> list[Place]:
        """Return the last result; waits only the first time. Raises PeerError if there was never a result."""
        with self._lock:
            if not self._found:
                self._found = self._find()
            elif self._looking is None or not self._looking.is_alive():
                self._looking = threading.Thread(target=self._look, name="names", daemon=True)
                start(self._looking)
            return self._found

    def _look(self) -> None:
        with suppress(PeerError):  # the last result stays
            self._found = self._find()
