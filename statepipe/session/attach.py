"""Where later links find a receiver that was started through ssh: a unix socket in the user's runtime folder.

A visitor hands over its own standard input and output (SCM_RIGHTS), and stays only so that its ssh does not end: the
bytes never pass through it. ssh has authenticated it, and the kernel says that it runs as the same user (SO_PEERCRED).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from statepipe.ends.peercred import is_ours
from statepipe.ends.rendezvous import inside, listen, remove, sweep
from statepipe.errors import PeerError, StatepipeError
from statepipe.pipeline.runtimefolder import open_runtime_folder, runtime_folder
from statepipe.threads import beside
from statepipe.wakeups import Bell, polled

HANDOVER_TIME = 5.0
"""Seconds in which a visitor must hand over its descriptors. It does so at once."""

QUEUE = 128
"""Links that may wait to be accepted; a session has 16 at most."""

_PREFIX = "session-"

Come = Callable[[int, int, Callable[[], object]], object]
"""Takes a link: a descriptor to read, one to write, and what to call at its end."""


@contextmanager
def door(name: str, come: Come) -> Iterator[None]:
    """Accept later links of the session of that name during the context. Raises StatepipeError."""
    try:
        folder, _ = open_runtime_folder()
    except OSError as error:
        raise StatepipeError(
            f"cannot open a socket for links in {runtime_folder()}: {os.strerror(error.errno or 0)}"
        ) from error
    try:
        for left in os.listdir(folder):  # by receivers that were killed
            if left.startswith(_PREFIX):
                sweep(folder, left)
        try:
            bound, file = listen(folder, _PREFIX + name, QUEUE)
            listener = socket.socket(fileno=bound.detach())
        except OSError as error:
            raise StatepipeError(f"cannot open a socket for links: {os.strerror(error.errno or 0)}") from error
        end = Bell()

        def watch() -> None:
            poll = polled(listener.fileno(), end.fd)
            while not any(fd == end.fd for fd, _ in poll.poll()):
                with suppress(OSError):  # the visitor left, or handed over nothing
                    _let_in(listener.accept()[0], come)

        with closing(listener), beside("door", watch, end.ring):
            try:
                yield
            finally:
                remove(folder, _PREFIX + name, file)
    finally:
        os.close(folder)


def _let_in(visitor: socket.socket, come: Come) -> None:
    """Take the descriptors of a visitor. Raises OSError."""
    fds: list[int] = []
    try:
        if not is_ours(visitor):
            raise PermissionError("another user")
        visitor.settimeout(HANDOVER_TIME)
        _, fds, _, _ = socket.recv_fds(visitor, 1, 2)
        if len(fds) != 2:
            raise ConnectionError("no link came")
        come(fds[0], fds[1], visitor.close)
    except BaseException:
        for fd in fds:
            os.close(fd)
        visitor.close()
        raise


def hand_over(name: str) -> None:
    """Give our standard input and output to the receiver of that session, and wait until it has finished with them.

    Raises PeerError if there is no such receiver.
    """
    try:
        folder, _ = open_runtime_folder()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(inside(folder, _PREFIX + name))
                socket.send_fds(connection, [b"\0"], [0, 1])
                connection.recv(1)
        finally:
            os.close(folder)
    except OSError as error:
        hint = "the receiver has ended: read its messages"
        raise PeerError(f"there is no session {name} here", hint=hint) from error
