"""What a save or a migration in one phase has done to a guest is undone, and never more than that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from statepipe.commands.guardian import Guardian, recover_sender, recover_source
from statepipe.commands.undoing import Undoing, undone
from statepipe.errors import QemuError, StatepipeError
from statepipe.qemu.monitor import Monitor
from tests.qmpserver import QmpServer, qmp_server

BEFORE = {"capabilities": {"events": False}, "parameters": {"max-bandwidth": 1}}
GUARD = [sys.executable, "-P", "-m", "statepipe.cli.guarding", "test", "sender"]


@pytest.fixture
def server() -> Iterator[QmpServer]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder, qmp_server(folder) as server:
        yield server


def heard(server: QmpServer) -> list[str]:
    """Each command so far."""
    return [server.heard.get() for _ in range(server.heard.qsize())]


def killed(server: QmpServer, **more: object) -> dict[str, object]:
    """What the guardian knows of a save that was killed, of a guest that ran."""
    return {"state": "SENDING", "qmp": server.path, "pid": 0, "runs": True, "was": "running", "before": BEFORE} | more


STOPPED_BY_US = [
    {"stopped": True, "earlier": ""},
    {"stopped": True, "earlier": "completed"},
    {"stopped": True, "earlier": "none"},
]


@pytest.mark.parametrize(
    ("known", "status", "resumes"),
    [
        ({"stopped": True, "earlier": ""}, "failed", True),
        ({"stopped": True, "earlier": "none"}, "none", True),
        ({"stopped": True, "earlier": "completed"}, "completed", True),
        ({"stopped": True, "earlier": "none"}, "completed", False),
        ({"stopped": True, "earlier": ""}, "completed", False),
        ({"earlier": ""}, "failed", False),
        ({"stopped": True, "earlier": "", "runs": False}, "failed", False),
    ],
)
def test_a_guest_that_stands_still_is_run_only_if_it_was_stopped_for_the_save(
    server: QmpServer, known: dict[str, object], status: str, resumes: bool
) -> None:
    """Not where a migration that is none of ours was completed meanwhile, nor where somebody else had stopped it."""
    server.answers |= {"query-status": {"status": "paused"}, "query-migrate": {"status": status}}
    assert recover_sender(killed(server, **known), print).startswith("the guest here is paused")
    commands = heard(server)
    assert ("cont" in commands) == resumes
    assert "migrate_cancel" not in commands, "it may be another's migration"


@pytest.mark.parametrize("known", STOPPED_BY_US)
def test_a_guest_that_was_sent_is_not_run_again(server: QmpServer, known: dict[str, object]) -> None:
    """By the save that was killed, or by another client since: it may run elsewhere."""
    server.answers |= {"query-status": {"status": "postmigrate"}, "query-migrate": {"status": "completed"}}
    with pytest.raises(QemuError, match="has sent all of the guest and holds it still") as caught:
        recover_sender(killed(server, **known), print)
    assert caught.value.hint is not None and "only if it does not: statepipe resolve" in caught.value.hint
    commands = heard(server)
    assert "cont" not in commands
    assert "migrate-set-capabilities" in commands, "its settings are as before all the same"


@pytest.mark.parametrize(("state", "resumes"), [("PRECOPY", False), ("ASKED", False), ("HANDED", True)])
def test_before_the_last_bytes_no_migration_of_ours_has_sent_a_guest(
    server: QmpServer, state: str, resumes: bool
) -> None:
    server.answers |= {"query-status": {"status": "postmigrate"}, "query-migrate": {"status": "completed"}}
    known = killed(server, state=state)
    if resumes:
        assert recover_source(known, print).startswith("the migration is undone")
    else:
        with pytest.raises(QemuError, match="has sent all of the guest and holds it still"):
            recover_source(known, print)
    assert ("cont" in heard(server)) == resumes


@contextmanager
def saving(server: QmpServer) -> Iterator[tuple[Guardian, Undoing]]:
    """A save of a guest that ran, once its settings are about to be changed."""
    with (
        Guardian(GUARD) as guardian,
        closing(Monitor(server.path)) as monitor,
        undone(guardian, monitor, server.path) as undoing,
    ):
        undoing.begin("running", BEFORE)
        yield guardian, undoing


def test_what_is_not_seen_to_be_undone_is_left_to_the_guardian(server: QmpServer) -> None:
    server.answers |= {"query-status": {"status": "paused"}}
    with pytest.raises(StatepipeError) as caught, saving(server) as (guardian, undoing):
        undoing.stops()
        raise StatepipeError("the disk is full")
    assert f"guardian (process {guardian.pid}) sets right once QEMU answers" in (caught.value.hint or "")
    os.waitpid(guardian.pid, 0)
    assert "cont" in heard(server)


def test_what_is_seen_to_be_undone_is_settled(server: QmpServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.answers |= {"query-status": {"status": "running"}}
    with pytest.raises(StatepipeError) as caught, saving(server):
        raise StatepipeError("the disk is full")
    assert caught.value.hint is None and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("capabilities", "parameters"),
    [([{"capability": "events", "state": True}], {"max-bandwidth": 1}), ([], {"max-bandwidth": 0})],
)
def test_settings_that_are_not_as_before_are_left_to_the_guardian(
    server: QmpServer, capabilities: list[dict[str, object]], parameters: dict[str, int]
) -> None:
    server.answers |= {
        "query-status": {"status": "running"},
        "query-migrate-capabilities": capabilities,
        "query-migrate-parameters": parameters,
    }
    with pytest.raises(StatepipeError) as caught, saving(server) as (guardian, _):
        raise StatepipeError("the disk is full")
    assert "guardian (process " in (caught.value.hint or "")
    os.waitpid(guardian.pid, 0)
    assert "migrate-set-parameters" in heard(server)


def test_a_qemu_that_was_killed_too_is_said_to_have_ended(server: QmpServer) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    server.close()
    known = killed(server, pid=process.pid)
    assert recover_sender(known, print) == recover_source(known | {"state": "HANDED"}, print)
    assert recover_sender(known, print) == "QEMU here has ended, and its guest with it"
    with pytest.raises(QemuError, match="no QMP monitor answers"):
        recover_sender(known | {"pid": os.getpid()}, print)
