"""A monitor that serves somebody else, or nobody: each verb says what it waits for, and none waits for ever."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.hurried import hurried
from tests.qemu.harness import Guest, Qmp, run_statepipe, wait_for
from tests.qemu.loading import Saved
from tests.qemu.moving import Credentials, Running
from tests.qmpserver import SILENT, QmpServer

HELD = "no greeting at {}: another client may be connected; QEMU serves one at a time"


def test_every_verb_says_that_the_monitor_is_held_and_gives_up(
    tmp_path: Path, qemu72: str, state72: Saved, credentials: Credentials
) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest, ExitStack() as stack:
        stack.callback(Qmp(Path(guest.socket), 60).close)
        creds, port = credentials.of("source"), "tls://127.0.0.1:9"
        verbs = [
            ["save", "--qmp", guest.socket, tmp_path / "s"],
            ["load", "--qmp", guest.socket, state72.file],
            ["migrate", "--qmp", guest.socket, *creds, port],
            ["migrate", "--qmp", guest.socket, "tcp://127.0.0.1:9"],
            ["migrate", "--qmp", guest.socket, "exec:cat >/dev/null"],
            ["check", "--qmp", guest.socket, *creds, port],
            ["resolve", "--qmp", guest.socket],
            ["resolve", "--qmp", guest.socket, "here"],
            ["resolve", "--qmp", guest.socket, "elsewhere"],
        ]
        running = [stack.enter_context(Running(*words)) for words in verbs]
        for each, words in zip(running, verbs, strict=True):
            assert each.wait() == 6, (words, each.said)
            warning, error, hint, _ = each.said[-4:]
            assert sum("warning: no greeting" in line for line in each.said) == 1
            waits = HELD.format(guest.socket)
            assert warning == f"statepipe: {words[0]}: warning: {waits}"
            assert error == f"statepipe: {words[0]}: error: {waits} (waited 6 s)"
            assert "start QEMU with one more -qmp" in hint
        assert guest.run_state() == "running" and not (tmp_path / "s").exists()


def test_a_time_that_was_given_is_kept(tmp_path: Path, qemu72: str, state72: Saved, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest, closing(Qmp(Path(guest.socket), 60)):
        load = run_statepipe("load", "--timeout", "0.5", "--qmp", guest.socket, state72.file)
        assert load.returncode == 1 and f"error: {state72.file} was not loaded after 0.5 s" in load.stderr
        words = ["--qmp", guest.socket, *credentials.of("source"), "tls://127.0.0.1:9"]
        check = run_statepipe("check", "--timeout", "0.5", *words)
        assert check.returncode == 1 and "error: the check was not complete" in check.stderr


def test_a_held_monitor_that_is_let_go_in_time_serves(tmp_path: Path, qemu72: str) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest:
        other = Qmp(Path(guest.socket), 60)
        with Running("resolve", "--qmp", guest.socket) as looking:
            looking.wait_said("no greeting at")
            other.close()
            assert looking.wait() == 0, looking.said


def test_a_signal_ends_the_wait_for_a_greeting(tmp_path: Path, qemu72: str) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest, ExitStack() as stack:
        stack.callback(Qmp(Path(guest.socket), 60).close)
        with Running("save", "--qmp", guest.socket, tmp_path / "s") as saving:
            saving.wait_said("no greeting at")
            saving.send(signal.SIGTERM)
            assert saving.wait() == 143, saving.said
        assert saving.said == [*saving.said[:1], "statepipe: save: error: stopped by SIGTERM", ""]


@pytest.mark.parametrize("command", ["qmp_capabilities", "query-status", "query-migrate"])
def test_a_signal_ends_the_wait_for_an_answer(server: QmpServer, command: str) -> None:
    server.answers[command] = SILENT
    with Running("resolve", "--qmp", server.path) as looking:
        server.wait_for(command)
        looking.send(signal.SIGTERM)
        assert looking.wait() == 143, looking.said
    assert looking.said == ["statepipe: resolve: error: stopped by SIGTERM", ""]


def test_more_clients_than_may_wait_are_told_the_same(tmp_path: Path, qemu72: str) -> None:
    """Where the queue of a unix socket is full, the kernel refuses at once."""
    with Guest(tmp_path, qemu=qemu72, dirty=0) as guest, ExitStack() as stack:
        stack.callback(Qmp(Path(guest.socket), 60).close)
        running = [stack.enter_context(Running("resolve", "--qmp", guest.socket)) for _ in range(6)]
        for each in running:
            assert each.wait() == 6 and HELD.format(guest.socket) in each.said[-3], each.said


def test_a_cont_that_comes_late_is_waited_for_and_told_of(server: QmpServer) -> None:
    may_run = threading.Event()
    server.answers |= {
        "query-status": lambda: {"status": "running" if may_run.is_set() else "paused"},
        "cont": lambda: may_run.wait(60) and {},
    }
    with Running("resolve", "--qmp", server.path, "here") as deciding:
        deciding.wait_said("has not answered cont for 10 s; the guest runs as soon as it can, perhaps when a disk")
        may_run.set()
        assert deciding.wait() == 0, deciding.said
        assert "the guest is running here" in deciding.said[-2]


def test_a_qemu_that_stands_still_is_given_up_with_what_is_known(server: QmpServer, tmp_path: Path) -> None:
    """What it was told it may still do: so nothing is said of its guest but that it is to be looked at."""
    server.answers["query-migrate-capabilities"] = SILENT
    soon = hurried("qemu.connection.ANSWER=12")
    with Running("save", "--qmp", server.path, tmp_path / "s", program=soon) as saving:
        assert saving.wait() == 6
    first, *_, error, hint, _ = saving.said
    assert "has not answered query-migrate-capabilities for 10 s" in first
    assert "error: QEMU does not answer query-migrate-capabilities" in error
    assert f"check at QEMU at {server.path} whether" in hint


def test_receive_does_not_wait_for_a_monitor_that_is_held(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with (
        Guest(tmp_path, qemu=qemu72, dirty=0) as source,
        Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer", args=["-S"]) as target,
        ExitStack() as stack,
    ):
        stack.callback(Qmp(Path(target.socket), 60).close)
        words = ["receive", "--qmp", target.socket, *credentials.of("destination"), "tls://127.0.0.1:0"]
        receiving = stack.enter_context(Running(*words))
        port = receiving.wait_said(r"listening at port (\d+)")[1]
        where = f"tls://127.0.0.1:{port}"
        done = run_statepipe("migrate", "--qmp", source.socket, *credentials.of("source"), where)
        assert done.returncode == 5 and "no greeting at" in done.stderr, done
        assert receiving.wait() == 6 and "another client may be connected" in receiving.said[-3]
        assert wait_for("the guest", lambda: source.run_state() == "running")
