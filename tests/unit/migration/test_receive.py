"""One who serves, where this host cannot have it so: nobody is started, and nothing spins."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from statepipe.ends.address import parse_address
from statepipe.ends.net import Patience
from statepipe.errors import InterruptedBySignal, UsageError
from statepipe.migration.negotiation import MIGRATE, Offer
from statepipe.migration.receive import Host, ReceiveRequest, receive
from statepipe.qemu.monitor import Monitor
from statepipe.recovery.guardian import Guardian
from statepipe.session.options import ConnectionPlan
from tests.qmpserver import QmpServer


def test_a_guardian_that_cannot_be_started_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program is gone, as in the midst of an upgrade."""
    monkeypatch.setattr("statepipe.migration.receive.AGAIN", 0.1)
    refused: list[tuple[float, str]] = []

    def note(error: Exception) -> None:
        refused.append((time.monotonic(), str(error)))
        if len(refused) == 2:
            raise InterruptedBySignal(15)

    plan = ConnectionPlan(parse_address(f"unix://{tmp_path}/in"), (), Patience())
    with pytest.raises(InterruptedBySignal):
        receive(ReceiveRequest(plan, lambda words: (), guests=1), lambda text: None, note, ["/nowhere/guardian"], ())
    assert all("/nowhere/guardian" in words for _, words in refused)
    assert refused[1][0] - refused[0][0] >= 0.1


def test_a_qemu_that_would_become_a_daemon_is_refused_before_anybody_is_waited_for(tmp_path: Path) -> None:
    plan = ConnectionPlan(parse_address(f"unix://{tmp_path}/in"), (), Patience(silence=1))
    said: list[object] = []
    request = ReceiveRequest(plan, lambda words: (), command=["qemu-system-x86_64", "-m", "64", "--daemonize"])
    with pytest.raises(UsageError, match="-daemonize"):
        receive(request, said.append, said.append, ["/nowhere/guardian"], ())
    assert said == [] and list(tmp_path.iterdir()) == []


def test_a_qemu_that_refuses_to_quit_is_killed(
    server: QmpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest must never run. A program that sleeps stands for its process."""
    monkeypatch.setattr("statepipe.migration.receive.QUIT_TIME", 50)
    server.answers["quit"] = server.refused
    request = ReceiveRequest(ConnectionPlan(parse_address(f"unix://{tmp_path}/in"), (), Patience()), lambda words: ())
    with subprocess.Popen(["sleep", "1000"]) as process, closing(Monitor(server.path)) as monitor:
        host = Host(request, Offer(MIGRATE, {}), lambda text: None, Guardian([]))
        host.monitor, host._pidfd = monitor, os.pidfd_open(process.pid)
        try:
            host.end()
            assert process.wait(60) == -9
        finally:
            os.close(host._pidfd)
            process.kill()
