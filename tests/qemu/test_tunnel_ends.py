"""tunnel: how connections end, each for itself: programs that leave, stall, take their time; ends that do not fit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import IntegrityError, PeerError, StatepipeError
from statepipe.session.session import Session
from statepipe.session.streams import Inlet, Outlet
from statepipe.tunnel.connection import Connection
from tests.qemu.harness import run_statepipe, wait_for
from tests.qemu.moving import LISTENING, Credentials, Running
from tests.qemu.peers import two_sessions
from tests.qemu.tunnels import Way, answered, called, echoed, everything, near_end, server, status_of, tunnel

WHOLE = bytes(range(256)) * (1 << 14)
"""Four MiB: more than the sockets hold, less than a window."""


@pytest.fixture
def way(tmp_path: Path, credentials: Credentials) -> Iterator[Way]:
    with tunnel(tmp_path, credentials) as it:
        yield it
        it.assert_no_traceback()


def filled(connection: socket.socket) -> int:
    """Write until nobody takes more, for a second; the bytes that went."""
    connection.settimeout(1)
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            count += connection.send(bytes(1 << 16))
    connection.settimeout(60)
    return count


def test_a_stalled_reader_holds_back_its_own_connection_alone(way: Way) -> None:
    with server(way) as listener, called(way) as first, answered(listener) as stalled:
        count = filled(first)
        assert count > 10 << 20  # as much as a window and the sockets hold
        for number in range(3):
            with called(way) as near, answered(listener) as far:
                near.sendall(WHOLE[: 1 << 16])
                far.sendall(b"%d" % number)
                near.shutdown(socket.SHUT_WR)
                far.shutdown(socket.SHUT_WR)
                assert (everything(far), everything(near)) == (WHOLE[: 1 << 16], b"%d" % number)
        first.shutdown(socket.SHUT_WR)
        assert len(everything(stalled)) == count


def test_cancel_ends_a_tunnel_with_a_stalled_reader(way: Way) -> None:
    with server(way) as listener, called(way) as near, answered(listener):
        filled(near)
        assert run_statepipe("cancel", str(way.far.pid)).returncode == 0
        assert way.far.wait() == 143
        way.near.wait_said("connection 1 failed: .*the tunnel was ended")
        with pytest.raises(BrokenPipeError):
            near.sendall(bytes(1 << 20))
        way.near.send(signal.SIGTERM)
        assert way.near.wait() == 143


@pytest.mark.parametrize("leaver", ["near", "far"])
def test_who_leaves_while_the_other_writes_loses_nothing_of_its_own(way: Way, leaver: str) -> None:
    """The writer hears of it as from a unix socket, and what the leaver wrote before arrives whole."""
    with server(way) as listener, called(way) as near, answered(listener) as far:
        leaves, stays = (near, far) if leaver == "near" else (far, near)
        sender = threading.Thread(target=leaves.sendall, args=(WHOLE,))
        sender.start()
        stays.sendall(bytes(1 << 16))
        sender.join()  # in the tunnel's hands, not all over there yet
        leaves.close()
        with pytest.raises(BrokenPipeError):
            while True:
                stays.sendall(bytes(1 << 16))
        assert everything(stays) == WHOLE
        stays.close()
        for end in (way.near, way.far):
            end.wait_said("connection 1 failed: .*closed its connection before it had read everything")
    way.there.unlink()
    assert echoed(way, b"another") == b"another"
    assert sum("connection" in line for line in way.near.said + way.far.said) == 2


@pytest.mark.faults
def test_an_end_that_is_held_back_for_longer_than_a_farewell_is_waited_for(
    tmp_path: Path, credentials: Credentials
) -> None:
    """The network stands still from the last bytes on: both ends' programs and statuses are good all the same."""
    with tunnel(tmp_path, credentials, "--once") as way, server(way) as listener:
        with called(way) as near, answered(listener) as far:
            near.sendall(b"question")
            assert far.recv(8) == b"question"
            way.rail.faults.clear.clear()
            far.sendall(b"answer")
            for each in (near, far):
                each.shutdown(socket.SHUT_WR)
            time.sleep(6)  # no event: as long as nothing happens
            way.rail.faults.clear.set()
            assert (everything(near), everything(far)) == (b"answer", b"")
        assert (way.near.wait(), way.far.wait()) == (0, 0), (way.near.said, way.far.said)
        told = [line for line in way.near.said if line]  # of the silence, and of nothing else
        known = re.compile("nothing has arrived from .* for 3 s; waiting up to 30 s|is back after")
        assert all(map(known.search, told)), told


class Carried:
    """A Connection in a thread, a program at its one end, a session that a test drives by hand at the other."""

    def __init__(self, session: Session) -> None:
        self.program, inner = socket.socketpair()
        self.program.settimeout(60)
        self.connection = Connection(1, session)
        self._failure: StatepipeError | None = None
        self._thread = threading.Thread(target=self._carry, args=(inner,))
        self._thread.start()

    def _carry(self, inner: socket.socket) -> None:
        self._failure = self.connection.carry(inner)

    def wait(self) -> StatepipeError | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._failure


def test_a_last_word_that_never_comes_is_told_and_waited_for_so_long(capfd: pytest.CaptureFixture[str]) -> None:
    with two_sessions() as (near, far), far:
        carried = Carried(near)
        with carried.program:
            inlet, outlet = Inlet(far), Outlet(far)
            far.spawn(outlet.commit, "outlet")
            carried.program.shutdown(socket.SHUT_WR)
            assert (list(inlet), carried.program.recv(1)) == ([], b"")
            inlet.accept()
            assert carried.wait() is None
            assert "did not confirm the end within 1.5 s" in str(carried.connection.remark)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [IntegrityError("a bit fell over"), PeerError("the house burns")])
def test_any_failure_over_there_is_this_connection_s(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    with two_sessions() as (near, far), far:
        carried = Carried(near)
        with carried.program:
            far.fail(error)  # type: ignore[arg-type]
            failure = carried.wait()
            assert type(failure) is type(error) and str(error) in str(failure)
            assert carried.program.recv(1) == b""
    assert "Traceback" not in capfd.readouterr().err


def test_one_too_many_waits_until_another_has_ended(way: Way) -> None:
    """For descriptors, of which a process may have so many; the tunnel and its other connections go on."""
    with server(way) as listener:
        with called(way) as near, answered(listener) as far:
            near.sendall(b"still")
            assert far.recv(5) == b"still"
            count = len(os.listdir(f"/proc/{way.near.pid}/fd"))
            resource.prlimit(way.near.pid, resource.RLIMIT_NOFILE, (count, count))
            late = called(way)
            way.near.wait_said("a connection has to wait: Too many open files")
            far.sendall(b"here")
            assert near.recv(4) == b"here"
        with late, answered(listener) as far:
            late.sendall(b"at last")
            assert far.recv(7) == b"at last"
    assert sum("has to wait" in line for line in way.near.said) == 1


# --- ends that do not fit


def test_a_tunnel_whose_name_is_lost_ends_once_what_is_open_has(way: Way) -> None:
    """A guest on its way through it gets there; nobody is let on at a name that leads elsewhere."""
    with server(way) as listener, called(way) as connection, answered(listener) as program:
        way.here.unlink()
        way.near.wait_said(r"its name was removed; the open connections continue, then the tunnel ends$")
        connection.sendall(WHOLE)
        connection.shutdown(socket.SHUT_WR)
        assert everything(program) == WHOLE
        program.close()
        assert everything(connection) == b""
    assert way.near.wait() == 5, way.near.said
    assert f"error: the socket {way.here} can no longer be reached: its name was removed" in way.near.said[-3]


def test_a_recv_is_no_tunnel_s_end(tmp_path: Path, credentials: Credentials) -> None:
    words = ("recv", *credentials.of("destination"), "--output", tmp_path / "file", "tls://127.0.0.1:0")
    with Running(*words) as far:
        refused(
            tmp_path, credentials, far, "a tunnel connected to a recv: a tunnel needs a tunnel, a recv needs a send"
        )
        assert not far.ended()


def test_a_receive_is_none_either(tmp_path: Path, credentials: Credentials) -> None:
    with Running("receive", *credentials.of("destination"), "tls://127.0.0.1:0", "--", "none") as far:
        refused(tmp_path, credentials, far, "a tunnel connected to a receive: .*a receive needs a migrate")


def refused(folder: Path, credentials: Credentials, far: Running, reason: str) -> None:
    """On both sides, in the same words; and the program hears of it."""
    port = int(far.wait_said(LISTENING.pattern)[1])
    with near_end(credentials, folder / "here", port, "--once") as near:
        with socket.socket(socket.AF_UNIX) as program:
            program.settimeout(60)
            program.connect(str(folder / "here"))
            assert everything(program) == b""
        assert near.wait() == 5
        near.wait_said(f"connection 1 could not be made: .*{reason}")
        far.wait_said(f"turned away .*{reason}")


def test_a_send_is_no_tunnel_s_end(way: Way, credentials: Credentials) -> None:
    where = f"tls://127.0.0.1:{way.rail.port}"
    done = run_statepipe("send", *credentials.of("source"), where)
    assert done.returncode == 5 and "a send connected to a tunnel" in done.stderr, done
    way.far.wait_said("turned away .*a send connected to a tunnel: a send needs a recv, a tunnel needs a tunnel")


# --- what it tells


def test_status_lines_tell_connections_bytes_and_links(tmp_path: Path, credentials: Credentials) -> None:
    reading, writing = os.pipe()
    with (
        os.fdopen(reading) as lines,
        tunnel(tmp_path, credentials, near_words=("--status-fd", str(writing)), pass_fds=[writing]) as way,
        server(way) as listener,
    ):
        os.close(writing)
        with called(way) as near, answered(listener) as far:
            near.sendall(b"question")
            assert far.recv(8) == b"question"
            far.sendall(b"answer")
            assert near.recv(6) == b"answer"
            line = until(lines, connections=1, connections_total=1, links=1, cut=0, bytes_in=8, bytes_out=6)
            assert line["verb"] == "tunnel" and line["pid"] == way.near.pid
            told = status_of(way.far)
            assert told["connections"] == 1 and told["bytes_out"] == 8
            assert "1 connections of 1 open, 1 links" in run_statepipe("ps").stdout
            assert "a tunnel has no throttle" in run_statepipe("rate", str(way.far.pid), "1M").stderr
            way.rail.faults.clear.clear()
            way.rail.cut()
            until(lines, connections=1, links=0, cut=1)
            way.rail.faults.clear.set()
            until(lines, links=1, cut=0)
        wait_for("its end", lambda: not status_of(way.near)["connections"])
        assert run_statepipe("cancel", str(way.near.pid)).returncode == 0
        assert way.near.wait() == 143
        last = json.loads(lines.readlines()[-1])
        assert (last["verdict"], last["connections"], last["connections_broken"]) == ("failed", 0, 0)


def until(lines: Any, **facts: int) -> dict[str, Any]:
    """The first line that says so."""
    for text in lines:
        line: dict[str, Any] = json.loads(text)
        if facts.items() <= line.items():
            return line
    raise AssertionError(f"no line says {facts}")
