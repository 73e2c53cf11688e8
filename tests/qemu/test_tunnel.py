"""tunnel: QEMU's own migrations between unix sockets, through sessions whose links are cut."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import pytest

from tests.qemu.harness import FINAL, Guest, assert_continues, assert_runs_on, run_statepipe, wait_for
from tests.qemu.moving import Credentials
from tests.qemu.tunnels import Way, called, echoed, everything, guests, near_end, prepare, status_of, tunnel


@pytest.mark.parametrize("capabilities", [{}, {"multifd": True}], ids=["one stream", "multifd"])
def test_a_migration_goes_through_however_often_its_links_are_cut(
    tmp_path: Path, qemu: str, credentials: Credentials, capabilities: dict[str, bool]
) -> None:
    with tunnel(tmp_path, credentials) as way, guests(tmp_path, qemu, way, **capabilities) as (source, target):
        source.qmp("migrate", uri=f"unix:{way.here}")
        for part in (1, 2, 3):
            wait_for_bytes(way, source, part << 23)
            way.rail.cut()
        ended = source.wait_status()
        assert ended["status"] == "completed", (ended, way.near.said, way.far.said)
        target.wait_ticks(3)
        assert_continues(source.serial(), target.serial())
        assert way.rail.accepted > (5 if capabilities else 1)
        for each in (way.near, way.far):
            each.send(signal.SIGTERM)
            assert each.wait() == 143, each.said
    assert not way.here.exists()


def wait_for_bytes(way: Way, source: Guest, count: int) -> None:
    """Until so many have crossed, or the migration is over."""
    wait_for("bytes", lambda: way.rail.bytes > count or source.migration()["status"] in FINAL)


@pytest.mark.parametrize("what", ["cancelled", "its destination killed"])
def test_a_migration_that_fails_ends_its_connections_alone(
    tmp_path: Path, qemu72: str, credentials: Credentials, what: str
) -> None:
    """The guest runs on here, and goes to the next QEMU there through the same tunnel."""
    with tunnel(tmp_path, credentials) as way, guests(tmp_path, qemu72, way, multifd=True) as (source, target):
        source.qmp("migrate-set-parameters", max_bandwidth=2 << 20)
        source.qmp("migrate", uri=f"unix:{way.here}")
        wait_for("all channels", lambda: status_of(way.far)["connections"] == 5)
        if what == "cancelled":
            source.qmp("migrate_cancel")
        else:
            target.kill()
        assert source.wait_status()["status"] == ("cancelled" if what == "cancelled" else "failed")
        assert target.wait() != 0
        assert_runs_on(source)
        wait_for("the connections' end", lambda: not status_of(way.far)["connections"])
        with Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer") as another:
            prepare(source, another, multifd=True)
            another.qmp("migrate-incoming", uri=f"unix:{way.there}")
            source.qmp("migrate", uri=f"unix:{way.here}")
            assert source.wait_status()["status"] == "completed", (way.near.said, way.far.said)
            another.wait_ticks(3)
            assert_continues(source.serial(), another.serial())
        way.assert_no_traceback()
        assert all(line.startswith("statepipe: tunnel: connection") for line in way.near.said if line), way.near.said


def test_a_postcopy_goes_through(tmp_path: Path, qemu72: str, credentials: Credentials) -> None:
    with tunnel(tmp_path, credentials) as way, guests(tmp_path, qemu72, way, postcopy_ram=True) as (source, target):
        source.qmp("migrate-set-parameters", max_bandwidth=8 << 20)
        source.qmp("migrate", uri=f"unix:{way.here}")
        source.wait_status("active")
        source.qmp("migrate-start-postcopy")
        wait_for("postcopy", lambda: source.migration()["status"] in ("postcopy-active", "completed"))
        way.rail.cut()
        assert source.wait_status("completed", "postcopy-paused", "failed")["status"] == "completed"
        target.wait_ticks(3)
        assert_continues(source.serial(), target.serial())


def test_nobody_over_there_is_qemu_s_failure_and_the_next_may_come(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with tunnel(tmp_path, credentials) as way, Guest(tmp_path, qemu=qemu72, dirty=2) as source:
        source.wait_ticks(2)
        source.qmp("migrate", uri=f"unix:{way.here}")
        assert source.wait_status()["status"] == "failed"
        assert_runs_on(source)
        way.far.wait_said("No such file or directory")
        assert echoed(way, b"hello") == b"hello"


def test_many_connections_each_both_ways(tmp_path: Path, credentials: Credentials) -> None:
    """Half-closed by the near side, answered by the far one, in the order in which they came."""
    with tunnel(tmp_path, credentials, "--once") as way:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(way.there))
            server.listen(20)
            near = [stack.enter_context(called(way)) for _ in range(20)]
            far = [stack.enter_context(server.accept()[0]) for _ in near]
            for number, connection in enumerate(near):
                connection.sendall(b"%d" % number)
                connection.shutdown(socket.SHUT_WR)
            assert [everything(each) for each in far] == [b"%d" % number for number in range(20)]
            for number, connection in enumerate(far):
                connection.sendall(b"answer %d" % number)
                connection.close()
            assert [everything(each) for each in near] == [b"answer %d" % number for number in range(20)]
        assert (way.near.wait(), way.far.wait()) == (0, 0), (way.near.said, way.far.said)


def test_a_far_side_that_breaks_off_is_a_near_one_that_does(tmp_path: Path, credentials: Credentials) -> None:
    with tunnel(tmp_path, credentials) as way, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(way.there))
        server.listen()
        with called(way) as near:
            server.accept()[0].close()
            assert near.recv(1) == b""


def test_a_stranger_gets_nowhere(tmp_path: Path, credentials: Credentials) -> None:
    stranger = Credentials(tmp_path / "elsewhere")
    with tunnel(tmp_path, credentials) as way:
        path = tmp_path / "strange"
        with near_end(stranger, path, way.rail.port) as near:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(str(path))
                assert everything(connection) == b""
            near.wait_said("connection 1 could not be made: no trust between us")


@pytest.mark.parametrize("words", [["tls://:1", "tls://h"], ["unix:///a", "unix:///b"], ["tcp://:1", "tls://h"]])
def test_what_leads_nowhere_is_a_usage_error(words: list[str]) -> None:
    assert run_statepipe("tunnel", *words).returncode == 2
