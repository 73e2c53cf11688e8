"""A guest that QEMU was told to run is not ended because somebody has sent us a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from statepipe.errors import InterruptedBySignal
from statepipe.pipeline.signals import as_exceptions
from statepipe.qemu.guard import Said
from statepipe.state.load_qmp import Telling, load_into_new, load_into_waiting
from tests import standin
from tests.qmpserver import SILENT, QmpServer
from tests.statefiles import NO_KEYS, cut, noisy_stream, state_file


@pytest.fixture
def state(tmp_path: Path) -> str:
    """A state file of a guest that ran."""
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(noisy_stream(), 2), header={"machine": "pc", "ram": 1 << 27}))
    return str(path)


NOBODY = Telling(lambda text: None, lambda text: None, lambda: None)

ROWS = pytest.mark.parametrize(
    ("now", "is_kept", "said"),
    [
        ("running", True, "the state is loaded, and the guest is running"),
        ("-", True, "QEMU was told to run the guest and has not answered: it may run at any moment"),
        ("paused", False, None),
    ],
)


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
    def load(stream: socket.socket) -> None:
        while stream.recv(1 << 16):
            continue
        server.answers |= {"query-status": {"status": "paused"}, "query-migrate": {"status": "completed"}}

    def run() -> object:
        server.answers["query-status"] = {"status": now} if now != "-" else SILENT
        os.kill(os.getpid(), number)
        return SILENT

    server.migrates(load, "migrate-incoming")
    server.answers |= {"query-status": {"status": "inmigrate"}, "query-named-block-nodes": [], "cont": run}
    with pytest.raises(InterruptedBySignal) as caught, as_exceptions():
        load_into_waiting(state, server.path, NO_KEYS, Said(), NOBODY)
    hint = ended(number, said, caught.value)
    assert said is None or f"look: statepipe resolve --qmp {server.path}; " in hint
    heard = server.commands()
    assert ("quit" not in heard) == is_kept


@ROWS
def test_so_does_one_of_our_own_that_is_left_to_itself(state: str, now: str, is_kept: bool, said: str | None) -> None:
    command = ["env", f"PYTHONPATH={Path(__file__).parents[3]}", sys.executable, standin.__file__, now]
    with pytest.raises(InterruptedBySignal) as caught, as_exceptions():
        load_into_new(state, command, NO_KEYS, Said(), NOBODY, detach=True)
    hint = ended(signal.SIGTERM, said, caught.value)
    if is_kept:
        found = re.search(r"look at QEMU, process (\d+): .*: kill (\d+)$", hint)
        assert found is not None and found[1] == found[2]
        os.kill(int(found[1]), signal.SIGKILL)  # it is there
        os.waitpid(int(found[1]), 0)
