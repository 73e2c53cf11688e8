"""Connect to an address, or listen at one. Plain TCP beyond this host is refused here."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from statepipe.ends.address import TCP, UNIX, Address
from statepipe.ends.listeners import BACKLOG, ListeningSocket, listen_at
from statepipe.ends.named import Named
from statepipe.ends.names import Place, Target, Unanswered, find_places, find_targets
from statepipe.ends.net import Patience, awaited, tune
from statepipe.ends.race import Race
from statepipe.ends.unreachable import Unreachable, unreachable
from statepipe.errors import PeerError, UsageError
from statepipe.wakeups import Bell

CONNECT_TIMEOUT = 20.0
"""Seconds to wait for one address to answer: the kernel's own SYN retries take two minutes."""

RETRY_PAUSE = 0.25
"""Seconds between attempts if the first found no listener: someone may be starting the receiver by hand."""

SHORT = 1024
"""Bytes of a segment that passes where longer ones are silently lost. This is the kernel's tcp_base_mss, which it uses
by itself only with net.ipv4.tcp_mtu_probing. IPv6 guarantees packets of 1280 (RFC 8200, 5)."""


def connect(
    address: Address, patience: Patience, bind: str | None, *, insecure: bool, stop: Bell | None = None
) -> socket.socket:
    """Connect to `address`. Raises PeerError, its subclass Stopped when `stop` rings, and UsageError if it would need
    `insecure`."""
    return connect_first(partial(find_places, [address]), patience, bind, insecure=insecure, stop=stop)


def connect_first(
    find: Callable[[], Sequence[Place]],
    patience: Patience,
    bind: str | None,
    *,
    insecure: bool,
    stop: Bell | None = None,
) -> socket.socket:
    """Connect to the first of the places that answers; they are looked up again for each round.

    Raises as `connect`, and Stopped when `stop` rings.
    """
    deadline = time.monotonic() + (patience.retry or 0)
    within = min(CONNECT_TIMEOUT, patience.silence or CONNECT_TIMEOUT)
    while True:
        last = time.monotonic() >= deadline
        try:
            places = find()
            for address, target in places:
                _refuse_open_country(address, [target], insecure=insecure)
            return _raced(places, Race(bind), within, patience, stop, again=False)
        except (Unanswered, Unreachable) as error:
            if last or not error.may_pass:
                raise
        awaited(RETRY_PAUSE, stop)


def connect_again(
    places: Sequence[Place], seconds: float, bind: str | None, *, stop: Bell | None = None, short: bool = False
) -> socket.socket:
    """Connect again to places that answered before: try them in turn, for `seconds` in total. Raises as `connect`.

    With `short`, neither side sends longer packets than SHORT. Raises PeerError once none is left that may be answered.
    """
    return _raced(places, Race(bind, SHORT if short else None), seconds, Patience(), stop, again=True)


def _raced(
    places: Sequence[Place], race: Race, seconds: float, patience: Patience, stop: Bell | None, *, again: bool
) -> socket.socket:
    """Return the connection to the first that answers. Raises Unreachable, Stopped."""
    with closing(race):
        connection = race.run([target for _, target in places], seconds, stop, again=again)
    if connection is None:
        raise unreachable([(place, race.failed.get(place[1], TimeoutError())) for place in places], patience)
    tune(connection, patience)
    return connection


def _refuse_open_country(address: Address, targets: list[Target], *, insecure: bool) -> None:
    """Raise UsageError for plain TCP to another host without `insecure`: a guest's memory would be readable."""
    if insecure or address.scheme != TCP:
        return
    if not all(ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback for _, where in targets):
        raise UsageError(
            f"{address} is beyond this host, and plain TCP neither encrypts nor authenticates",
            hint="use tls://, or add --insecure if everyone on the network may read the data",
        )


@contextmanager
def listening(address: Address, *, insecure: bool, mode: int = 0o600) -> Iterator[ListeningSocket]:
    """Listen at all addresses of `address`'s name; an empty host means every address, IPv4 and IPv6.

    A unix socket gets `mode` (named.py). If systemd passed a socket, that is used, whatever the address is. Raises as
    `connect`.
    """
    if (handed := _handed_over()) is not None:
        with handed:
            yield handed
        return
    targets = find_targets(address, passive=True)
    _refuse_open_country(address, targets, insecure=insecure)
    listener: ListeningSocket
    try:
        if address.scheme == UNIX:
            listener = Named(address.path, mode)
        elif not address.host and socket.has_dualstack_ipv6():
            where = ("::", address.port)
            listener = socket.create_server(where, family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        else:
            listener = listen_at(targets)
    except OSError as error:
        look = "ss -lxp" if address.scheme == UNIX else "ss -ltnp"
        hint = f"another process listens there; find it with: {look}" if error.errno == errno.EADDRINUSE else None
        raise PeerError(f"cannot listen at {address}: {os.strerror(error.errno or 0)}", hint=hint) from error
    with listener:
        yield listener


HANDED_OVER = 3
"""The first descriptor that systemd passes (sd_listen_fds(3), SD_LISTEN_FDS_START)."""


def _handed_over() -> socket.socket | None:
    """Return the socket that systemd passed, or None. Raises UsageError unless it is one that listens."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # programs that we start must not inherit them
        os.environ.pop(name, None)
    try:
        handed = socket.socket(fileno=HANDED_OVER)
        listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    if count != "1" or not listens:
        raise UsageError("systemd must pass exactly one listening socket", hint="set one ListenStream=, and Accept=no")
    handed.set_inheritable(False)
    return handed


def place_of(listener: ListeningSocket, address: Address) -> str:
    """Return where it listens, for a message: a port or a unix socket's path, which it may have received later."""
    where = listener.getsockname()
    return f"port {where[1]}" if isinstance(where, tuple) else address.path or os.fsdecode(where)


def port_of(listener: ListeningSocket) -> int:
    """Return the listener's port, which the kernel chose if it was 0; 0 for a unix socket."""
    where = listener.getsockname()
    return int(where[1]) if isinstance(where, tuple) else 0
