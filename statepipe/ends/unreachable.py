"""The error for a failed connect: the reason of each address, and a hint for the most likely one."""

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
"""An address that was tried, and its error."""

_HINTS = {
    errno.ECONNREFUSED: "no program listens there; start statepipe recv, receive or tunnel there first, at this port",
    errno.ENOENT: "no program listens there; start it first, with this path",
    errno.EAGAIN: "its queue of waiting connections is full; try again",
    errno.ETIMEDOUT: "a firewall drops the packets, or the host is down",
    errno.EHOSTUNREACH: "the host is down, or a firewall on the way refuses",
    errno.EHOSTDOWN: "the host is down",
    errno.ENETUNREACH: "this host has no route to it: see ip route",
    errno.ENETDOWN: "the network of this host is down: see ip link",
}
"""Hints for errors that may pass, the most likely first."""

_FOR_GOOD = {
    errno.EADDRNOTAVAIL: "this host has no address of this kind, or not the one in --bind: see ip address",
    errno.EACCES: "the socket or its folder belongs to another user",
    errno.EPERM: "a firewall of this host forbids it",
}


class Unreachable(PeerError):
    """No address answered. `may_pass`: a later attempt at one of them may succeed."""

    may_pass = False


def unreachable(failures: Sequence[Failure], patience: Patience) -> Unreachable:
    """Return the error for all of them. It mentions `--retry` if the verb has that option."""
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
    """Return the reasons for one address as given, with its IP addresses if they failed for different reasons."""
    where: dict[str, list[str]] = {}
    for (_, (_, target)), error in failures:
        if isinstance(error, socket.gaierror):
            reason = str(error.strerror)
        else:
            reason = os.strerror(error.errno) if error.errno else "it did not answer in time"
        where.setdefault(reason, []).append(target if isinstance(target, str) else target[0])
    if len(where) == 1:
        return next(iter(where))
    return ", ".join(f"{reason} ({' and '.join(hosts)})" for reason, hosts in where.items())


def _number(error: OSError) -> int:
    if isinstance(error, socket.gaierror):  # of --bind: its numbers are others
        return errno.EADDRNOTAVAIL
    return error.errno or (errno.ETIMEDOUT if isinstance(error, TimeoutError) else 0)
