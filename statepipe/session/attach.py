"""Where later links find a receiver that was started inside ssh: a unix socket in the user's runtime folder.

Who comes in hands over its own standard input and output (SCM_RIGHTS), and stays only so that ssh does not end: the
bytes never pass through it. ssh has authenticated it, and the kernel says that it is the same user's (SO_PEERCRED).
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from statepipe.ends.peercred import is_ours
from statepipe.ends.rendezvous import inside, listen, remove, sweep
from statepipe.errors import PeerError, StatepipeError
from statepipe.pipeline.runtimefolder import open_runtime_folder, runtime_folder
from statepipe.threads import beside

HANDOVER_TIME = 5.0
"""Seconds in which a visitor hands its descriptors over: it does so at once."""

LOOK_FOR_END = 250
"""Milliseconds between two looks at whether links are still wanted: so late may the end of a receiver be."""

QUEUE = 128
"""Links that may wait to be let in: a session has 16 at most."""

_PREFIX = "session-"

Come = Callable[[int, int, Callable[[], object]], object]
"""Takes a link: where to read, where to write, and what to call once it is over."""


@contextmanager
def door(name: str, come: Come) -> Iterator[None]:
    """Within it, later links of the session of that name are let in. Raises StatepipeError."""
    try:
        folder, _ = open_runtime_folder()
    except OSError as error:
        raise StatepipeError(f"cannot wait for links in {runtime_folder()}: {os.strerror(error.errno or 0)}") from error
    try:
        for left in os.listdir(folder):  # by receivers that were killed
            if left.startswith(_PREFIX):
                sweep(folder, left)
        try:
            listener, file = listen(folder, _PREFIX + name, QUEUE)
        except OSError as error:
            raise StatepipeError(f"cannot wait for links: {os.strerror(error.errno or 0)}") from error
        with closing(listener), _watched(listener, come):
            try:
                yield
            finally:
                remove(folder, _PREFIX + name, file)
    finally:
        os.close(folder)


@contextmanager
def _watched(listener: socket.socket, come: Come) -> Iterator[None]:
    closed = threading.Event()
    poll = select.poll()
    poll.register(listener, select.POLLIN)

    def watch() -> None:
        while not closed.is_set():
            if poll.poll(LOOK_FOR_END):
                with suppress(OSError):  # it left again, or had nothing to hand over
                    _let_in(listener.accept()[0], come)

    with beside("door", watch, closed.set):
        yield


def _let_in(visitor: socket.socket, come: Come) -> None:
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
    """Give our standard input and output to the receiver of that session, and wait until it is done with them.

    Raises PeerError where there is none.
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
        hint = "the receiver has ended: look at what it said"
        raise PeerError(f"there is no session {name} here", hint=hint) from error
