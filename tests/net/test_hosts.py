"""The cable of our test hosts does what it says: a fault that is none would prove nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.net.hosts import Host, two_hosts

PORT = 7000
LISTEN = f"""
import socket
server = socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    with server.accept()[0] as peer:
        peer.sendall(b"hello" if not peer.recv(1) else b"")
"""
CALL = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT}), float(sys.argv[2])) as peer:
    peer.shutdown(socket.SHUT_WR)
    print(peer.recv(9).decode())
"""


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        server = both[1].start(sys.executable, "-c", LISTEN, stdout=-1)
        try:
            assert server.stdout and server.stdout.readline() == b"ready\n"
            yield both
        finally:
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()


def call(caller: Host, address: str, seconds: float = 1) -> str:
    """What the listener says, or the name of the exception that says why it does not, each within so many seconds."""
    done = caller.start(sys.executable, "-c", CALL, address, str(seconds), stdout=-1, stderr=-1)
    out, err = done.communicate(timeout=30)
    return out.decode().strip() or err.decode().strip().splitlines()[-1].partition(":")[0]


def test_the_hosts_reach_each_other(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    assert call(first, second.ip4) == call(first, second.ip6) == "hello"


def test_a_cut_and_a_mend(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    second.cut()
    assert call(first, second.ip4) in ("TimeoutError", "OSError")
    second.mend()
    assert call(first, second.ip4) == call(first, second.ip6) == "hello"


def test_rules_come_and_go(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    second.swallow()
    assert call(first, second.ip4) == "TimeoutError"
    second.refuse(PORT)
    assert call(first, second.ip4) == "ConnectionRefusedError"
    second.rules()
    assert call(first, second.ip4) == "hello"


def test_another_address(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    second.change_address("192.0.2.9")
    assert call(first, "192.0.2.9") == "hello"


def test_slow_lossy_and_narrow_still_carries(hosts: tuple[Host, Host]) -> None:
    first, second = hosts
    second.slow_down("1mbit")
    second.limit_packets(1280)
    second.lose(1)
    assert call(first, second.ip4, 20) == "hello"  # a packet that is lost is sent again after a second, or three
