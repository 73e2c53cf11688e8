"""The keeper of a lazy load whose statepipe is killed before the guest runs."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.lazy.keeper import AGAIN, Keeper


@pytest.mark.parametrize("is_read", [True, False], ids=["its byte was read", "its byte was not read"])
def test_a_qemu_that_has_received_nothing_is_told_to_quit(tmp_path: Path, is_read: bool) -> None:
    """The kernel reports a connection whose other end was closed with unread bytes as reset."""
    qemu, monitor = socket.socketpair()
    ours, control = socket.socketpair()
    with qemu, monitor, control, qemu.makefile("r") as heard:
        qemu.settimeout(10)
        keeper = threading.Thread(target=Keeper(monitor, control, str(tmp_path / "socket"), shared=False).run)
        keeper.start()
        with ours:
            assert json.loads(heard.readline())["execute"] == "qmp_capabilities"
            qemu.sendall(b'{"return": {}, "id": "ready"}\n')
            assert ours.recv(1, 0 if is_read else socket.MSG_PEEK) == b"+"
        assert json.loads(heard.readline())["execute"] == "query-migrate"
        qemu.sendall(b'{"return": {}, "id": "left"}\n')
        assert json.loads(heard.readline())["execute"] == "quit"
        qemu.shutdown(socket.SHUT_WR)
        keeper.join(10)
        assert not keeper.is_alive()


RUNS = b'{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "RESUME"}\r\n'
CONTINUED = b'{"event": "MIGRATION", "data": {"status": "postcopy-recover"}}\r\n'


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("word", "event"), [(b"", b""), (b"R", b""), (b"", RUNS), (b"", CONTINUED)])
def test_a_qemu_that_loads_devices_is_killed_unless_its_guest_may_run(
    tmp_path: Path, shared: bool, word: bytes, event: bytes
) -> None:
    """Statepipe says so; or QEMU itself, if another client runs the guest, or if the keeper was late."""
    may_run = bool(word or event)
    qemu, monitor = socket.socketpair()
    ours, control = socket.socketpair()
    with qemu, monitor, control, qemu.makefile("r") as heard, subprocess.Popen(["sleep", "60"]) as process:
        qemu.settimeout(10)
        keeper = threading.Thread(target=Keeper(monitor, control, str(tmp_path / "socket"), shared=shared).run)
        pidfd = os.pidfd_open(process.pid)
        with ours:
            socket.send_fds(ours, [b"K"], [pidfd])
            ours.sendall(word)
            qemu.sendall(event)
        keeper.start()  # late: all of it is there
        while "query-migrate" not in heard.readline():
            continue
        if may_run:
            assert process.poll() is None
            with open(f"/proc/{process.pid}/stat") as file:
                assert file.read().split()[2] != "T", "it is stopped"
            process.kill()
        assert process.wait(10) == -signal.SIGKILL
        os.close(pidfd)
        qemu.shutdown(socket.SHUT_WR)
        keeper.join(10)
        assert not keeper.is_alive()


@pytest.mark.parametrize("shared", [True, False])
def test_a_qemu_that_answers_late_keeps_the_socket_that_it_has_made(tmp_path: Path, shared: bool) -> None:
    """It is asked again after a refusal, and never twice at a time: its socket would lose its name."""
    qemu, monitor = socket.socketpair()
    ours, control = socket.socketpair()
    path = tmp_path / "socket"
    with qemu, monitor, control, qemu.makefile("r") as heard:
        qemu.settimeout(10)
        keeper = threading.Thread(target=Keeper(monitor, control, str(path), shared=shared).run)
        keeper.start()
        ours.close()
        qemu.sendall(b'{"event": "MIGRATION", "data": {"status": "postcopy-paused"}}\n')
        for answer in (b'"error": {"desc": "not yet"}', b'"return": {}'):
            while "migrate-recover" not in (said := heard.readline()):
                assert said
            path.touch()
            assert not select.select([qemu], [], [], 5 * AGAIN)[0], "it is asked again"
            assert path.exists()
            qemu.sendall(b'{%s, "id": "keeper"}\n' % answer)
        qemu.shutdown(socket.SHUT_WR)
        keeper.join(10)
        assert not keeper.is_alive() and path.exists()


@pytest.fixture
def high() -> Iterator[int]:
    """A number that no descriptor has, where a parent has opened many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this process may not have so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield 1100
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_may_have_high_numbers(tmp_path: Path, high: int) -> None:
    qemu, near = socket.socketpair()
    ours, control = socket.socketpair()
    with qemu, near, control, qemu.makefile("r") as heard:
        qemu.settimeout(10)
        with socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, high)) as monitor:
            keeper = threading.Thread(target=Keeper(monitor, control, str(tmp_path / "socket"), shared=False).run)
            keeper.start()
            ours.close()
            while "query-migrate" not in heard.readline():
                continue
            qemu.shutdown(socket.SHUT_WR)
            keeper.join(10)
            assert not keeper.is_alive()
