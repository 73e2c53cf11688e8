"""Reaching who listens at a unix socket, and why nobody does."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

LOOK_AGAIN = 0.05
"""Seconds between two attempts at a socket where too many wait already."""


async def reached(path: str) -> socket.socket:
    """A socket that is connected to who listens at the path. Raises OSError.

    A connection to a unix socket is made at once, or not at all: where too many wait already, it is tried again.
    """
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.setblocking(False)
        while True:
            try:
                peer.connect(path)
                return peer
            except BlockingIOError:
                await asyncio.sleep(LOOK_AGAIN)
    except BaseException:
        peer.close()
        raise


def reason_of(cause: Exception) -> str:
    """In words, and no number of an error before them."""
    if isinstance(cause, EOFError):
        return "it closed the connection"
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause).rstrip(": ")


def no_socket(path: str) -> str | None:
    """What the path is, if it is no socket."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # what connecting says is as good
        return None
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}
    return None if stat.S_ISSOCK(mode) else f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, and no socket"
