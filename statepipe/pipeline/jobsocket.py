"""Answer those who ask how it goes, over a unix socket, beside the data's way.

One thread waits for clients and for its own end. A request is one line of JSON, `{"do": "status"}`, and gets one in
answer: `{"ok": …}`, or `{"error": …, "hint": …}`. The clients are the user's own processes, or root's; even so
nothing they do is waited for: each has so many bytes and so long, and an answer that does not fit into the socket at
once is dropped with its client.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from statepipe.ends.peercred import is_ours
from statepipe.ends.rendezvous import File, listen, remove, sweep
from statepipe.errors import StatepipeError
from statepipe.pipeline.runtimefolder import open_runtime_folder
from statepipe.threads import begin
from statepipe.wakeups import Bell

REQUEST_LIMIT = 4096
"""Bytes; the longest request there is has sixty."""

REQUEST_TIME = 2.0
"""Seconds that a client has for its request."""

CLIENTS = 32
"""Clients at once."""

QUEUE = 128
"""How many more wait to be let in; those behind are told that we are busy."""

NAMES = 99
"""Processes of one id, in different pid namespaces, that a folder tells apart."""


class Asked(Protocol):
    """Who knows the answers. Each may raise StatepipeError."""

    def status(self) -> dict[str, Any]: ...

    def set_rate(self, rate: int | None) -> None: ...

    def cancel(self) -> None: ...


class _Client:
    """One that was let in, what it has said so far, and until when it may go on."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.said = b""
        self.until = time.monotonic() + REQUEST_TIME

    def hear(self) -> bool:
        """Take what there is; False once there will be no request."""
        try:
            part = self.connection.recv(REQUEST_LIMIT)
        except OSError:
            return False
        self.said += part
        return bool(part) and len(self.said) <= REQUEST_LIMIT


class JobSocket:
    """A socket in the runtime folder `place`, its `name`, and the thread that answers there until `close`.

    Raises OSError.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._clients: dict[int, _Client] = {}
        self._folder, self.place = open_runtime_folder()
        try:
            self._socket, self.name, self._file = publish(self._folder)
        except BaseException:
            os.close(self._folder)
            raise
        self._end = Bell()
        self._poll = select.poll()
        self._poll.register(self._end.fd, select.POLLIN)
        self._poll.register(self._socket, select.POLLIN)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            begin(self._thread)  # it hears no signals: they are the main thread's
        except StatepipeError as error:
            self._put_away()
            raise OSError(errno.EAGAIN, str(error)) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the thread, and take the name away if it is still ours."""
        self._end.ring()
        self._thread.join()
        self._put_away()

    def _put_away(self) -> None:
        remove(self._folder, self.name, self._file)
        for client in self._clients.values():
            client.connection.close()
        self._socket.close()
        os.close(self._folder)
        self._end.close()

    def _serve(self) -> None:
        while True:
            ready = [fd for fd, _ in self._poll.poll(self._wait())]
            if self._end.fd in ready:
                return
            for fd in ready:
                if fd in self._clients:
                    self._hear(self._clients[fd])
                else:
                    self._accept()
            now = time.monotonic()
            for client in [each for each in self._clients.values() if each.until <= now]:
                self._part(client).close()

    def _wait(self) -> float | None:
        """Milliseconds until a client has had its time."""
        ends = [client.until for client in self._clients.values()]
        return max(min(ends) - time.monotonic(), 0) * 1000 + 1 if ends else None

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:  # it left again, or there is no descriptor to spare: then it may try again
            return
        if not is_ours(connection):
            connection.close()
            return
        self._clients[connection.fileno()] = _Client(connection)
        self._poll.register(connection, select.POLLIN)
        if len(self._clients) == CLIENTS:
            self._poll.unregister(self._socket)

    def _hear(self, client: _Client) -> None:
        goes_on = client.hear()
        if b"\n" in client.said:
            connection = self._part(client)
            if answer(self._asked, client.said, connection):
                connection.detach()  # open as long as the process lives: its end is what the client waits for
            connection.close()
        elif not goes_on:
            self._part(client).close()

    def _part(self, client: _Client) -> socket.socket:
        del self._clients[client.connection.fileno()]
        self._poll.unregister(client.connection)
        self._poll.register(self._socket, select.POLLIN)
        return client.connection


def answer(asked: Asked, request: bytes, connection: socket.socket) -> bool:
    """Do what a line asks, and say how it went; True if the client waits for the end of this process.

    It is told before it is cancelled, as there may be nobody to tell it afterwards.
    """
    import json

    try:
        what = _understand(json.loads(request))
        reply: dict[str, Any] = {"ok": what(asked)}
    except StatepipeError as error:
        reply = {"error": str(error), "hint": error.hint}
    except (ValueError, RecursionError):
        reply = {"error": "this is no request of statepipe's", "hint": None}
    line = json.dumps(reply).encode() + b"\n"
    try:
        return connection.send(line) == len(line) and reply.get("ok") == CANCELLING
    except OSError:  # the client is gone, or reads nothing
        return False


CANCELLING = "ending"
"""The answer to cancel."""


def _understand(request: object) -> Callable[[Asked], object]:
    """The request as something to do. Raises ValueError."""
    match request:
        case {"do": "status"}:
            return lambda asked: asked.status()
        case {"do": "rate", "rate": rate} if rate is None or (type(rate) is int and 0 < rate < 1 << 63):
            return lambda asked: asked.set_rate(rate)
        case {"do": "cancel"}:
            return _cancel
    raise ValueError("not one of these")


def _cancel(asked: Asked) -> str:
    asked.cancel()
    return CANCELLING


def publish(folder: int) -> tuple[socket.socket, str, File]:
    """A socket that listens in the folder under our process id; its name there, and its file. Raises OSError."""
    for number in range(1, NAMES + 1):
        name = str(os.getpid()) if number == 1 else f"{os.getpid()}-{number}"
        sweep(folder, name)
        try:
            listener, file = listen(folder, name, QUEUE)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            listener.setblocking(False)
            return listener, name, file
    raise FileExistsError(f"{NAMES} processes have the id {os.getpid()}")
