"""QEMU 10.2 to 11.1, and whatever a later one says: statuses, figures and capabilities that statepipe does not know."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import QemuError, TruncatedError
from statepipe.lazy.resume import is_served
from statepipe.qemu.compare import NEEDED
from statepipe.qemu.monitor import Monitor
from tests.conformance.test_save_qmp import completes, save
from tests.qmpserver import GREETING, QmpServer, qmp_server
from tests.statefiles import noisy_stream

OFFERED = [
    *("xbzrle", "rdma-pin-all", "auto-converge", "events", "postcopy-ram", "x-colo", "release-ram", "return-path"),
    *("pause-before-switchover", "multifd", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate"),
    *("x-ignore-shared", "validate-uuid", "background-snapshot", "zero-copy-send", "postcopy-preempt"),
    *("switchover-ack", "dirty-limit", "mapped-ram"),
]
"""query-migrate-capabilities of QEMU 11.1.3: zero-blocks, compress and block are gone."""

NEW = {"remaining": 7, "postcopy-latency": 1, "postcopy-latency-dist": [1, 2], "a-later-figure": {"of": [None]}}
"""Figures of query-migrate that 10.0 does not have; the last is nobody's."""

RAM = dict.fromkeys(("transferred", "total", "remaining", "dirty-sync-count"), 1) | {"a-later-figure": "x"}


@pytest.fixture
def qemu11(qmp_folder: Path) -> Any:
    """A QEMU 11.1 whose guest runs, and which refuses what it does not have."""
    greeting = {"QMP": GREETING["QMP"] | {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}}}
    with qmp_server(qmp_folder, greeting) as server:
        server.answers |= {"query-status": {"status": "running"}, "query-named-block-nodes": []}
        server.answers["query-migrate-capabilities"] = [{"capability": name, "state": False} for name in OFFERED]
        server.answers |= {"query-kvm": server.refused, "query-accelerators": {"enabled": "tcg", "present": ["tcg"]}}
        yield server


def passes_through(server: QmpServer, *statuses: str, then: dict[str, Any]) -> None:
    """At each question QEMU is in the next of these, and tells of it; then it is where it ends."""
    left = list(statuses)

    def answer() -> dict[str, Any]:
        figures = {"status": left.pop(0), "ram": RAM, **NEW} if left else then
        server.event(figures["status"])
        return figures

    server.answers["query-migrate"] = answer


def test_a_migration_that_is_failing_has_not_failed_yet(qemu11: QmpServer, tmp_path: Path) -> None:
    """QEMU 11.0 is `failing` while it clears up: nothing is put back, and no outcome is told, before it has failed."""

    def send(stream: socket.socket) -> None:
        stream.sendall(noisy_stream()[:5000])
        for status in ("setup", "active", "failing"):
            qemu11.event(status)
        passes_through(qemu11, *["failing"] * 5, then={"status": "failed", "error-desc": "its own reason"})

    qemu11.migrates(send)
    with pytest.raises(TruncatedError) as caught:
        save(qemu11, str(tmp_path / "s"))
    hint = caught.value.hint or ""
    assert hint.startswith("QEMU reports that the migration failed: its own reason; the guest is running here"), hint
    heard = qemu11.commands()
    after = heard[heard.index("migrate") + 1 :]
    ends = len(after) - 1 - after[::-1].index("query-migrate")
    assert after[:ends].count("query-migrate") >= 5 and not set(after[:ends]) - {"query-migrate"}, after
    assert "migrate-set-capabilities" in after[ends:], "the settings are as before"
    assert list(tmp_path.iterdir()) == []


def test_statuses_and_figures_that_nobody_knows_are_under_way(qemu11: QmpServer, tmp_path: Path) -> None:
    def send(stream: socket.socket) -> None:
        completes(qemu11, stream)
        passes_through(
            qemu11, "active", "device", "postcopy-device", "hibernating", then={"status": "completed", **NEW}
        )

    qemu11.migrates(send)
    assert save(qemu11, str(tmp_path / "s")).run_state == "postmigrate"


def test_only_what_is_offered_is_asked_for(qemu11: QmpServer, tmp_path: Path) -> None:
    """`migrate` has no `detach` any more, and a capability that QEMU lacks is an error."""
    heard: list[dict[str, Any]] = []
    qemu11.migrates(lambda stream: completes(qemu11, stream))
    take = qemu11.takes["migrate"]
    qemu11.takes["migrate"] = lambda arguments: heard.append(arguments) or take(arguments)
    qemu11.takes["migrate-set-capabilities"] = lambda arguments: heard.append(arguments) or {}
    save(qemu11, str(tmp_path / "s"))
    named = {item["capability"] for arguments in heard for item in arguments.get("capabilities", [])}
    assert named and named <= set(OFFERED)
    assert [arguments for arguments in heard if "uri" in arguments] == [{"uri": "fd:statepipe"}]
    assert set(NEEDED) <= set(OFFERED)


def test_a_migration_that_is_failing_is_still_another_client_s(qemu11: QmpServer) -> None:
    qemu11.answers["query-migrate"] = {"status": "failing"}
    with closing(Monitor(qemu11.path)) as monitor, pytest.raises(QemuError, match="which is failing"):
        monitor.demand_idle()


@pytest.mark.parametrize("status", ["postcopy-active", "postcopy-device", "postcopy-recover", "postcopy-recover-setup"])
def test_a_guest_whose_memory_is_on_its_way_is_served(status: str) -> None:
    assert is_served(status)
    assert not any(map(is_served, ("postcopy-paused", "completed", "failing", "failed", "none")))
