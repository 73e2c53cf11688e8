"""Two hosts' ends of one session over the loopback, with a relay between them that can be cut for good."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from statepipe.migration.peer import CHANNELS, Peer
from statepipe.session.links import Acceptor, dialled
from statepipe.session.protocol.frames import Role
from statepipe.session.session import Session, Timing
from statepipe.session.transport import SocketTransport
from statepipe.threads import beside
from tests.net.relay import Faults, Relay, relay

QUICK = Timing(tick=0.2, limit=5, retry=2)
SHORT = Timing(tick=0.1, limit=5, retry=1)
PATIENCE = 60


@contextlib.contextmanager
def two_sessions() -> Iterator[tuple[Session, Session]]:
    """Two ends of a tunnel's connection, neither entered yet."""
    acceptor = Acceptor(Role.TUNNELS, SHORT, lambda name, error: None)
    with _listening(acceptor) as port:
        yield dialled(lambda: _dial(port), Role.TUNNELS, "the far end", SHORT), acceptor.wait(PATIENCE)


@contextlib.contextmanager
def two_ends(timing: Timing = QUICK) -> Iterator[tuple[Peer, Peer, Relay]]:
    """The source's and the destination's end, both entered, and the network between them."""
    acceptor = Acceptor(Role.BOTH, timing, lambda name, error: None, channels=CHANNELS)
    with (
        _listening(acceptor) as port,
        relay(port, Faults()) as rail,
        Peer(dialled(lambda: _dial(rail.port), Role.BOTH, "the destination", timing, channels=CHANNELS)) as source,
        Peer(acceptor.wait(PATIENCE)) as destination,
    ):
        yield source, destination, rail


def _dial(port: int) -> SocketTransport:
    connection = socket.create_connection(("127.0.0.1", port), timeout=1)
    connection.settimeout(None)
    return SocketTransport(connection, "the destination", "the destination")


@contextlib.contextmanager
def _listening(acceptor: Acceptor) -> Iterator[int]:
    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                acceptor.adopt(SocketTransport(connection, "the source", "the source"))

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        beside("accept", accept, lambda: listener.shutdown(socket.SHUT_RDWR)),
    ):
        yield listener.getsockname()[1]
