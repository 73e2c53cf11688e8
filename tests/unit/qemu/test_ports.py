"""The ports at which a QEMU listens, by its command line, and whether another process has them."""

from __future__ import annotations

import socket

import pytest

from statepipe.qemu.listening import BoundPort, ports_bound
from statepipe.qemu.ports import Port, ports


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-s"], [("tcp", "", 1234)]),
        (["-gdb", "tcp::1235"], [("tcp", "", 1235)]),
        (["-serial", "tcp:127.0.0.1:4444,server=on,wait=off"], [("tcp", "127.0.0.1", 4444)]),
        (["-serial", "mon:telnet:localhost:4444,server,nowait"], [("tcp", "localhost", 4444)]),
        (["--qmp", "tcp:[::1]:4444,server=on"], [("tcp", "::1", 4444)]),
        (["-monitor", "udp:far:99@0.0.0.0:4445"], [("udp", "0.0.0.0", 4445)]),
        (["-chardev", "socket,id=c,host=h,port=4444,server=on"], [("tcp", "h", 4444)]),
        (["-chardev", "socket,id=c,port=4444,server"], [("tcp", "", 4444)]),
        (["-chardev", "udp,id=c,host=h,port=1,localaddr=127.0.0.1,localport=2"], [("udp", "127.0.0.1", 2)]),
        (["-vnc", ":1"], [("tcp", "", 5901)]),
        (["-vnc", "127.0.0.1:1,websocket=on"], [("tcp", "127.0.0.1", 5901), ("tcp", "127.0.0.1", 5701)]),
        (["-vnc", ":1,websocket=7000"], [("tcp", "", 5901), ("tcp", "", 7000)]),
        (["-display", "vnc=:2,password=on"], [("tcp", "", 5902)]),
        (["-spice", "port=5930,tls-port=5931,addr=::1"], [("tcp", "::1", 5930), ("tcp", "::1", 5931)]),
        (
            ["-netdev", "user,id=n,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.3:53,hostfwd=::80-:80"],
            [("tcp", "", 2222), ("udp", "127.0.0.1", 53), ("tcp", "", 80)],
        ),
        (["-netdev", '{"type": "user", "id": "n", "hostfwd": [{"str": "tcp::2222-:22"}]}'], [("tcp", "", 2222)]),
        (["-nic", "user,hostfwd=tcp::2222-:22"], [("tcp", "", 2222)]),
        (["-netdev", "socket,id=n,listen=:1234"], [("tcp", "", 1234)]),
        (["-netdev", "socket,id=n,udp=h:1,localaddr=127.0.0.1:2"], [("udp", "127.0.0.1", 2)]),
        (["-netdev", "stream,id=n,server=on,addr.type=inet,addr.host=::,addr.port=5"], [("tcp", "::", 5)]),
        (
            [
                "-netdev",
                '{"type": "stream", "id": "n", "server": true, "addr": {"type": "inet", "host": "", "port": "5"}}',
            ],
            [("tcp", "", 5)],
        ),
        (["-netdev", "dgram,id=n,local.type=inet,local.host=127.0.0.1,local.port=6"], [("udp", "127.0.0.1", 6)]),
    ],
)
def test_each_form_is_known(words: list[str], expected: list[tuple[str, str, int]]) -> None:
    option = words[0].replace("--", "-")
    assert list(ports(["qemu", *words])) == [Port(*each, option) for each in expected]


@pytest.mark.parametrize(
    "words",
    [
        ["-serial", "tcp:h:4444"],
        ["-serial", "unix:/s,server=on"],
        ["-monitor", "udp:far:99"],
        ["-chardev", "socket,id=c,host=h,port=4444"],
        ["-chardev", "socket,id=c,path=/s,server=on"],
        ["-chardev", "socket,id=c,port=4444,to=4500,server=on"],
        ["-vnc", "none"],
        ["-vnc", "unix:/v"],
        ["-vnc", ":1,to=9"],
        ["-vnc", "h:1,reverse=on"],
        ["-spice", "unix=on,addr=/s"],
        ["-netdev", "user,id=n,hostfwd=tcp::0-:22"],
        ["-netdev", "user,id=n,guestfwd=tcp:10.0.2.4:80-tcp:h:80"],
        ["-netdev", "socket,id=n,connect=h:1234"],
        ["-netdev", "socket,id=n,mcast=230.0.0.1:1234"],
        ["-netdev", "stream,id=n,server=off,addr.type=inet,addr.host=h,addr.port=5"],
        ["-netdev", "{'type'"],
        ["-chardev", "socket,id=c,port=http,server=on"],
        ["-chardev", "socket,id=c,port=70000,server=on"],
        ["-append", "tcp::4444,server"],
    ],
)
def test_what_connects_or_takes_a_free_port_is_none(words: list[str]) -> None:
    assert not list(ports(["qemu", *words]))


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


@pytest.mark.parametrize(
    ("there", "host", "taken"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "::", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("::1", "localhost", True),
        ("::1", "", True),
        ("127.0.0.1", "a.name.nobody.resolves", False),
    ],
)
def test_an_address_is_taken_by_the_same_and_by_all_addresses(there: str, host: str, taken: bool) -> None:
    assert BoundPort("tcp", packed(there), 80).is_at("tcp", host, 80) is taken
    assert not BoundPort("tcp", packed(there), 80).is_at("tcp", host, 81)
    assert not BoundPort("tcp", packed(there), 80).is_at("udp", host, 80)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_s_tables_are_read(family: socket.AddressFamily, host: str) -> None:
    if family == socket.AF_INET6 and not _has_ipv6():
        pytest.skip("no IPv6 here")
    with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
        for one in (tcp, udp):
            one.bind((host, 0))
        numbers = [one.getsockname()[1] for one in (tcp, udp)]
        assert BoundPort("tcp", packed(host), numbers[0]) not in ports_bound()
        tcp.listen()
        assert {BoundPort("tcp", packed(host), numbers[0]), BoundPort("udp", packed(host), numbers[1])} <= ports_bound()


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
        return True
