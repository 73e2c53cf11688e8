"""What the two ends of a tunnel for libvirt say to each other, and what the far end grants."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.errors import PeerError, StatepipeError
from statepipe.session.options import ConnectionPlan
from statepipe.session.protocol.frames import Violation
from statepipe.session.session import Timing
from statepipe.session.transport import SocketTransport, Transport
from statepipe.tunnel import libvirt
from statepipe.tunnel.libvirthost import SESSION, Host
from statepipe.tunnel.targets import OPENED, WISH, Targets, compared, hear

IDENT = "0123abcd"


@pytest.fixture
def host() -> Iterator[Host]:
    """One with a daemon that listens, at a path that leaves room for names."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(f"{folder}/daemon")
        daemon.listen()
        yield Host(SESSION, f"{folder}/tunnels", (f"{folder}/daemon",), os.geteuid(), os.getegid())


def test_only_the_peer_that_has_opened_a_tunnel_may_use_it_and_while_it_is_open(host: Host) -> None:
    targets = Targets(host)
    with targets.opened("A", IDENT, "web1") as answer:
        assert answer["daemon"] == host.daemons[0]
        targets.connect("A", IDENT, "libvirtd").close()
        with pytest.raises(PeerError, match="this tunnel is not open here"):
            targets.connect("B", IDENT, "libvirtd")
        with pytest.raises(PeerError, match="this tunnel is not open here"):
            targets.connect("A", "deadbeef", "libvirtd")
        with pytest.raises(Violation, match="no target of a tunnel: '/etc/passwd'"):
            targets.connect("A", IDENT, "/etc/passwd")
    with pytest.raises(PeerError, match="this tunnel is not open here"):
        targets.connect("A", IDENT, "libvirtd")


def test_each_target_leads_to_its_own_socket(host: Host) -> None:
    with Targets(host).opened("A", IDENT, "web1") as answer:
        pass
    targets = Targets(host)
    with targets.opened("A", IDENT, "web1") as again:
        assert again == answer
        for to in ("memory", "disks"):
            with pytest.raises(PeerError, match=f"no QEMU listens at .*/{to}.tunnelmigrate.dest.web1"):
                targets.connect("A", IDENT, to)
            with socket.socket(socket.AF_UNIX) as qemu:
                qemu.bind(answer[to])
                qemu.listen()
                targets.connect("A", IDENT, to).close()


@pytest.mark.parametrize("ident", ["", "../../..", "0123ABCD", "0123abc", "."])
def test_a_tunnel_s_name_leads_nowhere(host: Host, ident: str) -> None:
    with pytest.raises(Violation, match="without a proper name"), Targets(host).opened("A", ident, "web1"):
        pass
    assert not Path(host.folder).exists()


@pytest.mark.parametrize(
    ("domain", "reason"), [("../x", "cannot be a guest's name"), ("x" * 200, "paths would have .* bytes")]
)
def test_a_guest_s_name_that_is_no_file_s_is_the_peer_s_fault(host: Host, domain: str, reason: str) -> None:
    with pytest.raises(PeerError, match=reason), Targets(host).opened("A", IDENT, domain):
        pass


class Said:
    """What the other side has said."""

    def __init__(self, message: dict[str, Any] | None) -> None:
        self.message = message

    def hear(self, within: float | None = None) -> dict[str, Any] | None:
        return self.message


def heard(message: dict[str, Any] | None, shape: Any = WISH) -> dict[str, Any]:
    said: Any = Said(message)
    return hear(said, shape, 1)


@pytest.mark.parametrize(
    "message",
    [None, {}, {"tunnel": 1}, {"tunnel": "x" * 9}, {"tunnel": "a", "to": ["memory"]}, {"tunnel": "a", "domain": None}],
)
def test_a_message_of_another_form_is_a_violation(message: dict[str, Any] | None) -> None:
    with pytest.raises(Violation):
        heard(message)
    with pytest.raises(Violation):
        heard(message, OPENED)


def test_folders_that_differ_are_named(host: Host) -> None:
    paths = host.paths(IDENT, "web1")
    compared(paths, {"daemon": "", "memory": paths.memory, "disks": paths.disks}, "B")
    there = host._replace(folder="/elsewhere").paths(IDENT, "web1")
    with pytest.raises(StatepipeError, match=f"the sockets are in {host.folder} here, and in /elsewhere on B"):
        compared(paths, {"daemon": "", "memory": there.memory, "disks": there.disks}, "B")


def test_an_older_statepipe_hangs_up_and_that_is_explained() -> None:
    plan = ConnectionPlan(parse_address("tls://b:1"), (), Patience())

    def dial() -> Transport:
        ours, theirs = socket.socketpair()
        theirs.close()
        return SocketTransport(ours, "b", "b")

    with pytest.raises(PeerError) as raised, libvirt._opened(plan, lambda: (dial, nullcontext()), Timing(), {}):
        pass
    assert "an older one there does not know --libvirt" in str(raised.value.hint)


def test_a_host_that_cannot_be_reached_is_not_called_old() -> None:
    plan = ConnectionPlan(parse_address("tls://b:1"), (), Patience())

    def dial() -> Transport:
        raise PeerError("cannot connect to b", hint="start it")

    opened = libvirt._opened(plan, lambda: (dial, nullcontext()), Timing(), {})
    with pytest.raises(PeerError, match="cannot connect to b") as raised, opened:
        pass
    assert raised.value.hint == "start it"
