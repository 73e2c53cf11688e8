"""migrate and receive, as people run them: a real guest between two real QEMUs over TLS."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.guest import parse_ticks
from tests.net.relay import Faults, relay
from tests.qemu.harness import Guest, assert_runs_on, assert_unbroken, run_statepipe, wait_for
from tests.qemu.moving import Credentials, assert_moved, mover, receiver, waiting


@pytest.mark.parametrize("words", [(), ("zstd:1",), ("--offline",), ("--links", "2", "throttle:400M")])
def test_a_guest_moves(tmp_path: Path, qemu: str, credentials: Credentials, words: tuple[str, ...]) -> None:
    with Guest(tmp_path, qemu=qemu, dirty=2) as source, waiting(tmp_path, qemu, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, *words) as moving:
            assert moving.wait() == 0, moving.said
            assert receiving.wait() == 0, receiving.said
        assert_moved(source, target)
        assert source.run_state() == "postmigrate"


def test_a_paused_guest_stays_paused(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(3)
        source.qmp("stop")
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port) as moving:
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert re.search(r"the guest is at \S+, paused as it was: ", moving.said[-2])
        assert target.run_state() == "paused" and target.ticks() == []
        target.qmp("cont")
        assert_moved(source, target)


def test_an_address_of_the_destination_s_that_is_dead_is_passed_over(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    """Of two that were named, one answers: its link and the other's lead there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = f"127.0.0.1:{free.getsockname()[1]}"
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, "--also", dead) as moving:
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert_moved(source, target)


def test_a_qemu_of_our_own_is_started_and_its_status_is_ours(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        target = waiting(tmp_path, qemu72, source)
        command = [word for word in target.command if word not in ("-S", "-incoming", "defer")]
        receiving, port = receiver(credentials, "--", *command)
        with receiving, mover(credentials, source, port, "--quit-source") as moving:
            assert moving.wait() == 0, moving.said
            assert source.wait() == 0
            receiving.wait_said("has given its guest away; here it is running")
            wait_for("ticks", lambda: len(target.ticks()) > 3)
            receiving.send(signal.SIGTERM)
            assert receiving.wait() == 0
        assert_unbroken(parse_ticks(source.serial() + target.serial()))


def test_a_stalled_link_does_not_hold_the_guest_when_it_is_cancelled(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with (
        Guest(tmp_path, qemu=qemu72, dirty=2) as source,
        waiting(tmp_path, qemu72, source) as target,
    ):
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--retry", "2", "--qmp", target.socket)
        with receiving, relay(port, Faults()) as rail, mover(credentials, source, rail.port) as moving:
            wait_for("bytes", lambda: rail.bytes > 3 << 20)
            rail.faults.clear.clear()
            cancelled = run_statepipe("cancel", str(moving.pid))
            assert cancelled.returncode == 0, cancelled.stderr
            assert moving.wait() == 143, moving.said
            hint = next(line for line in moving.said if line.startswith("statepipe: hint: "))
            assert hint.startswith("statepipe: hint: the guest is running here, as before; ")
            again = "start receive there again (with --serve it still waits), then the same command here"
            assert hint.endswith(f"; to try again: {again}")
            assert_runs_on(source)
            assert receiving.wait() == 5
        assert "start receive again to retry; with --serve" in receiving.said[-2]
        assert target.ended()


def test_a_cut_link_costs_its_time_alone(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, relay(port, Faults()) as rail, mover(credentials, source, rail.port) as moving:
            for part in range(1, 5):
                wait_for("bytes", lambda part=part: moving.ended() or rail.bytes > part * (2 << 20))  # type: ignore[misc]
                rail.cut()
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert rail.accepted > 3
        assert_moved(source, target)


def test_a_guest_whose_memory_takes_too_long_stays(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=16) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, "--rate", "10M", "--timeout", "2") as moving:
            assert moving.wait() == 1
            assert "was not sent within 2 s" in moving.said[-3] and "the guest is running here" in moving.said[-2]
        assert_runs_on(source)


def test_or_is_suspended_and_goes_on_over_there(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=16) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(3)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        late = ("--timeout", "2", "--on-timeout", "suspend")
        with receiving, mover(credentials, source, port, "--rate", "40M", *late) as moving:
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert_moved(source, target)


def test_what_would_fail_is_not_begun(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    """Another machine type over there; check says so too, and `--force` lets QEMU itself find out."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        other = Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer", args=["-S", "-machine", "q35"])
        with other as target:
            source.wait_ticks(2)
            before = source.settings()
            receiving, port = receiver(credentials, "--qmp", target.socket)
            with receiving:
                looked = run_statepipe(
                    "check", "--qmp", source.socket, *credentials.of("source"), f"tls://127.0.0.1:{port}"
                )
                assert looked.returncode == 1 and "fail  machine type" in looked.stdout, looked
                with mover(credentials, source, port) as moving:
                    assert moving.wait() == 1, (moving.said, receiving.said)
                    assert "start the destination with -machine pc-i440fx" in moving.said[-3]
                    assert "nothing was moved" in moving.said[-2]
                assert receiving.wait() == 5
            assert_runs_on(source)
            assert source.settings() == before and target.run_state() == "inmigrate"


def test_nobody_else_may_come(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    stranger = Credentials(tmp_path / "elsewhere")
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(2)
        receiving, port = receiver(credentials, "--timeout", "60", "--qmp", target.socket)
        with receiving:
            with mover(stranger, source, port) as moving:
                assert moving.wait() == 5
                assert any("hint: nothing was moved" in line for line in moving.said), moving.said
            assert_runs_on(source)
            with mover(credentials, source, port) as moving:
                assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert_moved(source, target)


def test_ps_tells_the_phase_and_rate_steers(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(2)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        with receiving, mover(credentials, source, port, "--rate", "1M", "throttle:1M") as moving:
            source.wait_transferred(1 << 19)

            def told() -> dict[str, Any] | None:  # figures that may be older than ours of QEMU, from before its RAM
                jobs = {job["id"]: job for job in json.loads(run_statepipe("ps", "--json").stdout)}
                job: dict[str, Any] = jobs[str(moving.pid)]
                return job if "ram" in job.get("migration", {}) else None

            job = wait_for("figures of RAM", told)
            assert job["phase"] in ("precopy", "promised") and job["links"] == 1
            assert job["migration"]["ram"]["total"] > 128 << 20
            assert re.search("precopy|promised", run_statepipe("ps").stdout)
            assert run_statepipe("rate", str(moving.pid), "unlimited").returncode == 0
            assert (moving.wait(), receiving.wait()) == (0, 0), (moving.said, receiving.said)
        assert_moved(source, target)


def test_detached_it_goes_on_in_the_background(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, waiting(tmp_path, qemu72, source) as target:
        source.wait_ticks(2)
        receiving, port = receiver(credentials, "--qmp", target.socket)
        words = ("-d", "--qmp", source.socket, *credentials.of("source"), "--rate", "20M", f"tls://127.0.0.1:{port}")
        with receiving:
            said = tmp_path / "said"
            with said.open("w") as file:  # the other process goes on with it
                assert run_statepipe("migrate", *words, capture_output=False, stderr=file).returncode == 0
            job = re.search(r"ID (\d+)", said.read_text())
            assert job is not None and int(job[1]) > 1
            assert receiving.wait() == 0, receiving.said
            wait_for("its last words", lambda: "the guest runs at" in said.read_text())
        assert_moved(source, target)


def test_detached_it_says_at_once_what_prevents_it(tmp_path: Path, credentials: Credentials) -> None:
    words = ("-d", "--qmp", tmp_path / "none", *credentials.of("source"), "tls://127.0.0.1:1")
    done = run_statepipe("migrate", *words)
    assert done.returncode == 6 and "no QMP monitor answers" in done.stderr
    assert run_statepipe("migrate", *words, "--status-fd", "3").returncode == 2


def test_what_qemu_itself_refuses_leaves_the_guest_here(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    """`--force` lets it come so far: another machine type over there."""
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        other = Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer", args=["-S", "-machine", "q35"])
        with other as target:
            source.wait_ticks(2)
            receiving, port = receiver(credentials, "--qmp", target.socket)
            with receiving, mover(credentials, source, port, "--force") as moving:
                assert moving.wait() in (5, 6), moving.said
                assert receiving.wait() == 6, receiving.said
                assert "the guest is running here" in moving.said[-2]
            assert_runs_on(source)
            assert target.wait() is not None
