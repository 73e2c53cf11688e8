"""A guest that QEMU was told to run is not ended because somebody has sent us a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statepipe.errors import InterruptedBySignal, QemuError, QemuGone, StatepipeError
from statepipe.pipeline.signals import as_exceptions
from statepipe.qemu.guard import Said
from statepipe.qemu.overlays import Clone
from statepipe.state.load_qmp import Telling, load_into_new, load_into_waiting
from tests import standin
from tests.qmpserver import SILENT, QmpServer, Raw
from tests.statefiles import NO_KEYS, cut, noisy_stream, state_file


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A state file of a guest that ran."""
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(noisy_stream(), 2), header={"machine": "pc", "ram": 1 << 27}))
    return str(path)


STANDIN = ["env", f"PYTHONPATH={Path(__file__).parents[3]}", sys.executable, standin.__file__]

NOBODY = Telling(lambda text: None, lambda text: None, lambda: None)

ROWS = pytest.mark.parametrize(
    ("now", "is_kept", "said"),
    [
        ("running", True, "the state is loaded, and the guest is running"),
        ("-", True, "QEMU was told to run the guest and has not answered: it may run at any moment"),
        ("io-error", True, "the state is loaded, and the guest is io-error"),  # it ran, and wrote
        ("paused", False, None),
    ],
)


def loads(server: QmpServer, run: Callable[[], object]) -> None:
    """It takes a state, and does `run` at `cont`."""

    def load(stream: socket.socket) -> None:
        while stream.recv(1 << 16):
            continue
        server.answers |= {"query-status": {"status": "paused"}, "query-migrate": {"status": "completed"}}

    server.migrates(load, "migrate-incoming")
    server.answers |= {"query-status": {"status": "inmigrate"}, "query-named-block-nodes": [], "cont": run}


def ended(number: signal.Signals, said: str | None, error: InterruptedBySignal) -> str:
    """Its hint, of an error that says what is known."""
    assert error.exit_code == 128 + number and str(error) == f"stopped by {number.name}"
    assert (said is None) == (error.hint is None) and (said or "") in (error.hint or "")
    return error.hint or ""


@ROWS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_qemu_that_was_told_to_run_its_guest_stays(
    server: QmpServer, state: str, number: signal.Signals, now: str, is_kept: bool, said: str | None
) -> None:
    def run() -> object:
        server.answers["query-status"] = {"status": now} if now != "-" else SILENT
        os.kill(os.getpid(), number)
        return SILENT

    loads(server, run)
    with pytest.raises(InterruptedBySignal) as caught, as_exceptions():
        load_into_waiting(state, server.path, NO_KEYS, Said(), NOBODY)
    hint = ended(number, said, caught.value)
    assert said is None or f"look: statepipe resolve --qmp {server.path}; " in hint
    heard = server.commands()
    assert ("quit" not in heard) == is_kept


@ROWS
def test_so_does_one_of_our_own_that_is_left_to_itself(state: str, now: str, is_kept: bool, said: str | None) -> None:
    with pytest.raises(InterruptedBySignal) as caught, as_exceptions():
        load_into_new(state, [*STANDIN, now], NO_KEYS, Said(), NOBODY, Clone(), detach=True)
    hint = ended(signal.SIGTERM, said, caught.value)
    if is_kept:
        found = re.search(r"look at QEMU, process (\d+): .*: kill (\d+)$", hint)
        assert found is not None and found[1] == found[2]
        os.kill(int(found[1]), signal.SIGKILL)  # it is there
        os.waitpid(int(found[1]), 0)


NO_JSON = Raw(b'{"return": [}\n')


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lives is not waited for long."""
    monkeypatch.setattr("statepipe.state.load_qmp.DYING", 50)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("signalled", [False, True])
def test_one_whose_monitor_breaks_off_as_it_runs_its_guest_stays(
    server: QmpServer, state: str, signalled: bool
) -> None:
    def run() -> object:
        if signalled:
            server.answers["query-status"] = NO_JSON
            os.kill(os.getpid(), signal.SIGTERM)
            return SILENT
        return NO_JSON

    loads(server, run)
    with pytest.raises(InterruptedBySignal if signalled else QemuGone) as caught, as_exceptions():
        load_into_waiting(state, server.path, NO_KEYS, Said(), NOBODY)
    assert caught.value.exit_code == (128 + signal.SIGTERM if signalled else 6)
    look = f"it may run at any moment; look: statepipe resolve --qmp {server.path}; "
    assert look in (caught.value.hint or "")
    assert "quit" not in server.commands()


@pytest.mark.usefixtures("soon")
def test_one_of_our_own_whose_monitor_breaks_off_stays_if_it_lives(state: str) -> None:
    with pytest.raises(QemuGone) as caught:
        load_into_new(state, [*STANDIN, "broken"], NO_KEYS, Said(), NOBODY, Clone(), detach=True)
    found = re.search(r"it may run at any moment; look at QEMU, process (\d+): ", caught.value.hint or "")
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)  # it is there
    assert os.waitstatus_to_exitcode(os.waitpid(int(found[1]), 0)[1]) == -signal.SIGKILL  # and was not killed before


def test_one_that_has_ended_as_it_was_told_to_run_its_guest_is_said_to_have_ended(state: str) -> None:
    with pytest.raises(QemuError, match="QEMU ended with status 3 while loading"):
        load_into_new(state, [*STANDIN, "ended"], NO_KEYS, Said(), NOBODY, Clone(), detach=True)


def test_a_guest_that_runs_is_not_ended_because_its_run_state_cannot_be_reported(state: str, tmp_path: Path) -> None:
    told: list[str] = []
    tell = Telling(told.append, lambda text: None, lambda: None)
    script = tmp_path / "qemu"
    script.write_text(f'#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {" ".join(STANDIN)} "$@"\n')
    script.chmod(0o700)
    assert load_into_new(state, [str(script), "odd"], NO_KEYS, Said(), tell, Clone(), detach=True) == 0
    assert [text for text in told if "the state is loaded, but QEMU did not report the guest's run state" in text]
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGKILL)  # it is there
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("detach", [True, False])
def test_a_guest_that_runs_is_not_ended_because_of_what_hears_of_it(state: str, detach: bool) -> None:
    """Whatever fails once it is loaded is told, with the process to look at."""

    def loaded(text: str) -> None:
        raise StatepipeError("no space left for a log")

    with pytest.raises(StatepipeError, match="no space left for a log") as caught, as_exceptions():
        tell = Telling(lambda text: None, loaded, lambda: None)
        load_into_new(state, [*STANDIN, "calm"], NO_KEYS, Said(), tell, Clone(), detach=detach)
    found = re.search(r"the state is loaded: look at QEMU, process (\d+)", caught.value.hint or "")
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)  # it is there
    assert os.waitstatus_to_exitcode(os.waitpid(int(found[1]), 0)[1]) == -signal.SIGKILL
