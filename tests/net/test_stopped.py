"""Who is ended in the midst of a first dial goes at once, whatever that dial waits for and however patient it is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.cli.network import plan_of
from statepipe.ends.net import Stopped
from statepipe.session.overtls import TlsDial
from statepipe.session.transport import Transport
from statepipe.trust.identity import by_pins
from tests.conformance.running import PATIENCE, STATEPIPE, started, stop, wait
from tests.net.homes import World

PATIENT = ["--retry", "600"]
"""Far longer than a test waits for an end."""


@pytest.fixture
def refusing() -> Iterator[socket.socket]:
    """A port where nobody listens, nor will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def threads(process: subprocess.Popen[bytes]) -> list[str]:
    """Its threads, in the order in which they began."""
    return sorted(os.listdir(f"/proc/{process.pid}/task"), key=int)


def waits(process: subprocess.Popen[bytes], thread: str) -> int:
    """How often a thread has gone to sleep."""
    lines = Path(f"/proc/{process.pid}/task/{thread}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


ENDS = [("refusing", signal.SIGINT), ("full", signal.SIGTERM)]
"""A first dial that lasts is refused at each attempt, or not answered at all."""


@pytest.mark.parametrize(("fixture", "number"), ENDS)
def test_send_ends_in_the_midst_of_its_first_dial(
    world: World, request: pytest.FixtureRequest, fixture: str, number: signal.Signals
) -> None:
    port = request.getfixturevalue(fixture).getsockname()[1]
    with started([*STATEPIPE, "send", *PATIENT, f"127.0.0.1:{port}"], env=world.friend.env) as sender:
        wait(sender, lambda: len(threads(sender)) == 4)  # main's, of signals, of the dial, of the session
        session = threads(sender)[-1]
        begun = waits(sender, session)
        wait(sender, lambda: waits(sender, session) > begun + 1)  # it ticks: they have all come so far
        assert stop(sender, number)[0] == 128 + number


def test_a_tunnel_ends_in_the_midst_of_a_first_dial(world: World, refusing: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "in"
    command = [*STATEPIPE, "tunnel", *PATIENT, f"unix://{path}", f"tls://127.0.0.1:{refusing.getsockname()[1]}"]
    with started(command, env=world.friend.env) as tunnel, socket.socket(socket.AF_UNIX) as program:
        wait(tunnel, path.exists)
        program.connect(str(path))
        wait(tunnel, lambda: len(threads(tunnel)) == 8)  # as above, of who asks, of the connection and its directions
        assert stop(tunnel, signal.SIGTERM)[0] == 128 + signal.SIGTERM
        assert program.recv(1) == b""


@contextmanager
def stopped_dial(world: World, port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Future[Transport]]:
    """A dial, which is stopped after what happens within."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.friend.base))
    plan = plan_of("send", f"127.0.0.1:{port}", [], {"tls_creds": None, "peer": None}, None)
    with ThreadPoolExecutor(1) as pool:
        with TlsDial(plan, by_pins("127.0.0.1", server=False)) as dial:
            dialling: Future[Transport] = pool.submit(dial)
            yield dialling
        with pytest.raises(Stopped):
            dialling.result(PATIENCE)


def is_asked(port: int) -> bool:
    """Whether somebody wants to connect to a port of the loopback (its state in proc_net_tcp: SYN_SENT is 2)."""
    return f" 0100007F:{port:04X} 02 " in Path("/proc/net/tcp").read_text()


def test_an_attempt_that_is_not_answered_ends_with_its_dial(
    world: World, full: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = full.getsockname()[1]
    with stopped_dial(world, port, monkeypatch) as dialling:
        while not is_asked(port):
            assert not dialling.done()


def test_a_handshake_that_is_not_answered_ends_with_its_dial(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with stopped_dial(world, listener.getsockname()[1], monkeypatch):
            connection = listener.accept()[0]
            assert connection.recv(1), "of its hello"
        connection.close()
