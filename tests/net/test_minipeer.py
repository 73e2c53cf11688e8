"""The real send and recv against a peer that knows nothing but docs/protocol.md."""

from __future__ import annotations

import os
import random
import re
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.session.protocol.channels import MAX_WINDOW, MIN_WINDOW
from tests import minipeer, warm
from tests.conformance.running import PATIENCE, STATEPIPE, started
from tests.minipeer import GREETING, MAGIC, PIECE, Broken, Link, Sender, write_all
from tests.net.homes import World, receiving

DATA = random.Random(4).randbytes(3 << 20) + b"the end"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Sessions of this test alone are found."""
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "MINIPEER_OUTPUT": str(tmp_path / "out")}


def through(process: subprocess.Popen[bytes]) -> Link:
    """The link that is a program's standard input and output."""
    reading, writing = process.stdout.fileno(), process.stdin.fileno()
    return Link(lambda size: os.read(reading, size), lambda data: write_all(writing, data))


@contextmanager
def far_recv(env: dict[str, str], *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Link, str]]:
    """A receiver as ssh starts it, its link, and the name of its session."""
    with started([*STATEPIPE, "recv", *words], env=env) as process:
        found = re.fullmatch(rb"statepipe session ([0-9a-f]{32})\n", process.stdout.readline())
        assert found is not None, process.stderr.read()
        yield process, through(process), found[1].decode()


def first(env: dict[str, str]) -> tuple[str, ...]:
    return "--session-stdio", "--output", env["MINIPEER_OUTPUT"]


def test_recv_takes_a_stream_from_it(env: dict[str, str]) -> None:
    with far_recv(env, *first(env)) as (process, link, _):
        assert Sender(DATA).run(link) == (0, "")
        assert process.wait(PATIENCE) == 0, process.stderr.read()
    assert Path(env["MINIPEER_OUTPUT"]).read_bytes() == DATA


def test_recv_goes_on_over_a_second_link(env: dict[str, str]) -> None:
    sender = Sender(DATA)
    with far_recv(env, *first(env)) as (process, link, name):
        assert sender.run(link, stops_at=8 * PIECE) is None
        process.stdin.close()
        with far_recv(env, "--attach", name) as (attached, second, again):
            assert again == name
            assert sender.run(second) == (0, "")
            assert attached.wait(PATIENCE) == 0
        assert process.wait(PATIENCE) == 0, process.stderr.read()
    assert Path(env["MINIPEER_OUTPUT"]).read_bytes() == DATA


def test_recv_judges_another_digest(env: dict[str, str]) -> None:
    sender = Sender(DATA)
    sender.digest = bytes(32)
    with far_recv(env, *first(env)) as (process, link, _):
        verdict = sender.run(link)
        assert verdict is not None and verdict[0] == 3 and "not those that were sent" in verdict[1]
        assert process.wait(PATIENCE) == 3
    assert not Path(env["MINIPEER_OUTPUT"]).exists()


def test_send_gives_a_stream_to_it(env: dict[str, str]) -> None:
    peer = shlex.join([sys.executable, minipeer.__file__])
    command = [*STATEPIPE, "send", "--ssh", peer, "ssh://host/out"]
    done = warm.run(command, input=DATA, env=env, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert Path(env["MINIPEER_OUTPUT"]).read_bytes() == DATA


def test_recv_takes_a_stream_from_it_over_tls(world: World, tmp_path: Path) -> None:
    with receiving(world, tmp_path / "out") as receiver:
        connection = socket.create_connection(("127.0.0.1", receiver.port), PATIENCE)
        with connection, world.friend.context().wrap_socket(connection) as secure:
            assert secure.version() == "TLSv1.3" and secure.selected_alpn_protocol() is None
            assert secure.getpeercert(True) == ssl.PEM_cert_to_DER_cert(world.here.certificate.decode())
            assert Sender(DATA).run(Link(secure.recv, secure.sendall)) == (0, "")
        status, said = receiver.ended()
        assert status == 0, said
    assert (tmp_path / "out").read_bytes() == DATA


def greeting(version: int = 1, kind: int = 1, role: int = 1, window: int = MIN_WINDOW, received: int = 0) -> bytes:
    offsets = received.to_bytes(8, "big") + bytes(120)
    return GREETING.pack(MAGIC, version, kind, role, 16, window, b"i" * 16, b"t" * 32, offsets)


REFUSED = {
    "a role that does not fit": greeting(role=2),
    "the role of a tunnel for libvirt": greeting(role=5),
    "a window that is too small": greeting(window=MIN_WINDOW - 1),
    "a window that is too large": greeting(window=MAX_WINDOW + 1),
    "a session that is not known": greeting(kind=2),
    "what is only an answer": greeting(kind=3),
}
IGNORED = {
    "another version": greeting(version=2),
    "a kind that there is not": greeting(kind=5),
    "a role that there is not": greeting(role=6),
    "another protocol": b"SSH-2.0-OpenSSH_9.2".ljust(196),
}


@pytest.mark.parametrize("name", [*REFUSED, *IGNORED])
def test_recv_refuses_what_the_document_says(name: str, env: dict[str, str]) -> None:
    with far_recv(env, *first(env)) as (_, link, _name):
        link.write((REFUSED | IGNORED)[name])
        if name in IGNORED:
            with pytest.raises(Broken, match="ended after 0 bytes"):
                link.take(1)
        else:
            answer = GREETING.unpack(link.take(GREETING.size))
            assert answer[2] == 4 and answer[7] == bytes(32) and answer[8].rstrip(b"\0").decode()


FRAMES = {
    "a kind that there is not": (9, 0, b""),
    "a channel that is not read": (1, 1, b"x"),
    "data of no byte": (1, 0, b""),
    "bytes beyond the window": (1, 0, b"x"),
    "an acknowledgement of what was not written": (2, 0, b""),
    "good words on what has not ended": (4, 0, b""),
    "more heard than was said": (7, 0, b""),
}
BEYOND = {
    "bytes beyond the window": 1 << 20,
    "an acknowledgement of what was not written": 1,
    "more heard than was said": 999,
}


@pytest.mark.parametrize("name", FRAMES)
def test_recv_aborts_where_the_document_says(name: str, env: dict[str, str]) -> None:
    kind, channel, payload = FRAMES[name]
    with far_recv(env, *first(env)) as (process, link, _):
        Sender(DATA).open(link)
        link.say(kind, BEYOND.get(name, 0), payload, channel)
        with pytest.raises(Broken, match="aborted with 5"):
            list(link.frames())
        process.stdin.close()
        assert process.wait(PATIENCE) == 5, process.stderr.read()
