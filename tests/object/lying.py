"""A server whose answers are what a test writes, byte by byte: a store that is broken, or hostile."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol


class Request:
    """A request: its head, and where the answer goes."""

    def __init__(self, head: bytes, connection: socket.socket, ended: threading.Event) -> None:
        self.head, self._connection, self.ended = head, connection, ended

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def answer(self, status: int, body: bytes = b"", *lines: str, length: int | None = None) -> None:
        """Send an answer, with these lines in its head. No other request comes on this connection."""
        size = len(body) if length is None else length
        head = [f"HTTP/1.1 {status} X", f"Content-Length: {size}", "Connection: close", *lines, "", ""]
        self.send("\r\n".join(head).encode("latin-1") + (b"" if self.head.startswith(b"HEAD") else body))

    def for_ever(self, piece: bytes, pause: float = 0) -> None:
        """Send it until the client goes, or the test ends."""
        while not self.ended.wait(pause):
            self.send(piece)


class Answer(Protocol):
    def __call__(self, request: Request, /) -> object: ...


@contextmanager
def lying(answer: Answer) -> Iterator[str]:
    """The endpoint of a store that answers so; each connection serves one request."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as reader:
            head = b"".join(iter(reader.readline, b"\r\n"))
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
            if any(line.startswith("expect:") for line in lines):
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            reader.read(length)
            answer(Request(head, connection, ended))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.settimeout(60)
            thread = threading.Thread(target=serve, args=(connection,))
            thread.start()
            threads.append(thread)

    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def says(status: int, body: bytes = b"", *lines: str, length: int | None = None) -> Answer:
    """An answer that is the same to all requests."""
    return lambda request: request.answer(status, body, *lines, length=length)
