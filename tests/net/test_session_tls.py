"""A session over TLS 1.3: the same, with links that must shake hands before they may resume."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

import pytest

from statepipe.ends.net import Patience
from statepipe.errors import PeerError
from statepipe.pipeline.pipeline import Pipeline
from statepipe.session import tls
from statepipe.session.gate import greet
from statepipe.session.links import dialled
from statepipe.session.protocol.frames import Role
from statepipe.session.streams import Outlet
from statepipe.session.tls import Handshake, TlsTransport, shake_hands
from statepipe.trust.identity import by_folder
from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE, started
from tests.conformance.test_plain import collect, rst
from tests.conformance.test_tls import receiving, sender, speak
from tests.net.relay import Faults, relay
from tests.net.test_session import MIB, QUICK, Bytes, Kept, Receiver, whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A host's certificates, for either end."""
    base: Path = tmp_path_factory.mktemp("pki")
    for words in (["init"], ["issue", "localhost", "127.0.0.1", "--dir", base / "host"]):
        warm.run([*STATEPIPE, "pki", *map(str, words), "--ca", str(base / "ca")], check=True, capture_output=True)
    return str(base / "host")


class TlsReceiver(Receiver):
    """Lets in who has proved who they are."""

    def __init__(self, sink: Kept, folder: str) -> None:
        super().__init__(sink)
        self._trust = by_folder(folder, server=True)()

    def _adopt(self, connection: socket.socket, name: str) -> None:
        handshake = Handshake(connection, self._trust.context, None, server=True)
        with contextlib.suppress(PeerError):  # cut in the handshake: the next dial will do
            shake_hands(handshake, name)
            identity = self._trust.identify(handshake.certificate(), handshake.fields)
            self.acceptor.adopt(handshake.transport(name, identity, Patience()))


def test_keys_that_have_served_their_time_are_replaced(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a link of new ones, in the midst of the stream."""
    monkeypatch.setattr(tls, "RENEWED", 4 * MIB)
    trust, dials = by_folder(folder, server=False), []

    def dial() -> TlsTransport:
        dials.append(socket.create_connection(("127.0.0.1", rail.port), timeout=5))
        return greet(dials[-1], trust, "localhost", Patience())

    with (
        TlsReceiver(Kept(), folder) as receiver,
        relay(receiver.port, Faults(bandwidth=20e6)) as rail,
        dialled(dial, Role.SENDS, "localhost", QUICK, channels=0) as session,
    ):
        Pipeline(Bytes(24 * MIB), [], Outlet(session)).run()
    assert receiver.error is None and receiver.sink.kept == whole(24 * MIB)
    assert 3 <= len(dials) <= 10


@pytest.mark.parametrize("links", [1, 2])
def test_cuts_in_a_session_over_tls_cost_no_byte(folder: str, links: int) -> None:
    trust = by_folder(folder, server=False)
    chance = random.Random(links)

    def dial() -> TlsTransport:
        return greet(socket.create_connection(("127.0.0.1", rail.port), timeout=1), trust, "localhost", Patience())

    def cut_after() -> int:
        least = 1 if rail.accepted > links else 1 << 16  # the first are not cut in the handshake: that is no link yet
        return chance.randrange(least, 2 * MIB) if rail.cuts < 20 else 1 << 60

    with (
        TlsReceiver(Kept(), folder) as receiver,
        relay(receiver.port, Faults(cut_after=cut_after)) as rail,
        dialled(dial, Role.SENDS, "localhost", QUICK, links=links, channels=0) as session,
    ):
        Pipeline(Bytes(24 * MIB), [], Outlet(session)).run()
    assert receiver.error is None and receiver.heard
    assert receiver.sink.kept == whole(24 * MIB)
    assert rail.cuts >= 10
    assert receiver.session is not None and "localhost" in receiver.session.name


def test_who_breaks_off_is_told_of_only_where_nobody_has_come(folder: str) -> None:
    """Links do break: later that is nothing that a person need hear of, where a stranger still is."""
    with receiving("--tls-creds", folder) as (receiver, port):
        socket.create_connection(("127.0.0.1", port)).close()
        assert b"turned away 127.0.0.1: " in receiver.stderr.readline()
        with started(sender(port, "--tls-creds", folder)) as process:
            process.stdin.write(b"x")
            assert receiver.stdout.read(1) == b"x"
            rst(socket.create_connection(("127.0.0.1", port)))
            speak(port, b"GET / HTTP/1.1\r\n\r\n")  # it is looked at after the one before
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        status, _, said = collect(receiver)
    assert status == 0 and said.count(b"\n") == 1 and b"it speaks HTTP" in said, said
