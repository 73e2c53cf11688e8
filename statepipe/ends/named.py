"""A unix socket that listens under a name: it gets one, keeps watch over it, and takes it away at the end.

A name can be lost while its socket listens on, whole and unreachable: a folder is tidied up, or another program takes
the name for itself. Nothing tells of it, so whoever waits looks at the name now and then (`Named.lost`).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any, Self

from statepipe.ends.listeners import BACKLOG, ListeningSocket
from statepipe.ends.rendezvous import listen, sweep
from statepipe.errors import PeerError

NAME_LOOK = 1.0
"""Seconds between two looks at a name, at the most."""


class NameLost(PeerError):
    """Nobody who comes by the name finds us any more."""


class Named:
    """A socket that listens at `path` for those whom its mode lets in. A socket that nobody listens on gives way.

    Its name is taken away when it is closed, unless another has it by then. Raises OSError.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        folder, name = os.path.split(path)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sweep(opened, name)
            self._socket, self._made = listen(opened, name, BACKLOG, mode, folder)
        finally:
            os.close(opened)

    def lost(self) -> NameLost | None:
        """What became of its name, if that leads here no more; nothing is known where it may not be looked at."""
        try:
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._made:
                return None
            what = "another file has its name now"
        except (FileNotFoundError, NotADirectoryError):
            what = "its name was removed"
        except OSError:
            return None
        hint = "start it again, at a place that nobody tidies up or gives to another"
        return NameLost(f"nobody finds the socket {self._path} any more: {what}", hint=hint)

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
        """A second time does nothing."""
        if self._socket.fileno() >= 0 and self.lost() is None:
            with suppress(OSError):
                os.unlink(self._path)
        self._socket.close()


def name_lost(listener: ListeningSocket) -> NameLost | None:
    """What became of the name of a listener that has one, if it leads here no more."""
    return listener.lost() if isinstance(listener, Named) else None
