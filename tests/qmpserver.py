"""A QMP server that is no QEMU: it answers as it is told to, oddly, late or never."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}

SILENT = object()
"""No answer, until the connection ends."""

ANSWERS: dict[str, Any] = {
    "query-status": {"status": "paused"},
    "query-migrate": {},
    "query-migrate-capabilities": [{"capability": "events", "state": False}],
    "query-migrate-parameters": {"max-bandwidth": 1},
    "query-version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""},
    "query-memory-size-summary": {"base-memory": 1 << 27},
    "query-name": {},
    "query-uuid": {"UUID": "00000000-0000-0000-0000-000000000000"},
    "query-target": {"arch": "x86_64"},
    "query-kvm": {"enabled": False},
    "query-cpus-fast": [{"qom-path": "/machine/unattached/device[0]"}],
    "query-named-block-nodes": [{"drv": "file", "file": "/none/vm.img"}],
    "query-block": [],
    "query-pci": [],
    "x-debug-query-block-graph": {"nodes": [], "edges": []},
    "qom-list": [],
    "qom-get parent_bus": "",
    "qom-get chardev": "",
    "qom-get type": "pc-machine",
    "qom-get feature-words": [{"cpuid-input-eax": 1, "cpuid-register": "EDX", "features": 1}],
    "qom-get filtered-features": [],
    "qom-get tsc-frequency": 0,
}
"""As a guest that stands still would have it."""


class Raw(bytes):
    """What is sent in the place of an answer, as it is."""


class QmpServer:
    """`answers` by command, of qom-get by property too; a value may be a function that waits. What is in `takes`
    hears the arguments. `heard` has each command that came."""

    def __init__(self, path: str, greeting: Any) -> None:
        self.path, self.answers = path, dict(ANSWERS)
        self.takes: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._greeting = greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Nobody is served any more."""
        for each in (self._listener, *self._peers):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._peers):
            each.close()

    def commands(self) -> list[str]:
        """Each command that has come since this was asked before."""
        return [self.heard.get() for _ in range(self.heard.qsize())]

    def wait_for(self, command: str) -> None:
        """Until it comes, past all others."""
        while self.heard.get(timeout=60) != command:
            continue

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer = self._listener.accept()[0]
                self._peers.append(peer)
                self._threads.append(threading.Thread(target=self._serve, args=(peer,)))
                self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with suppress(OSError), peer.makefile("rb") as lines:
            self._say(peer, self._greeting)
            buffer = b""
            while data := lines.read1(65536):
                buffer += data.lstrip(b" ") if not buffer else data
                with suppress(ValueError):
                    request = json.loads(buffer)
                    buffer = b""
                    self._answer(peer, request)

    def _answer(self, peer: socket.socket, request: dict[str, Any]) -> None:
        command = request["execute"]
        key = f"{command} {request['arguments']['property']}" if command == "qom-get" else command
        answer = self.takes[key](request["arguments"]) if key in self.takes else self.answers.get(key, {})
        self.heard.put(command)
        if isinstance(answer, Callable):  # type: ignore[arg-type]
            answer = answer()
        if answer is SILENT or isinstance(answer, Raw):
            self._say(peer, answer)
        else:
            self._say(peer, {"return": answer, **({"id": request["id"]} if "id" in request else {})})

    def _say(self, peer: socket.socket, message: Any) -> None:
        if message is not SILENT:
            peer.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n")


@contextmanager
def qmp_server(folder: os.PathLike[str] | str, greeting: Any = GREETING) -> Iterator[QmpServer]:
    """One that listens in the folder."""
    server = QmpServer(os.path.join(folder, "q"), greeting)
    try:
        yield server
    finally:
        server.close()
