"""Where an address leads: the addresses that a host's name stands for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from statepipe.ends.address import UNIX, Address
from statepipe.errors import PeerError
from statepipe.threads import start

Target = tuple[socket.AddressFamily, str | tuple[str, int] | tuple[str, int, int, int]]
"""As the kernel takes it."""

Place = tuple[Address, Target]
"""Where an address, as it was given, leads."""


class Unanswered(PeerError):
    """Nobody tells what a name stands for, at the moment."""

    may_pass = True


def find_targets(address: Address, *, passive: bool) -> list[Target]:
    """What the address's name stands for. An empty host is every address of ours, or, to connect to, the loopback.

    Raises PeerError; Unanswered where it may be known a moment later.
    """
    if address.scheme == UNIX:
        return [(socket.AF_UNIX, address.path)]
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags)
    except (socket.gaierror, UnicodeError) as error:
        raise _unknown(address, error) from error
    return [(family, where) for family, _, _, _, where in found]  # type: ignore[misc]


def _unknown(address: Address, error: socket.gaierror | UnicodeError) -> PeerError:
    if isinstance(error, UnicodeError):
        return PeerError(f"cannot find {address}: it is no host's name", hint="look at the host's name")
    if error.errno == socket.EAI_AGAIN:
        hint = "whoever tells names does not answer: see /etc/resolv.conf; an address in the name's place needs nobody"
        return Unanswered(f"cannot find {address}: {error.strerror}", hint=hint)
    return PeerError(f"cannot find {address}: {error.strerror}", hint="look at the host's name")


def find_places(addresses: Sequence[Address]) -> list[Place]:
    """What the addresses stand for, in their order. Raises PeerError where that is known of none of them."""
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


class Known:
    """What `find` found last. To ask again has it look again, but in the background: whoever serves names is often out
    of reach together with the host, and a question then takes longer than the network to come back."""

    def __init__(self, find: Callable[[], list[Place]]) -> None:
        self._find = find
        self._found: list[Place] = []
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None

    def ask(self) -> list[Place]:
        """At once, but for the first time. Raises PeerError where nothing was ever found."""
        with self._lock:
            if not self._found:
                self._found = self._find()
            elif self._looking is None or not self._looking.is_alive():
                self._looking = threading.Thread(target=self._look, name="names", daemon=True)
                start(self._looking)
            return self._found

    def _look(self) -> None:
        with suppress(PeerError):  # what was known is all that there is
            self._found = self._find()
