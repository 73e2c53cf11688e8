"""A migration by QEMU's word alone: whose migration it is that QEMU speaks of, and what is said of the guest."""

from __future__ import annotations

import socket
import sys
from contextlib import closing
from typing import Any

import pytest

from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.errors import QemuError
from statepipe.migration.migrate import MigrateRequest
from statepipe.migration.singlephase import migrate_directly, migrate_plainly, to_program
from statepipe.qemu.monitor import Monitor
from statepipe.session.options import ConnectionPlan
from tests.qmpserver import QmpServer
from tests.streams import whole

GUARD = [sys.executable, "-P", "-m", "statepipe.cli.guarding", "test", "sender"]


@pytest.fixture
def server(server: QmpServer) -> QmpServer:
    """Of a guest that runs."""
    off = [{"capability": name, "state": False} for name in ("events", "return-path")]
    server.answers |= {"query-status": {"status": "running"}, "query-migrate-capabilities": off}
    return server


def request(server: QmpServer, port: int = 1, **more: Any) -> MigrateRequest:
    return MigrateRequest(server.path, ConnectionPlan(parse_address(f"tcp://127.0.0.1:{port}"), [], Patience()), **more)


def directly(server: QmpServer, **more: Any) -> None:
    """To somebody who takes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        migrate_directly(request(server, there.getsockname()[1], **more), lambda text: None, GUARD)


@pytest.mark.parametrize(("status", "words"), [("failed", "failed"), ("cancelled", "was cancelled")])
def test_the_outcome_of_another_clients_migration_is_not_ours(server: QmpServer, status: str, words: str) -> None:
    """Ours broke off, and another client's has begun and completed since."""

    def migrate(stream: socket.socket) -> None:
        server.answers["query-migrate"] = {"status": "active"}
        for each in ("setup", "active", status, "setup", "active"):
            server.event(each)

    server.migrates(migrate)
    with pytest.raises(QemuError, match=f"the migration {words}: another client of QEMU's monitor") as caught:
        directly(server)
    assert (caught.value.hint or "").startswith("the guest is running here")
    assert "migrate_cancel" not in server.commands()


def test_the_end_of_an_earlier_migration_is_not_that_of_ours(server: QmpServer) -> None:
    with closing(Monitor(server.path)) as monitor:
        server.takes["migrate"] = lambda arguments: [server.event(each) for each in ("failed", "setup")] and {}
        monitor.migrate("fd:x")
        assert monitor.broken_off is None
        server.answers["query-migrate"] = {"status": "completed"}
        assert monitor.migration_outcome()["status"] == "completed"


@pytest.mark.parametrize("offline", [False, True])
def test_of_a_migration_that_qemu_refuses_nothing_is_said(server: QmpServer, offline: bool) -> None:
    """What QEMU says of one is another client's; a guest that was stopped for ours runs on."""
    server.answers |= {"migrate": server.refused, "query-migrate": {"status": "failed"}}
    server.answers |= {"stop": lambda: server.answers.update({"query-status": {"status": "paused"}}) or {}}
    server.answers |= {"cont": lambda: server.answers.update({"query-status": {"status": "running"}}) or {}}
    with pytest.raises(QemuError, match="QEMU refused migrate: no") as caught:
        directly(server, offline=offline)
    assert caught.value.hint == ("the guest is running here" if offline else "nothing was moved")
    assert ("cont" in server.commands()) == offline


def test_a_guest_that_another_client_moves_is_left_alone(server: QmpServer) -> None:
    server.answers |= {"query-migrate": {"status": "active"}, "migrate": server.breaks_off}
    with pytest.raises(QemuError, match="another client of QEMU's monitor has begun a migration, which is active"):
        directly(server)
    assert not {"migrate", "migrate_cancel", "migrate-set-capabilities"} & set(server.commands())


@pytest.mark.parametrize(
    ("then", "said"),
    [("exit 3", "ended with status 3"), ("exec >&- <&-; exec sleep 60", "still ran after 0.1 s, and was ended")],
)
def test_a_program_that_fails_once_the_guest_has_gone_is_warned_of(
    server: QmpServer, then: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in then:
        monkeypatch.setattr("statepipe.migration.singlephase.LINGERING", 0.1)

    def migrate(stream: socket.socket) -> None:
        stream.sendall(whole())
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(100) == b"loaded"
        server.answers |= {"query-status": {"status": "postmigrate"}, "query-migrate": {"status": "completed"}}

    server.migrates(migrate)
    told: list[str] = []
    far = to_program("cat >/dev/null; printf loaded; " + then)
    report = migrate_plainly(request(server), far, "exec:it", told.append, GUARD)
    assert report.peer == "exec:it"
    assert [text for text in told if f"{said}, after QEMU had reported that the guest has moved" in text] == told
    assert len(told) == 1
