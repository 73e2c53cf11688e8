"""receive under systemd's socket activation, as sd_listen_fds(3) has it."""

from __future__ import annotations

import configparser
import socket
import subprocess
from pathlib import Path

from tests import warm
from tests.qemu.harness import Guest, statepipe_command
from tests.qemu.moving import Credentials, mover

UNITS = Path(__file__).parents[2] / "systemd"

START = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'


def activated(listener: socket.socket, *words: object) -> subprocess.Popen[bytes]:
    command = ["bash", "-c", START, "bash", str(listener.fileno()), *statepipe_command(), *map(str, words)]
    return warm.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_guest_comes_by_the_socket_that_was_handed_over(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with (
        Guest(tmp_path, qemu=qemu72, dirty=2) as source,
        Guest(tmp_path, qemu=qemu72, image=source.image, incoming="defer", args=["-S"]) as target,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        source.wait_ticks(2)
        words = ("receive", "tls://:20490", *credentials.of("destination"), "--qmp", target.socket)
        receiving = activated(listener, *words)
        with receiving, mover(credentials, source, listener.getsockname()[1]) as moving:
            try:
                assert moving.wait() == 0, moving.said
                assert receiving.wait(60) == 0
            finally:
                receiving.kill()
        target.wait_ticks(2)


def test_what_does_not_listen_is_refused(credentials: Credentials) -> None:
    words = ("receive", "tls://:1", *credentials.of("destination"), "--qmp", "x")
    with socket.socket() as silent, activated(silent, *words) as receiving:
        assert receiving.wait(60) == 2
        assert receiving.stderr is not None and b"one listening socket" in receiving.stderr.read()


def test_the_socket_hands_over_itself_and_not_each_connection() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(UNITS / "statepipe-receive@.socket")
    assert unit["Unit"]["Description"] and unit["Socket"]["Accept"] == "no"
