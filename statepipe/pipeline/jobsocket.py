"""Answer requests about a job over a unix socket, while the job works.

One thread waits for clients and for its own end. A request is one line of JSON, `{"do": "status"}`, and is answered by
one: `{"ok": …}`, or `{"error": …, "hint": …}`. The clients are processes of the same user or root. Even so, the thread
never waits for a client: its bytes and its time are limited, and an answer that does not fit into the socket at once is
dropped with the client.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import signal
import threading
import time

from statepipe.ends.peercred import is_ours
from statepipe.ends.rendezvous import File, listen, remove, sweep
from statepipe.errors import StatepipeError
from statepipe.pipeline.runtimefolder import open_runtime_folder
from statepipe.threads import begin
from statepipe.typed import TYPE_CHECKING, Any, Protocol
from statepipe.wakeups import Bell

if TYPE_CHECKING:
    import socket

REQUEST_LIMIT = 4096
"""Bytes of a request at most; the longest has sixty."""

REQUEST_TIME = 2.0
"""Seconds for a client's request."""

CLIENTS = 32
"""Clients at a time."""

QUEUE = 128
"""Further clients that wait to be accepted; the system refuses any more."""

NAMES = 99
"""Processes with the same id, in different pid namespaces, that a folder can hold."""


class Asked(Protocol):
    """Gives the answers. Each may raise StatepipeError."""

    def status(self) -> dict[str, Any]: ...

    def set_rate(self, rate: int | None) -> None: ...

    def cancel(self) -> None: ...


class _Client:
    """A connected client, what it has sent so far, and its deadline."""

    def __init__(self, connection: _socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.said = b""
        self.until = time.monotonic() + REQUEST_TIME

    def hear(self) -> bool:
        """Receive what has arrived; return False if no request can follow."""
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
            begin(self._thread)  # it gets no signals: they are for the main thread
        except StatepipeError as error:
            self._put_away()
            raise OSError(errno.EAGAIN, str(error)) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the thread, and remove the name if it is still ours."""
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
            ends = [client.until for client in self._clients.values()]
            wait = max(min(ends) - time.monotonic(), 0) * 1000 + 1 if ends else None
            ready = [fd for fd, _ in self._poll.poll(wait)]
            if self._end.fd in ready:
                return
            for fd in ready:
                if fd not in self._clients:
                    self._accept()
                    continue
                client = self._clients[fd]
                goes_on = client.hear()
                if b"\n" in client.said:
                    connection = self._part(client)
                    if answer(self._asked, client.said, connection):
                        connection.detach()  # stays open until the process ends: the client waits for that
                    connection.close()
                elif not goes_on:
                    self._part(client).close()
            now = time.monotonic()
            for client in [each for each in self._clients.values() if each.until <= now]:
                self._part(client).close()

    def _listener(self) -> socket.socket:
        """Return the socket as one of `socket`, which is only imported when somebody asks."""
        import socket

        if not isinstance(self._socket, socket.socket):
            self._socket = socket.socket(fileno=self._socket.detach())
            self._socket.setblocking(False)
        return self._socket

    def _accept(self) -> None:
        try:
            connection, _ = self._listener().accept()
        except OSError:  # it has left again, or no descriptor is free: then it is accepted later
            return
        if not is_ours(connection):
            connection.close()
            return
        self._clients[connection.fileno()] = _Client(connection)
        self._poll.register(connection, select.POLLIN)
        if len(self._clients) == CLIENTS:
            self._poll.unregister(self._socket)

    def _part(self, client: _Client) -> _socket.socket:
        del self._clients[client.connection.fileno()]
        self._poll.unregister(client.connection)
        self._poll.register(self._socket, select.POLLIN)
        return client.connection


def answer(asked: Asked, request: bytes, connection: _socket.socket) -> bool:
    """Execute the request in a line, and answer it; return whether the client waits for the end of this process."""
    import json

    reply: dict[str, Any] = {"error": "this is not a request of statepipe's", "hint": None}
    try:
        match json.loads(request):
            case {"do": "status"}:
                reply = {"ok": asked.status()}
            case {"do": "rate", "rate": rate} if rate is None or (type(rate) is int and 0 < rate < 1 << 63):
                asked.set_rate(rate)
                reply = {"ok": None}
            case {"do": "cancel"}:
                asked.cancel()
                reply = {"ok": CANCELLING}
    except StatepipeError as error:
        reply = {"error": str(error), "hint": error.hint}
    except (ValueError, RecursionError):
        pass  # the reply says so
    line = json.dumps(reply).encode() + b"\n"
    try:
        return connection.send(line) == len(line) and reply.get("ok") == CANCELLING
    except OSError:  # the client has left, or does not read
        return False


CANCELLING = "ending"
"""The answer to cancel."""


def publish(folder: int) -> tuple[_socket.socket, str, File]:
    """Listen in the folder under our process id; return the socket, its name and its file. Raises OSError."""
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
    raise FileExistsError(f"{NAMES} processes have the same id {os.getpid()}")
