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
    hears the arguments. `heard` has each command that came, `fds` the descriptors that were handed over; `identity` is
    the id of the last command."""

    def __init__(self, path: str, greeting: Any) -> None:
        self.path, self.answers = path, dict(ANSWERS)
        self.takes: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.fds: list[int] = []
        self.identity = ""
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
        for fd in self.fds:
            os.close(fd)

    def breaks_off(self) -> Any:
        """An answer in whose place the connection ends."""
        raise OSError

    def refused(self) -> Raw:
        """An answer to the last command: QEMU refuses it, or does not know it."""
        error = {"error": {"class": "GenericError", "desc": "no"}, "id": self.identity}
        return Raw(json.dumps(error).encode() + b"\n")

    def event(self, status: str, name: str = "MIGRATION") -> None:
        """Each client hears of a state of the migration, or of another event."""
        message = {"event": name, "data": {"status": status}, "timestamp": {"seconds": 1, "microseconds": 2}}
        for peer in self._peers:
            self._say(peer, message)

    def migrates(self, work: Callable[[socket.socket], None], command: str = "migrate") -> None:
        """From now on such a command has `work` done beside, with the descriptor that was handed over last."""

        def take(arguments: dict[str, Any]) -> dict[str, Any]:
            def run() -> None:
                with socket.socket(fileno=self.fds.pop()) as theirs:
                    work(theirs)

            self._threads.append(threading.Thread(target=run))
            self._threads[-1].start()
            return {}

        self.takes[command] = take

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
                self._threads.append(threading.Thread(target=self.serve, args=(peer,)))
                self._threads[-1].start()

    def serve(self, peer: socket.socket) -> None:
        """A client that is connected, until it leaves."""
        with suppress(OSError):
            self._converse(peer)
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)

    def _converse(self, peer: socket.socket) -> None:
        """Raises OSError, as an answer may that breaks it off."""
        self._say(peer, self._greeting)
        buffer = b""
        while True:
            data, fds, _, _ = socket.recv_fds(peer, 65536, 4)
            self.fds += fds
            if not data:
                return
            buffer = (buffer + data).lstrip()
            with suppress(ValueError):  # the rest of it is still to come
                while buffer:
                    text = buffer.decode()
                    request, end = json.JSONDecoder().raw_decode(text)
                    buffer = text[end:].lstrip().encode()
                    self._answer(peer, request)

    def _answer(self, peer: socket.socket, request: dict[str, Any]) -> None:
        command, self.identity = request["execute"], str(request.get("id"))
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
