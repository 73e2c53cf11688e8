"""A save that fails holds no QEMU up, and what came too late takes nothing away."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import IntegrityError, QemuError
from statepipe.pipeline.signals import as_exceptions
from statepipe.stages.packing import choose
from statepipe.state.save_qmp import Outcome, SaveRequest, save_by_qmp
from tests.qmpserver import QmpServer
from tests.statefiles import noisy_stream

GUARD = [sys.executable, "-P", "-m", "statepipe.cli.guarding", "test", "sender"]


@pytest.fixture
def server(server: QmpServer) -> QmpServer:
    """Of a guest that runs."""
    server.answers |= {"query-status": {"status": "running"}, "query-named-block-nodes": []}
    return server


def save(server: QmpServer, path: str, then: str = "stay") -> Outcome:
    request = SaveRequest(path, choose().packing(lambda: 0.0), (), (), then)
    return save_by_qmp(server.path, request, lambda text: None, GUARD)


def test_a_save_that_fails_does_not_wait_for_a_qemu_that_waits_for_it(
    server: QmpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU answers nothing while its last bytes are not taken."""
    monkeypatch.setattr("statepipe.state.rounds.LOOK", 0.01)
    asked, let_go, in_time = threading.Event(), threading.Event(), list[bool]()

    def answer() -> dict[str, Any]:
        asked.set()
        in_time.append(let_go.wait(3))
        return {"status": "failed"}

    def send(stream: socket.socket) -> None:
        server.answers["query-migrate"] = answer
        assert asked.wait(30)
        with suppress(OSError):
            while True:
                stream.sendall(bytes(1 << 16))  # no stream of QEMU's: a stage fails
        let_go.set()

    server.migrates(send)
    with pytest.raises(IntegrityError) as caught:
        save(server, str(tmp_path / "s"))
    assert all(in_time)
    assert "QEMU reports that the migration failed; the guest is running" in (caught.value.hint or "")


def completes(server: QmpServer, stream: socket.socket) -> None:
    """Send all, and say so."""
    stream.sendall(noisy_stream())
    stream.shutdown(socket.SHUT_WR)
    server.answers |= {"query-status": {"status": "postmigrate"}, "query-migrate": {"status": "completed"}}


@pytest.mark.parametrize("refused", [False, True], ids=["", "QEMU refuses to quit"])
def test_a_signal_that_comes_once_all_is_saved_denies_nothing(server: QmpServer, tmp_path: Path, refused: bool) -> None:
    """It is QEMU's refusal that is told."""

    def quit_late() -> Any:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return server.refused() if refused else {}

    server.migrates(lambda stream: completes(server, stream))
    server.answers["quit"] = quit_late
    path = str(tmp_path / "s")
    with as_exceptions():
        if refused:
            with pytest.raises(QemuError, match="QEMU refused quit: no") as caught:
                save(server, path, "quit")
            assert f"{path} holds the whole state" in (caught.value.hint or "")
        else:
            assert save(server, path, "quit").run_state == "ended"
            signal.raise_signal(signal.SIGINT)  # nor one that comes later still
    assert Path(path).exists()


def test_a_guest_that_another_client_moves_is_not_saved(server: QmpServer, tmp_path: Path) -> None:
    server.answers |= {"query-migrate": {"status": "active"}, "migrate": server.breaks_off}
    with pytest.raises(QemuError, match="another client of QEMU's monitor has begun a migration, which is active"):
        save(server, str(tmp_path / "s"))
    assert not {"migrate", "migrate_cancel", "migrate-set-capabilities"} & set(server.commands())
