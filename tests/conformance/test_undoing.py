"""What a save or a migration in one phase has done to a guest is undone, and never more than that."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import QemuError, QemuGone, StatepipeError, TruncatedError
from statepipe.qemu.monitor import Monitor
from statepipe.recovery.guardian import NOTE_LIMIT, Guardian
from statepipe.recovery.rescue import recover_destination, recover_sender, recover_source, socket_of
from statepipe.recovery.undoing import Undoing, undone
from tests.qmpserver import QmpServer, qmp_server

BEFORE = {"capabilities": {"events": False}, "parameters": {"max-bandwidth": 1}}
GUARD = [sys.executable, "-P", "-m", "statepipe.cli.guarding", "test", "sender"]


def killed(server: QmpServer, **more: object) -> dict[str, object]:
    """What the guardian knows of a save that was killed, of a guest that ran."""
    known = {"qmp": server.path, "runs": True, "was": "running", "before": BEFORE, "socket": socket_of(server.path)}
    return known | more


@pytest.mark.parametrize("other", [None, [1, 2, 3]], ids=["tcp", "made anew"])
@pytest.mark.parametrize("recover", [recover_sender, recover_source])
def test_a_qemu_that_may_be_another_is_left_as_it_is(
    server: QmpServer, recover: Callable[..., str], other: list[int] | None
) -> None:
    """Its process is not known, and who listens at its socket now may have a guest of its own that stands still."""
    migration(server, "paused", "none")
    known = killed(server, stopped=True, states=["PRECOPY"], state="PRECOPY", socket=other)
    with pytest.raises(QemuError, match=r"which QEMU listens at .* is not known") as caught:
        recover(known, print)
    assert "info status" in (caught.value.hint or "")
    assert not {"cont", "migrate-set-capabilities", "migrate_cancel"} & set(server.commands())


@pytest.mark.parametrize("recover", [recover_sender, recover_source, recover_destination])
def test_a_qemu_that_took_the_name_of_a_socket_is_left_as_it_is(server: QmpServer, recover: Callable[..., str]) -> None:
    """The QEMU that was saved or sent lives, but another process listens at its socket's name, with another guest."""
    migration(server, "paused", "none")
    state = "STARTING" if recover is recover_destination else "PRECOPY"
    with subprocess.Popen(["sleep", "600"]) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            known = killed(server, stopped=True, states=[state], state=state, pid=process.pid, pidfd=pidfd)
            with pytest.raises(QemuError, match=rf"another process than its QEMU \({process.pid}\) listens") as caught:
                recover(known, print)
        finally:
            os.close(pidfd)
            process.kill()
    assert f"at a monitor of process {process.pid}, see whether the guest runs" in (caught.value.hint or "")
    assert not {"cont", "migrate-set-capabilities", "migrate_cancel"} & set(server.commands())


def test_a_socket_that_was_made_anew_is_another(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(path)
        before = socket_of(path)
        assert before == socket_of(f"unix:{path},server=on,wait=off") and before is not None
        os.unlink(path)
        assert socket_of(path) is None
        with socket.socket(socket.AF_UNIX) as second:
            second.bind(path)
            assert socket_of(path) not in (before, None)
    assert socket_of("tcp:localhost:1") is None


def migration(server: QmpServer, state: str, status: str) -> None:
    """QEMU's run state, and what became of its migration."""
    server.answers |= {"query-status": {"status": state}, "query-migrate": {"status": status}}


@pytest.mark.parametrize(
    ("known", "state", "status", "resumes"),
    [
        ({"stopped": True}, "paused", "failed", True),
        ({"stopped": True}, "paused", "none", True),
        ({"stopped": True}, "paused", "completed", True),
        ({"stopped": True}, "postmigrate", "failed", True),
        ({"stopped": True}, "postmigrate", "cancelled", True),
        ({}, "paused", "failed", False),
        ({"stopped": True, "runs": False}, "paused", "failed", False),
    ],
)
def test_a_guest_that_stands_still_is_run_only_if_it_was_stopped_for_the_save(
    server: QmpServer, known: dict[str, object], state: str, status: str, resumes: bool
) -> None:
    """Not where somebody else had stopped it. QEMU says completed of an earlier migration until another begins, and
    before 8.1 postmigrate of a guest that was stopped and whose migration failed."""
    migration(server, state, status)
    assert recover_sender(killed(server, **known), print).startswith(f"the guest here is {state}")
    commands = server.commands()
    assert ("cont" in commands) == resumes
    assert "migrate_cancel" not in commands, "it may be another's migration"


@pytest.mark.parametrize("known", [{}, {"stopped": True}])
def test_a_guest_that_was_sent_is_not_run_again(server: QmpServer, known: dict[str, object]) -> None:
    """By the save that was killed, or by another client since: it may run elsewhere."""
    migration(server, "postmigrate", "completed")
    with pytest.raises(QemuError, match="has sent all of the guest and keeps it stopped") as caught:
        recover_sender(killed(server, **known), print)
    assert caught.value.hint is not None and "only if it does not: statepipe resolve" in caught.value.hint
    commands = server.commands()
    assert "cont" not in commands
    assert "migrate-set-capabilities" in commands, "its settings are as before all the same"


@pytest.mark.parametrize(
    ("states", "status", "resumes"),
    [
        (["PRECOPY"], "completed", False),
        (["PRECOPY", "PROMISED"], "completed", False),
        (["PRECOPY", "ASKED"], "completed", False),
        (["PRECOPY", "CANCELLING"], "completed", False),
        (["PRECOPY", "ASKED", "CANCELLING", "RESUMING"], "completed", False),
        (["PRECOPY", "ASKED"], "cancelled", True),
        (["PRECOPY", "ASKED", "HANDING", "HANDED"], "completed", True),
        (["PRECOPY", "ASKED", "HANDING", "CANCELLING"], "completed", True),
    ],
)
def test_before_the_last_bytes_no_migration_of_ours_has_sent_a_guest(
    server: QmpServer, states: list[str], status: str, resumes: bool
) -> None:
    migration(server, "postmigrate", status)
    known = killed(server, states=states, state=states[-1])
    if resumes:
        assert recover_source(known, print).startswith("the migration is undone")
    else:
        with pytest.raises(QemuError, match="has sent all of the guest and keeps it stopped"):
            recover_source(known, print)
    commands = server.commands()
    assert ("cont" in commands) == resumes
    assert "migrate-set-capabilities" in commands, "its settings are as before all the same"


def test_a_migration_of_another_client_is_not_cancelled(server: QmpServer) -> None:
    """That of the statepipe that was killed ends by itself, unless QEMU waits to be told to go on."""
    answers = itertools.chain([{"status": "active"}, {"status": "active"}], itertools.repeat({"status": "failed"}))
    server.answers |= {"query-status": {"status": "running"}, "query-migrate": lambda: next(answers)}
    recover_source(killed(server, states=["PRECOPY"], state="PRECOPY"), print)
    assert "migrate_cancel" not in server.commands()
    answers = itertools.chain([{"status": "pre-switchover"}], itertools.repeat({"status": "cancelled"}))
    recover_source(killed(server, states=["PRECOPY", "ASKED"], state="ASKED"), print)
    assert "migrate_cancel" in server.commands()


def test_a_guest_that_was_sent_is_run_only_where_that_is_meant(server: QmpServer) -> None:
    migration(server, "postmigrate", "completed")
    with closing(Monitor(server.path)) as monitor:
        with pytest.raises(QemuError, match="has sent all of the guest"):
            monitor.resume()
        assert "cont" not in server.commands()
        monitor.resume(sent=True)
        migration(server, "postmigrate", "failed")
        monitor.resume()
    assert server.commands().count("cont") == 2


@contextmanager
def saving(server: QmpServer, before: Mapping[str, Any] = BEFORE) -> Iterator[tuple[Guardian, Undoing]]:
    """A save of a guest that ran, once its settings are about to be changed."""
    with (
        Guardian(GUARD) as guardian,
        closing(Monitor(server.path)) as monitor,
        undone(guardian, monitor, server.path) as undoing,
    ):
        undoing.begin("running", before)
        yield guardian, undoing


@pytest.mark.parametrize(
    ("state", "status", "resumes"),
    [
        ("paused", "failed", True),
        ("postmigrate", "failed", True),  # before 8.1
        ("postmigrate", "completed", False),
        ("io-error", "failed", False),  # not what `stop` makes of it
        ("running", "failed", False),
    ],
)
def test_a_guest_that_was_stopped_for_a_stream_is_resumed_once_that_has_failed(
    server: QmpServer, state: str, status: str, resumes: bool
) -> None:
    with saving(server) as (_, undoing):
        undoing.stop_guest()
        undoing.migration.start(0)
        migration(server, state, status)
        error = StatepipeError("the disk is full", hint="make room")
        assert undoing.undo(error) is error
        assert error.hint is not None and error.hint.endswith(f"the guest is {state} here; make room")
        assert f"QEMU reports that the migration {status}" in error.hint
        commands = server.commands()
        assert ("cont" in commands) == resumes and "migrate_cancel" not in commands
        undoing.over()


def test_a_guest_that_was_stopped_by_others_is_not_resumed(server: QmpServer) -> None:
    migration(server, "paused", "failed")
    with saving(server) as (_, undoing):
        undoing.migration.start(0)
        undoing.undo(StatepipeError("the disk is full"))
        assert "cont" not in server.commands()
        undoing.over()


@pytest.mark.parametrize(("cancels", "status"), [(True, "active"), (False, "active"), (True, "completed")])
def test_only_a_migration_that_is_under_way_is_cancelled(server: QmpServer, cancels: bool, status: str) -> None:
    first = itertools.chain([{"status": status}], itertools.repeat({"status": "failed"}))
    server.answers |= {"query-status": {"status": "running"}, "query-migrate": lambda: next(first)}
    with saving(server) as (_, undoing):
        undoing.migration.start(0)
        undoing.undo(StatepipeError("the disk is full"), cancels=cancels)
        assert ("migrate_cancel" in server.commands()) == (cancels and status == "active")
        undoing.over()


def test_a_stream_that_ends_with_qemu_is_reported_as_that(server: QmpServer) -> None:
    with saving(server) as (_, undoing):
        undoing.migration.start(0)
        server.answers["query-migrate"] = server.breaks_off
        cause = undoing.undo(TruncatedError("the stream is cut short", hint="perhaps it was cancelled"))
        assert isinstance(cause, QemuGone) and cause.hint == "the stream is cut short"
        undoing.over()


def test_what_is_not_seen_to_be_undone_is_left_to_the_guardian(server: QmpServer) -> None:
    server.answers |= {"query-status": {"status": "paused"}}
    with pytest.raises(StatepipeError) as caught, saving(server) as (guardian, undoing):
        undoing.stop_guest()
        raise StatepipeError("the disk is full")
    assert f"guardian (process {guardian.pid}) restores the rest once QEMU answers" in (caught.value.hint or "")
    os.waitpid(guardian.pid, 0)
    assert "cont" in server.commands()


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
    assert "migrate-set-parameters" in server.commands()


def test_a_monitor_that_broke_off_is_no_qemu_that_has_ended(server: QmpServer) -> None:
    """Where its process is not known, as behind a relay, nobody has seen what became of the guest."""
    with pytest.raises(StatepipeError) as caught, saving(server):
        server.answers["query-status"] = server.breaks_off
        raise StatepipeError("the disk is full")
    assert "guardian (process " in (caught.value.hint or "")


def test_settings_that_are_longer_than_the_guardian_reads_are_refused_before_they_are_changed(
    server: QmpServer,
) -> None:
    long = {"capabilities": {}, "parameters": {"tls-creds": "x" * NOTE_LIMIT}}
    with pytest.raises(StatepipeError, match=f"the guardian keeps at most {NOTE_LIMIT}"), saving(server, long):
        raise AssertionError


def test_nothing_is_done_while_qemu_migrates(server: QmpServer) -> None:
    """Though all is as it was: a live save's, or one that QEMU sends by itself."""
    migration(server, "running", "active")
    with pytest.raises(StatepipeError) as caught, saving(server) as (guardian, undoing):
        undoing.migration.start(0)
        raise StatepipeError("the disk is full")
    assert "guardian (process " in (caught.value.hint or "")
    os.kill(guardian.pid, signal.SIGKILL)
    os.waitpid(guardian.pid, 0)


def test_a_guardian_that_has_ended_is_not_promised(server: QmpServer) -> None:
    server.answers |= {"query-status": {"status": "paused"}}
    with pytest.raises(StatepipeError) as caught, saving(server) as (guardian, _):
        os.kill(guardian.pid, signal.SIGKILL)
        os.waitid(os.P_PID, guardian.pid, os.WEXITED | os.WNOWAIT)
        raise StatepipeError("the disk is full")
    assert "guardian has ended too: look at QEMU" in (caught.value.hint or "")
    os.waitpid(guardian.pid, 0)


@contextmanager
def guardian_of(known: Mapping[str, object], stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """The guardian of a statepipe that knew so much, and was killed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [*GUARD, str(theirs.fileno())]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, pass_fds=[theirs.fileno()]) as process:
            ours.send(json.dumps({"state": "SENDING", "fds": [], **known}).encode())
            ours.close()
            theirs.close()
            yield process
            process.kill()


def test_of_a_migration_that_succeeded_nothing_is_said_to_be_wrong(server: QmpServer) -> None:
    migration(server, "postmigrate", "completed")
    with guardian_of(killed(server), subprocess.PIPE) as process:
        said = process.communicate(timeout=60)[1].decode().splitlines()
    assert said[0].endswith(
        "statepipe ended unexpectedly: QEMU has sent all of the guest and keeps it stopped (postmigrate)"
    )
    assert said[1].startswith("statepipe: hint: if it runs elsewhere now: statepipe resolve")


def test_a_guest_does_not_wait_for_who_reads_what_is_said_of_it(server: QmpServer) -> None:
    """Standard error is a pipe that is full."""
    answers = itertools.chain([{"status": "active"}], itertools.repeat({"status": "failed"}))
    server.answers |= {"query-status": {"status": "paused"}, "query-migrate": lambda: next(answers)}
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
        with guardian_of(killed(server, stopped=True), writing):
            while server.heard.get(timeout=30) != "cont":
                continue
    finally:
        os.close(reading)
        os.close(writing)


def test_a_qemu_that_was_killed_too_is_said_to_have_ended(server: QmpServer) -> None:
    """Whoever listens at its socket by now."""
    folder = os.path.dirname(server.path)
    with subprocess.Popen(["true"]) as process:
        ended = os.pidfd_open(process.pid)
        lives = os.pidfd_open(os.getpid())
        server.close()
        os.unlink(server.path)
        try:
            process.wait()
            known = killed(server, pidfd=ended, states=["HANDED"], state="HANDED")
            assert recover_sender(known, print) == recover_source(known, print)
            assert recover_sender(known, print) == "QEMU here has ended, and its guest with it"
            with qmp_server(folder) as another:  # listens where QEMU did, with a guest of its own
                another.answers["query-status"] = {"status": "paused"}
                known |= {"stopped": True}
                assert recover_sender(known, print) == recover_source(known, print)
                with pytest.raises(QemuError, match="whether the guest ran here is not known"):
                    recover_destination(known | {"state": "STARTING", "pid": 0}, print)
                assert another.commands() == []
            with pytest.raises(QemuError, match="no QMP monitor answers"):
                recover_sender(known | {"pidfd": lives}, print)
        finally:
            os.close(ended)
            os.close(lives)
