"""Why nobody was reached, in words: each address's own reason, and first of all what is the likeliest of them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from statepipe.ends.address import Address
from statepipe.ends.names import Place
from statepipe.ends.net import Patience
from statepipe.errors import PeerError

Failure = tuple[Place, OSError]
"""Where it was tried, and what came of it."""

_HINTS = {
    errno.ECONNREFUSED: "nobody listens there: is it started, at this port?",
    errno.ENOENT: "nobody listens there: is it started, with this path?",
    errno.EAGAIN: "it takes nobody at the moment: more wait there than it has room for",
    errno.ETIMEDOUT: "a firewall drops what is sent there, or the host is down",
    errno.EHOSTUNREACH: "the host is down, or a firewall on the way refuses",
    errno.EHOSTDOWN: "the host is down",
    errno.ENETUNREACH: "this host has no way there: see ip route",
    errno.ENETDOWN: "the network of this host is down: see ip link",
}
"""Of somebody who may be there a moment later, the likeliest first: another address may fail for good beside it."""

_FOR_GOOD = {
    errno.EADDRNOTAVAIL: "this host has no address to connect from, of this kind or as --bind says: see ip address",
    errno.EACCES: "the socket is another user's, or in a folder that is",
    errno.EPERM: "a firewall of this host forbids it",
}


class Unreachable(PeerError):
    """Nobody answered at any address. `may_pass`: at one of them somebody may be there a moment later."""

    may_pass = False


def unreachable(failures: Sequence[Failure], patience: Patience) -> Unreachable:
    """The error for all of them. How to wait longer is told where the verb has an option for that."""
    may_pass = any(_number(error) in _HINTS for _, error in failures)
    by_address: dict[Address, list[Failure]] = {}
    for place, error in failures:
        by_address.setdefault(place[0], []).append((place, error))
    reasons = ", nor to ".join(f"{address}: {_reasons(each)}" for address, each in by_address.items())
    numbers = {_number(error) for _, error in failures}
    hints = [hint for number, hint in (_HINTS | _FOR_GOOD).items() if number in numbers][:1]
    if patience.retry is not None and may_pass:
        hints.append("--retry SECONDS waits longer" if patience.retry else "--retry SECONDS waits for it")
    told = Unreachable(f"cannot connect to {reasons}", hint="; ".join(hints) or None)
    told.may_pass = may_pass
    return told


def _reasons(failures: Sequence[Failure]) -> str:
    """Of one address as it was given; where it has several and they differ, with each reason those that it is of."""
    where: dict[str, list[str]] = {}
    for (_, (_, target)), error in failures:
        where.setdefault(_reason(error), []).append(target if isinstance(target, str) else target[0])
    if len(where) == 1:
        return next(iter(where))
    return ", ".join(f"{reason} ({' and '.join(hosts)})" for reason, hosts in where.items())


def _number(error: OSError) -> int:
    if isinstance(error, socket.gaierror):  # of --bind: its numbers are others
        return errno.EADDRNOTAVAIL
    return error.errno or (errno.ETIMEDOUT if isinstance(error, TimeoutError) else 0)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(error.errno) if error.errno else "it did not answer in time"
