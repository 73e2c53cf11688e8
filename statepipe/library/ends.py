"""Sources and sinks of a pipeline: descriptors, files and sockets.

A source is a context manager; leave it once the pipeline has ended. A sink is entered by `Pipeline.run`. What is
handed in stays the caller's: its descriptor or socket is not closed. A pipe is enlarged to 1 MiB.
"""

from __future__ import annotations

import os
import socket

from statepipe.ends.fd import FdSink, FdSource
from statepipe.ends.file import FileSink
from statepipe.ends.net import Patience, SocketSink, SocketSource
from statepipe.ends.source import AnyFile


def from_fd(fd: int, name: str | None = None) -> FdSource:
    """Return a source of what can be read from a descriptor, until its end of file. Errors call it `name`."""
    return FdSource(fd, name or f"descriptor {fd}")


def to_fd(fd: int, name: str | None = None) -> FdSink:
    """Return a sink that writes to a descriptor. It raises ReaderGone once nobody reads any more."""
    return FdSink(fd, name or f"descriptor {fd}")


def from_file(path: str | os.PathLike[str]) -> AnyFile:
    """Return a source of a file, a named pipe or a device. Raises StatepipeError if it cannot be opened."""
    return AnyFile(os.fspath(path))


def to_file(path: str | os.PathLike[str], mode: int = 0o600) -> FileSink:
    """Return a sink that writes a new file, which has its name only once it is whole and on the disk.

    Until then a file of that name stays as it is. `mode` is the new file's, less the umask. Raises StatepipeError at
    once if it cannot be made.
    """
    return FileSink(os.fspath(path), mode)


def from_socket(connection: socket.socket, name: str = "the connection", timeout: float | None = None) -> SocketSource:
    """Return a source of a connected stream socket, until the peer closes its side.

    It raises PeerError for a reset, and where nothing came for `timeout` seconds.
    """
    return SocketSource(connection, name, Patience(timeout))


def to_socket(connection: socket.socket, name: str = "the connection", timeout: float | None = None) -> SocketSink:
    """Return a sink that sends to a connected stream socket. It is complete once the peer has closed its side, too.

    A pipeline that fails resets the connection. It raises PeerError, also where the peer takes nothing for `timeout`
    seconds, which becomes the socket's own timeout.
    """
    connection.settimeout(timeout)
    return SocketSink(connection, name, Patience(timeout))
