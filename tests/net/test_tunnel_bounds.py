"""What a tunnel's other end can cost: windows that nobody empties, and lines in the log."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from statepipe.ends.net import Patience
from statepipe.ends.ration import LINE
from statepipe.errors import PeerError
from statepipe.session.gate import greet
from statepipe.session.links import dialled
from statepipe.session.protocol.frames import FRAME_SIZE, Role
from statepipe.session.session import Timing
from statepipe.session.streams import Outlet
from statepipe.session.transport import Transport
from statepipe.trust.identity import by_pins
from statepipe.tunnel.connections import BUDGET, CONNECTIONS
from tests.conformance.running import PATIENCE, STATEPIPE, started
from tests.net.homes import MIB, World, connect, memory
from tests.qemu.harness import wait_for

OVERHEAD = 128 * MIB
"""Bytes that the far end may take beside the windows: its 64 sessions have some 400 threads, and TLS's own buffers."""


@contextmanager
def far_end(world: World, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A tunnel's far end, before a program that takes every connection and reads nothing; and its port."""
    with socket.socket(socket.AF_UNIX) as program:
        program.bind(str(folder / "program"))
        program.listen(1000)
        command = [*STATEPIPE, "tunnel", "tls://127.0.0.1:0", f"unix://{folder}/program"]
        with started(command, stdin=subprocess.DEVNULL, env=world.here.env) as process:
            yield process, int(process.stderr.readline().split()[-1])


@contextmanager
def sessions(port: int) -> Iterator[Outlet]:
    trust = by_pins("127.0.0.1", server=False)

    def dial() -> Transport:
        return greet(connect(port), trust, "127.0.0.1", Patience())

    session = dialled(dial, Role.TUNNELS, "here", Timing())
    sink = Outlet(session)
    with session:
        session.meet()
        yield sink


def test_windows_that_nobody_empties_share_one_budget(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.friend.base))
    with far_end(world, tmp_path) as (process, port), ExitStack() as stack:
        before = memory(process.pid, "VmRSS")
        sinks = [stack.enter_context(sessions(port)) for _ in range(CONNECTIONS)]
        for sink in sinks:
            channel = sink.session.wire.outgoing[0]
            for _ in range(min(channel.window, channel.peer_window) // FRAME_SIZE):
                sink.write(bytes(FRAME_SIZE))
        for sink in sinks:
            wait_for("all to be heard", lambda sink=sink: not sink.session.wire.waits_to_be_heard())
        assert memory(process.pid, "VmHWM") - before < BUDGET + OVERHEAD


def test_a_peer_that_breaks_off_again_and_again_does_not_fill_the_log(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.friend.base))
    count = CONNECTIONS + 20
    with far_end(world, tmp_path) as (process, port):
        for _ in range(count):
            with sessions(port) as sink:
                sink.session.fail(PeerError("x" * 2000))
                sink.session.flush(PATIENCE)
        process.terminate()
        said = process.communicate(timeout=PATIENCE)[1].decode().splitlines()
    about = [line for line in said if " connection" in line]
    assert len(about) <= CONNECTIONS + 2 and max(map(len, about)) < LINE + 100, said[-3:]
    assert any("more lines about connections were left out" in line for line in about)
