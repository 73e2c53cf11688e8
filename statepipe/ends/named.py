"""A unix socket that listens under a name: create the name, watch it, and remove it at the end.

A socket can lose its name while it listens: a cleaning job removes the file, or another program takes the name. Then no
client can reach it. No event reports this, so the name is checked from time to time (`Named.lost`).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from statepipe.ends.listeners import BACKLOG, ListeningSocket
from statepipe.ends.rendezvous import listen, sweep
from statepipe.errors import PeerError
from statepipe.typed import Any, Self

NAME_LOOK = 1.0
"""Seconds between two checks of a name at most."""


class NameLost(PeerError):
    """The socket can no longer be reached by its name."""


class Named:
    """A socket that listens at `path`; `mode` decides who may connect. It replaces a socket without a listener.

    Its name is removed when it is closed, unless another file has the name by then. Raises OSError.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        folder, name = os.path.split(path)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sweep(opened, name)
            listener, self._made = listen(opened, name, BACKLOG, mode, folder)
            self._socket = socket.socket(fileno=listener.detach())
        finally:
            os.close(opened)

    def lost(self) -> NameLost | None:
        """Return why the name no longer leads to this socket; None if it does, or if the name cannot be read."""
        try:
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._made:
                return None
            what = "another file has its name now"
        except (FileNotFoundError, NotADirectoryError):
            what = "its name was removed"
        except OSError:
            return None
        hint = "start it again, at a path that no other program cleans up or uses"
        return NameLost(f"the socket {self._path} can no longer be reached: {what}", hint=hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select and its kind."""
        return self._socket.fileno()

    def settimeout(self, value: float | None) -> None:
        """As a socket's."""
        self._socket.settimeout(value)

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._socket.setblocking(flag)

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's."""
        return self._socket.accept()

    def getsockname(self) -> Any:
        """As a socket's."""
        return self._socket.getsockname()

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if self._socket.fileno() >= 0 and self.lost() is None:
            with suppress(OSError):
                os.unlink(self._path)
        self._socket.close()


def name_lost(listener: ListeningSocket) -> NameLost | None:
    """Return why a listener can no longer be reached by its name; None if it can, or has no name."""
    return listener.lost() if isinstance(listener, Named) else None
