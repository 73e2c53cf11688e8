"""How two ends meet: connect to an address, or listen at one. What plain TCP may not carry is refused here."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from statepipe.ends.address import TCP, UNIX, Address
from statepipe.ends.names import Target, find_targets
from statepipe.ends.net import Patience, tune
from statepipe.errors import PeerError, UsageError

CONNECT_TIMEOUT = 20.0
"""Seconds to wait for one address to answer: the kernel's own SYN retries take two minutes."""

RETRY_PAUSE = 0.25
"""Seconds between attempts, where the first found nobody: a receiver that is being started by hand."""

AGAIN = 0.25
"""Seconds until a dial without an answer is tried once more beside itself: the kernel's own next tries come after 1 s,
3 s and 7 s, and the network may be back long before."""

SHORT = 1024
"""Bytes of a segment that get through where longer ones are lost without a word: the kernel's own tcp_base_mss, to
which it turns by itself only with net.ipv4.tcp_mtu_probing. IPv6 promises packets of 1280 (RFC 8200, 5)."""

BACKLOG = 128
"""Connections that may wait to be accepted: QEMU opens up to 17 at once, which a tunnel takes one by one."""


def connect(address: Address, patience: Patience, bind: str | None, *, insecure: bool) -> socket.socket:
    """A connection to `address`. Raises PeerError, UsageError where it would need `insecure`."""
    targets = find_targets(address, passive=False)
    _refuse_open_country(address, targets, insecure=insecure)
    deadline = time.monotonic() + patience.retry
    while (connection := _try_each(address, targets, patience, bind, time.monotonic() >= deadline)) is None:
        time.sleep(RETRY_PAUSE)
    tune(connection, patience)
    return connection


@contextmanager
def connected(address: Address, patience: Patience, bind: str | None, *, insecure: bool) -> Iterator[socket.socket]:
    """As `connect`, closed on leaving."""
    with connect(address, patience, bind, insecure=insecure) as connection:
        yield connection


def connect_again(
    address: Address, targets: list[Target], seconds: float, bind: str | None, *, short: bool = False
) -> socket.socket:
    """As `connect`, where it was answered before: within `seconds`, with a fresh attempt at a target each AGAIN.

    With `short`, neither side sends longer packets than SHORT. Raises PeerError once none is left that may be answered.
    """
    with closing(_Race(bind, SHORT if short else None)) as race:
        try:
            connection = race.run(targets, seconds)
        except OSError as error:
            raise _unreachable(address, error) from error
    tune(connection, Patience())
    return connection


class _Race:
    """Attempts to connect from `bind`, with segments of `most` bytes, side by side. Closing it gives up the losers."""

    def __init__(self, bind: str | None, most: int | None) -> None:
        self._bind, self._most = bind, most
        self._running: dict[int, tuple[socket.socket, Target]] = {}
        self._failed: dict[Target, OSError] = {}
        self._poll = select.poll()

    def run(self, targets: list[Target], seconds: float) -> socket.socket:
        """The first that is answered; one is begun each AGAIN, to the targets in turn. Raises OSError."""
        deadline = time.monotonic() + seconds
        for target in itertools.cycle(targets):
            if target not in self._failed and self._begin(*target):
                wait = min(AGAIN, max(deadline - time.monotonic(), 0))
                if (winner := self._look(wait)) is not None:
                    return winner
            if len(self._failed) == len(set(targets)):
                raise self._failed[target]
            if time.monotonic() >= deadline:
                break
        raise TimeoutError

    def _begin(self, family: socket.AddressFamily, where: Any) -> bool:
        """Whether it may yet be answered."""
        attempt = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._running[attempt.fileno()] = attempt, (family, where)
        try:
            if self._bind is not None:
                attempt.bind((self._bind, 0))
            if self._most is not None:
                attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self._most)
            attempt.connect(where)
        except BlockingIOError:  # EINPROGRESS
            self._poll.register(attempt, select.POLLOUT)
        except OSError as error:
            self._failed[family, where] = error
            return False
        return True

    def _look(self, seconds: float) -> socket.socket | None:
        """The winner, if there is one within so long."""
        for fd, _ in self._poll.poll(seconds * 1000):
            attempt, target = self._running[fd]
            code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return self._running.pop(fd)[0]
            self._poll.unregister(fd)
            self._failed[target] = OSError(code, os.strerror(code))
        return None

    def close(self) -> None:
        """Give up the rest."""
        for attempt, _ in self._running.values():
            attempt.close()


def _refuse_open_country(address: Address, targets: list[Target], *, insecure: bool) -> None:
    """A guest's memory in the clear is for the loopback alone, unless that is said outright."""
    if insecure or address.scheme != TCP:
        return
    if not all(ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback for _, where in targets):
        raise UsageError(
            f"{address} is not this host alone, and plain TCP neither hides nor authenticates what it carries",
            hint="use tls://, or add --insecure if everyone on the way may read it",
        )


def _try_each(
    address: Address, targets: list[Target], patience: Patience, bind: str | None, last: bool
) -> socket.socket | None:
    """A connection to the first that answers; None if none does and it is not the last attempt."""
    failure: OSError | None = None
    for family, where in targets:
        try:
            return _connect(family, where, patience, bind)
        except OSError as error:
            failure = error
    if not last and isinstance(failure, ConnectionRefusedError | TimeoutError | FileNotFoundError):
        return None
    assert failure is not None
    raise _unreachable(address, failure) from failure


def _unreachable(address: Address, failure: OSError) -> PeerError:
    reason = os.strerror(failure.errno) if failure.errno else "it did not answer in time"
    return PeerError(
        f"cannot connect to {address}: {reason}", hint="is it listening there? --retry SECONDS waits for it"
    )


def _connect(family: socket.AddressFamily, where: object, patience: Patience, bind: str | None) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if bind is not None and family != socket.AF_UNIX:
            connection.bind((bind, 0))
        connection.settimeout(min(CONNECT_TIMEOUT, patience.silence or CONNECT_TIMEOUT))
        connection.connect(where)  # type: ignore[arg-type]  # as getaddrinfo gave it
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def listening(address: Address, *, insecure: bool) -> Iterator[socket.socket]:
    """A listening socket at `address`; an empty host means every address, IPv4 and IPv6. Raises as `connected`.

    Where systemd has handed one over, it is that, whatever the address.
    """
    if (handed := _handed_over()) is not None:
        with handed:
            yield handed
        return
    targets = find_targets(address, passive=True)
    _refuse_open_country(address, targets, insecure=insecure)
    try:
        listener = _listen_unix(address.path) if address.scheme == UNIX else _listen_tcp(address, targets)
    except OSError as error:
        hint = "another process has it; look with: ss -ltnp" if error.errno == errno.EADDRINUSE else None
        raise PeerError(f"cannot listen at {address}: {os.strerror(error.errno or 0)}", hint=hint) from error
    try:
        with listener:
            yield listener
    finally:
        if address.scheme == UNIX:
            with suppress(FileNotFoundError):
                os.unlink(address.path)


HANDED_OVER = 3
"""The first descriptor that systemd hands over (sd_listen_fds(3), SD_LISTEN_FDS_START)."""


def _handed_over() -> socket.socket | None:
    """Raises UsageError for more than one, or what does not listen."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # they are not for programs that we start
        os.environ.pop(name, None)
    try:
        handed = socket.socket(fileno=HANDED_OVER)
        listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    if count != "1" or not listens:
        raise UsageError("systemd must hand over one listening socket", hint="one ListenStream=, and Accept=no")
    handed.set_inheritable(False)
    return handed


def _listen_tcp(address: Address, targets: list[Target]) -> socket.socket:
    if not address.host and socket.has_dualstack_ipv6():
        where = ("::", address.port)
        return socket.create_server(where, family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    family, found = targets[0]
    return socket.create_server(found, family=family, backlog=BACKLOG)


def _listen_unix(path: str) -> socket.socket:
    """For its owner alone. A socket that nobody listens on any more gives way."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before it has a name: the name takes this mode
        if _is_left_over(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_left_over(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def accepted(listener: socket.socket, patience: Patience) -> Iterator[socket.socket]:
    """The first connection that comes, closed on leaving. Raises PeerError when none comes in time."""
    listener.settimeout(patience.silence)
    try:
        connection, _ = listener.accept()
    except TimeoutError as error:
        raise PeerError(f"nobody came within {patience.silence:g} s") from error
    with connection:
        tune(connection, patience)
        yield connection


def port_of(listener: socket.socket) -> int:
    """The port that a listener got where 0 was asked for; 0 for a unix socket."""
    where = listener.getsockname()
    return int(where[1]) if isinstance(where, tuple) else 0
