"""Trust that ends, or begins, while a receiver runs: it counts for who comes next, and for each resumed link."""

from __future__ import annotations

import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statepipe.ends.net import Patience
from statepipe.errors import PeerError
from statepipe.session.gate import greet
from statepipe.trust.identity import by_pins
from tests import warm
from tests.conformance.running import PATIENCE, STATEPIPE, started, wait_until_read
from tests.conformance.test_tls import pki
from tests.net.homes import (
    DATA,
    MIB,
    Receiver,
    World,
    clone,
    connect,
    finish,
    hello,
    receiving,
    rest,
    sending,
    world_in,
)
from tests.net.relay import Faults, relay

RETRY = "2"


@pytest.fixture
def hosts(tmp_path: Path) -> World:
    """A world of this test's own: it changes whom they believe."""
    return world_in(tmp_path)


def recv(world: World, out: Path, *words: str) -> list[str]:
    return [
        *STATEPIPE,
        "recv",
        "tls://127.0.0.1:0",
        "--timeout",
        str(PATIENCE),
        "--retry",
        RETRY,
        "-o",
        str(out),
        *words,
    ]


def test_a_session_of_a_peer_that_is_unpinned_gets_no_new_link(hosts: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(recv(hosts, out), stdin=subprocess.DEVNULL, env=hosts.here.env) as process:
        receiver = Receiver(process, out)
        with relay(receiver.port, Faults()) as rail, sending(hosts, rail.port, "--retry", RETRY) as sender:
            sender.stdin.write(DATA[: 16 * MIB])
            wait_until_read(sender)
            hosts.here.unpin(hosts.friend)
            rail.cut()
            said = sender.communicate(DATA, PATIENCE)[1]
            assert sender.returncode == 5 and b"no link to tls://127.0.0.1" in said, said
        status, told = receiver.ended()
    assert status == 5 and "turned away 127.0.0.1: no trust between us" in told, told
    assert not out.exists()


def test_a_peer_that_is_pinned_while_it_listens_is_let_in(hosts: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hosts.here.unpin(hosts.friend)
    with started(recv(hosts, out), stdin=subprocess.DEVNULL, env=hosts.here.env) as process:
        receiver = Receiver(process, out)
        hosts.here.pin(hosts.friend)
        with sending(hosts, receiver.port) as sender:
            finish(sender, DATA[:MIB])
        assert receiver.ended()[0] == 0
    assert out.read_bytes() == DATA[:MIB]


def test_a_client_that_is_unpinned_during_its_handshake_is_turned_away(hosts: World, tmp_path: Path) -> None:
    with receiving(hosts, tmp_path / "out") as receiver, connect(receiver.port) as plain:
        first, tls, incoming, outgoing = hello(hosts.friend.context())
        plain.sendall(first)
        incoming.write(plain.recv(1 << 16))
        hosts.here.unpin(hosts.friend)
        tls.do_handshake()
        plain.sendall(outgoing.read())
        assert b"turned away 127.0.0.1: the trusted peers changed" in receiver.process.stderr.readline()
        rest(plain)


def test_a_server_that_is_unpinned_during_its_handshake_is_not_trusted(
    hosts: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(hosts.friend.base))
    settings = hosts.here.base / "statepipe"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings / "own-cert.pem", settings / "own-key.pem")
    trust = by_pins("127.0.0.1", server=False)

    def serve(listener: socket.socket) -> None:
        connection = listener.accept()[0]
        connection.recv(1, socket.MSG_PEEK)  # the client has begun, with its pin
        pin = hosts.friend.base / "statepipe" / "peers" / "127.0.0.1.pem"
        pin.rename(pin.with_name("another.pem"))
        with context.wrap_socket(connection, server_side=True) as secure:
            rest(secure)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, listener)
        with connect(listener.getsockname()[1]) as plain, pytest.raises(PeerError, match=r"no .*peer"):
            greet(plain, trust, "127.0.0.1", Patience())
        served.result(PATIENCE)


def test_hosts_that_are_clones_of_each_other_are_all_let_in(hosts: World, tmp_path: Path) -> None:
    """Their certificates have the same subject: both are pinned, both come in, and each believes the receiver."""
    out = tmp_path / "out"
    for host in (hosts.friend, hosts.mallory, hosts.here):
        host.become(*clone())
    for host in (hosts.friend, hosts.mallory):
        hosts.here.pin(host)
        host.pin(hosts.here, "127.0.0.1")
    for host in (hosts.friend, hosts.mallory, hosts.friend):
        with started(recv(hosts, out), stdin=subprocess.DEVNULL, env=hosts.here.env) as process:
            receiver = Receiver(process, out)
            done = send(receiver.port, env=host.env)
            assert (done.returncode, done.stderr, receiver.ended()[0]) == (0, b"", 0)
        out.unlink()


def send(port: int, *words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [*STATEPIPE, "send", "--timeout", str(PATIENCE), *map(str, words), f"tls://127.0.0.1:{port}"]
    return warm.run(command, input=DATA[:MIB], capture_output=True, timeout=PATIENCE, env=env)


def test_with_certificates_a_name_singles_out_one_on_either_side(hosts: World, tmp_path: Path) -> None:
    """The sender's need not be the one in the address."""
    folders = {name: tmp_path / name for name in ("node1", "node2", "node3")}
    pki("init", "--ca", tmp_path / "ca")
    for name, folder in folders.items():
        pki("issue", f"{name}.example", "--ca", tmp_path / "ca", "--dir", folder)
    out = tmp_path / "out"
    words = ["--tls-creds", str(folders["node1"]), "--peer", "node2.example"]
    with started(recv(hosts, out, *words), stdin=subprocess.DEVNULL) as process:
        receiver = Receiver(process, out)
        named = ["--peer", "node1.example"]
        assert send(receiver.port, "--tls-creds", folders["node3"], *named).returncode == 5
        done = send(receiver.port, "--tls-creds", folders["node2"], "--peer", "node3.example")
        assert done.returncode == 5
        assert b"its certificate is for node1.example, not for node3.example" in done.stderr
        done = send(receiver.port, "--tls-creds", folders["node2"], *named)
        assert (done.returncode, done.stderr) == (0, b"")
        status, told = receiver.ended()
    assert status == 0
    assert "turned away 127.0.0.1: its certificate is for node3.example, not for node2.example" in told
    assert out.read_bytes() == DATA[:MIB]
