"""Several addresses of one host: its links lead to all of them, and to those that are left when one dies."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from statepipe.cli.network import plan_of
from statepipe.ends.address import Address
from statepipe.errors import PeerError
from statepipe.session.overtls import TlsDial
from statepipe.trust.identity import by_pins
from tests.conformance.running import PATIENCE, STATEPIPE, beside_news, run, started, wait
from tests.net.homes import DATA, MIB, Receiver, World, finish, receiving, sending
from tests.net.relay import Faults, Relay, relay

HALF = len(DATA) // 2

SLOW = 20e6
"""Bytes a second: half of DATA takes 0.8, in which a second link is there."""

Ended = tuple[Relay, Callable[[], None]]


@contextmanager
def two_ways(port: int) -> Iterator[tuple[Ended, Ended]]:
    """A receiver's port at two addresses, each so slow that a stream needs both, and what ends each."""
    with ExitStack() as one, ExitStack() as other:
        yield (
            (one.enter_context(relay(port, Faults(bandwidth=SLOW))), one.close),
            (other.enter_context(relay(port, Faults(bandwidth=SLOW), "127.0.0.2")), other.close),
        )


def at(other: Relay) -> list[str]:
    return ["--also", f"127.0.0.2:{other.port}"]


def assert_whole(receiver: Receiver, data: bytes) -> None:
    status, said = receiver.ended()
    assert (status, beside_news(said.encode())) == (0, b"")
    assert receiver.out.read_bytes() == data


@pytest.mark.parametrize("links", [[], ["--links", "4"]])
def test_links_lead_to_all_addresses_in_turn(world: World, tmp_path: Path, links: list[str]) -> None:
    with (
        receiving(world, tmp_path / "out") as receiver,
        two_ways(receiver.port) as ((one, _), (other, _)),
        sending(world, one.port, *at(other), *links) as sender,
    ):
        sender.stdin.write(DATA[:HALF])
        each = 2 if links else 1
        wait(sender, lambda: min(one.accepted, other.accepted) >= each)  # more if a busy host makes a link seem stuck
        finish(sender, DATA[HALF:])
        assert_whole(receiver, DATA)


@pytest.mark.parametrize("dying", [0, 1])
def test_a_link_whose_address_dies_goes_to_another(world: World, tmp_path: Path, dying: int) -> None:
    """In the midst of the stream, while the other link goes on."""
    with (
        receiving(world, tmp_path / "out") as receiver,
        two_ways(receiver.port) as ways,
        sending(world, ways[0][0].port, *at(ways[1][0])) as sender,
    ):
        (dead, end), (left, _) = ways[dying], ways[1 - dying]
        sender.stdin.write(DATA[:HALF])
        wait(sender, lambda: min(dead.bytes, left.bytes) > MIB)
        end()
        wait(sender, lambda: left.accepted >= 2)
        left.faults.bandwidth = None
        finish(sender, DATA[HALF:])
        assert_whole(receiver, DATA)


def nobody() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_an_address_where_nobody_is_is_passed_over(world: World, tmp_path: Path) -> None:
    words = ["--also", "nobody.invalid", "--also"]
    with receiving(world, tmp_path / "out") as receiver:
        with sending(world, nobody(), *words, f"127.0.0.1:{receiver.port}") as sender:
            finish(sender, DATA[:MIB])
        assert_whole(receiver, DATA[:MIB])


def test_nobody_at_any_address_is_said_of_each(world: World) -> None:
    port = nobody()
    done = run("send", "--also", "127.0.0.2", f"127.0.0.1:{port}", data=b"x", env=world.friend.env)
    assert done.returncode == 5
    reason = f"tls://127.0.0.1:{port}: Connection refused, nor to tls://127.0.0.2:{port}: Connection refused"
    assert f"cannot connect to {reason}" in done.stderr.decode()


def test_each_name_is_asked_once_before_there_is_a_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever serves names may take longer than a handshake may."""
    asked: list[tuple[object, int]] = []
    find = socket.getaddrinfo
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.friend.base))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def slow(host: object, *rest: Any, **more: Any) -> Any:
            asked.append((host, len(select.select([listener], [], [], 0)[0])))
            return find(host, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        values = {"tls_creds": None, "peer": None, "also": ["localhost"]}
        plan = plan_of("send", f"127.0.0.1:{listener.getsockname()[1]}", [], values, None)
        dialling = pool.submit(TlsDial(plan, by_pins("127.0.0.1", server=False)))
        listener.accept()[0].close()
        with pytest.raises(PeerError, match=r"tls://127\.0\.0\.1"):
            dialling.result(PATIENCE)
    assert asked == [("127.0.0.1", 0), ("localhost", 0)]


def test_another_host_at_the_other_address_is_refused(world: World, tmp_path: Path) -> None:
    """Each link's far end must be the host that is meant, and the stream goes there alone."""
    world.stranger.pin(world.friend)
    with receiving(world, tmp_path / "out") as receiver, receiving(world, tmp_path / "not", at=world.stranger) as other:
        with sending(world, receiver.port, "--also", f"127.0.0.1:{other.port}") as sender:
            finish(sender, DATA)
        assert_whole(receiver, DATA)
        other.process.terminate()
        status, said = other.ended()
        assert status == 128 + signal.SIGTERM and "turned away 127.0.0.1" in said  # it was tried
    assert not (tmp_path / "not").exists()


def test_a_certificate_need_name_only_the_first(tmp_path: Path) -> None:
    folder, ca = str(tmp_path / "host"), str(tmp_path / "ca")
    for words in (["init", "--ca", ca], ["issue", "localhost", "--ca", ca, "--dir", folder]):
        assert run("pki", *words).returncode == 0
    command = [*STATEPIPE, "recv", "tls://127.0.0.1:0", "--tls-creds", folder, "-o", str(tmp_path / "out")]
    with started(command, stdin=subprocess.DEVNULL) as process:
        receiver = Receiver(process, tmp_path / "out")
        words = ["--tls-creds", folder, "--also", f"127.0.0.1:{receiver.port}", f"localhost:{nobody()}"]
        assert run("send", *words, data=DATA[:MIB]).returncode == 0
        assert_whole(receiver, DATA[:MIB])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.2.0.7", Address("tls", "10.2.0.7", 7)),
        ("10.2.0.7:8", Address("tls", "10.2.0.7", 8)),
        ("tls://[2001:db8::7]", Address("tls", "2001:db8::7", 7)),
    ],
)
def test_an_address_has_the_first_ones_port_unless_it_names_its_own(text: str, address: Address) -> None:
    values = {"tls_creds": None, "peer": None, "also": [text, text]}
    plan = plan_of("send", "tls://host:7", [], values, None)
    assert (list(plan.also), plan.links) == ([address, address], 3)


@pytest.mark.parametrize(
    "words",
    [
        ["send", "--also", "b", "tcp://127.0.0.1:1"],
        ["send", "--also", "b", "ssh://a/x"],
        ["send", "--also", "unix:///b", "a"],
        ["send", "--also", "b c", "a"],
        ["tunnel", "--also", "b", "tls://:0", "unix:///x"],
        ["migrate", "--qmp", "/x", "--also", "b", "exec:cat"],
    ],
)
def test_what_does_not_go_together(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2, done.stderr
