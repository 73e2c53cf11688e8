"""Two ends of a tunnel on one host, a relay between them that can be cut, and programs at their unix sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.net.relay import Faults, Relay, relay
from tests.qemu.harness import Guest, run_statepipe, wait_for
from tests.qemu.moving import LISTENING, Credentials, Running


@dataclass(frozen=True)
class Way:
    """A unix socket here, one there, and what is between."""

    here: Path
    there: Path
    rail: Relay
    near: Running
    far: Running

    def assert_no_traceback(self) -> None:
        """Whatever happened was told in words."""
        assert not [line for line in self.near.said + self.far.said if "Traceback" in line], (self.near, self.far)


@contextlib.contextmanager
def tunnel(
    folder: Path, credentials: Credentials, *words: str, name: str = "", near_words: Sequence[str] = (), **near_has: Any
) -> Iterator[Way]:
    """A tunnel whose sockets are called `here` and `there`, after a name."""
    here, there = folder / f"{name}here", folder / f"{name}there"
    far = Running("tunnel", *words, *credentials.of("destination"), "tls://127.0.0.1:0", f"unix://{there}")
    with (
        far,
        relay(int(far.wait_said(LISTENING.pattern)[1]), Faults()) as rail,
        near_end(credentials, here, rail.port, *words, *near_words, **near_has) as near,
    ):
        yield Way(here, there, rail, near, far)


@contextlib.contextmanager
def near_end(credentials: Credentials, here: Path, port: int, *words: str, **more: Any) -> Iterator[Running]:
    """A tunnel's near end alone."""
    way = ("tunnel", *words, *credentials.of("source"), f"unix://{here}", f"tls://127.0.0.1:{port}")
    with Running(*way, **more) as near:
        wait_for("the near end", here.exists)
        yield near


@contextlib.contextmanager
def guests(folder: Path, qemu: str, way: Way, **capabilities: bool) -> Iterator[tuple[Guest, Guest]]:
    """A guest that runs, and a QEMU that waits at the far end."""
    with Guest(folder, qemu=qemu, dirty=2) as source:
        source.wait_ticks(3)
        with Guest(folder, qemu=qemu, image=source.image, incoming="defer") as target:
            prepare(source, target, **capabilities)
            target.qmp("migrate-incoming", uri=f"unix:{way.there}")
            yield source, target


def prepare(source: Guest, target: Guest, **capabilities: bool) -> None:
    """Capabilities on both sides, and no limit to the bandwidth."""
    for guest in (source, target):
        guest.capabilities(return_path=True, **capabilities)
        if capabilities.get("multifd"):
            guest.qmp("migrate-set-parameters", multifd_channels=4)
    source.qmp("migrate-set-parameters", max_bandwidth=0)


def status_of(end: Running) -> dict[str, Any]:
    """What `ps` shows of an end."""
    jobs: list[dict[str, Any]] = json.loads(run_statepipe("ps", "--json").stdout)
    return next(job for job in jobs if job["id"] == str(end.pid))


@contextlib.contextmanager
def server(way: Way) -> Iterator[socket.socket]:
    """A program that listens where the tunnel leads to."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(way.there))
        listener.listen(20)
        listener.settimeout(60)
        yield listener


def called(way: Way) -> socket.socket:
    """A program's connection into the near end."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(way.here))  # it listens before it has its name
    return connection


def answered(listener: socket.socket) -> socket.socket:
    """The next connection that comes out at the far end."""
    connection, _ = listener.accept()
    connection.settimeout(60)
    return connection


def everything(connection: socket.socket) -> bytes:
    """All that comes, to its end."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def echoed(way: Way, data: bytes) -> bytes:
    """What a program over there answers that says what it has heard."""
    with server(way) as listener:

        def echo() -> None:
            with answered(listener) as connection:
                connection.sendall(everything(connection))

        thread = threading.Thread(target=echo)
        thread.start()
        with called(way) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = everything(connection)
        thread.join()
    way.there.unlink()
    return answer
