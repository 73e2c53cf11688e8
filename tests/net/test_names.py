"""Names that stand for several addresses, or for none yet: a wait is a wait, and each address's reason is told."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from statepipe.ends.address import Address, parse_address
from statepipe.ends.dial import connect_first
from statepipe.ends.names import Place, Unanswered
from statepipe.ends.net import Patience
from statepipe.ends.unreachable import Failure, unreachable
from tests.conformance.running import PATIENCE, STATEPIPE, run

BOTH = "127.0.0.1 localhost\n::1 localhost\n"
WITHOUT_IPV6 = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1; "


def in_a_network(folder: Path, program: str, before: str = "", hosts: str = BOTH) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a network of its own, that has the loopback alone; skips where there can be none."""
    (folder / "hosts").write_text(hosts)
    (folder / "program.py").write_text(program)
    probe = subprocess.run(["unshare", "-nm", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"no namespaces here: {probe.stderr.decode()}")
    script = f"ip link set lo up && mount --bind hosts /etc/hosts && {{ {before} exec {sys.executable} program.py; }}"
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "PYTHONPATH": os.getcwd()}
    command = ["unshare", "-nm", "--kill-child", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=folder, env=environment)


LATE = f"""
import subprocess
STATEPIPE, WHERE = {STATEPIPE!r}, "tcp://{{}}:7000"

def refused():
    "Connections that were refused in this network (/proc/net/snmp, AttemptFails)."
    names, values = [line.split() for line in open("/proc/net/snmp") if line.startswith("Tcp:")]
    return int(values[names.index("AttemptFails")])

send = subprocess.Popen([*STATEPIPE, "send", "--retry", "50", WHERE.format("localhost")], stdin=subprocess.PIPE)
send.stdin.write(b"data")
send.stdin.close()
while not refused() and send.poll() is None:
    pass
recv = subprocess.Popen([*STATEPIPE, "recv", "--timeout", "10", "-o", "out", WHERE.format("127.0.0.1")])
print(send.wait(), recv.wait())
"""


def test_a_wait_goes_on_where_the_last_of_a_name_s_addresses_fails_at_once(tmp_path: Path) -> None:
    """As docker has it: localhost is ::1 too, and there is no IPv6. The receiver comes once the sender was refused."""
    done = in_a_network(tmp_path, LATE, WITHOUT_IPV6)
    assert done.stdout == "0 0\n", done.stderr
    assert (tmp_path / "out").read_bytes() == b"data"


LISTENS = """
import socket
from statepipe.ends.address import parse_address
from statepipe.ends.dial import listening, port_of
with listening(parse_address("tcp://localhost:0"), insecure=False) as listener:
    for host in ("127.0.0.1", "::1"):
        try:
            with socket.create_connection((host, port_of(listener))):
                print(host, listener.accept()[1][0] == host)
        except OSError as error:
            print(host, error.strerror)
"""


def test_localhost_is_listened_at_as_both_its_addresses(tmp_path: Path) -> None:
    done = in_a_network(tmp_path, LISTENS)
    assert done.stdout == "127.0.0.1 True\n::1 True\n", done.stderr


def test_an_address_that_is_not_there_keeps_nobody_from_the_other(tmp_path: Path) -> None:
    done = in_a_network(tmp_path, LISTENS, WITHOUT_IPV6)
    assert done.stdout == "127.0.0.1 True\n::1 Cannot assign requested address\n", done.stderr


def test_a_port_that_is_taken_at_one_address_of_a_name_is_told(tmp_path: Path) -> None:
    taken = "with socket.create_server(('127.0.0.1', 7000)), listening"
    done = in_a_network(tmp_path, LISTENS.replace(":0", ":7000").replace("with listening", taken))
    assert "cannot listen at tcp://localhost:7000: Address already in use" in done.stderr


def test_a_name_that_nobody_tells_yet_is_asked_for_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        unknown = Unanswered("cannot find tcp://host: Temporary failure in name resolution")
        place: Place = (Address("tcp", "host", port), (socket.AF_INET, ("127.0.0.1", port)))
        answers: list[Place | None] = [None, None, place]

        def find() -> list[Place]:
            if (found := answers.pop(0)) is None:
                raise unknown
            return [found]

        connect_first(find, Patience(retry=PATIENCE), None, insecure=False).close()
        answers = [None]
        with pytest.raises(Unanswered):
            connect_first(find, Patience(), None, insecure=False)


def failure(number: int, host: str = "192.0.2.7") -> Failure:
    error = OSError(number, os.strerror(number)) if number else TimeoutError()
    return (Address("tls", "node", 7), (socket.AF_INET, (host, 7))), error


@pytest.mark.parametrize(
    ("failures", "says", "hint"),
    [
        ([failure(errno.ECONNREFUSED)], "tls://node:7: Connection refused", "no program listens there"),
        ([failure(0)], "tls://node:7: it did not answer in time", "a firewall drops the packets"),
        ([failure(errno.EHOSTUNREACH)], "tls://node:7: No route to host", "the host is down"),
        (
            [failure(errno.EADDRNOTAVAIL, "::1"), failure(errno.ECONNREFUSED)],
            "tls://node:7: Cannot assign requested address (::1), Connection refused (192.0.2.7)",
            "no program listens there",
        ),
    ],
)
def test_the_likeliest_reason_is_the_hint_s(failures: list[Failure], says: str, hint: str) -> None:
    for retry, tells in [(None, False), (0.0, True), (5.0, True)]:
        error = unreachable(failures, Patience(retry=retry))
        assert says in str(error)
        assert (error.hint or "").startswith(hint)
        assert ("--retry" in (error.hint or "")) is tells, "only a verb that has it"


def test_a_verb_without_that_option_tells_of_none(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("1234-5678")
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*STATEPIPE, "pair", "--code-file", str(tmp_path / "code"), where]
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment)
    assert done.returncode == 5
    assert b"hint: no program listens there" in done.stderr and b"--retry" not in done.stderr


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tls://Node1.example.org.:7", "node1.example.org"),
        ("tls://[fe80::1%eth0]:7", "fe80::1"),
        ("tls://192.0.2.7", "192.0.2.7"),
    ],
)
def test_who_is_meant_is_known_without_what_only_finds_the_way(text: str, name: str) -> None:
    assert parse_address(text).name == name


def test_a_unix_socket_that_is_taken_is_looked_for_among_unix_sockets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        done = run("recv", f"unix://{tmp_path}/s")
    assert done.returncode == 5 and b"find it with: ss -lxp" in done.stderr, done.stderr
