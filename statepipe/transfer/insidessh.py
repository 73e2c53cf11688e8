"""The receiver that `send ssh://` starts through ssh: its links are pairs of descriptors, its own or handed over.

It outlives the ssh that started it: the end of its standard input is only a lost link, and it ignores SIGHUP. For later
links it listens at a socket in the runtime folder (session/attach.py).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from statepipe.ends.address import SSH, Address
from statepipe.ends.file import FileSink
from statepipe.ends.net import Patience
from statepipe.ends.peercred import user_name
from statepipe.errors import PeerError
from statepipe.session.attach import door
from statepipe.session.links import GREETING_TIME, Acceptor
from statepipe.session.options import ConnectionPlan
from statepipe.session.overtls import RETRY, timing, visit
from statepipe.session.pipelink import PipeTransport
from statepipe.session.protocol.frames import Role
from statepipe.session.ssh import NAME_SIZE, first_line
from statepipe.transfer.sendrecv import IDLE, receive


@contextmanager
def inside(acceptor: Acceptor) -> Iterator[None]:
    """Give the acceptor our standard input and output as a link, and later links during the context.

    Raises StatepipeError.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    name, user = os.urandom(NAME_SIZE).hex(), user_name(os.geteuid())

    def come(reading: int, writing: int, release: Callable[[], object] = lambda: None) -> None:
        transport = PipeTransport(reading, writing, "the sender", user, release)
        try:
            transport.send([first_line(name)])
        except OSError:  # it has left already; the next one may stay
            transport.close()
            return
        acceptor.adopt(transport)

    with door(name, come):
        taken = os.dup(0), os.dup(1)  # the link closes them; in their places there is nothing
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.close(nothing)
        come(*taken)
        yield


def first_patience(plan: ConnectionPlan) -> float:
    """Return the seconds in which the process that started us must begin its session."""
    return min(plan.retry or RETRY, GREETING_TIME)


def recv_inside(silence: float | None, retry: float | None, path: str) -> None:
    """Receive the stream of the sender that started us through ssh into a file. Raises StatepipeError.

    The file is opened once there is a session, so that the sender gets each error.
    """
    plan = ConnectionPlan(Address(SSH, path=path), (), Patience(silence), retry=retry)
    acceptor = Acceptor(Role.RECEIVES, timing(plan), turned_away)
    with inside(acceptor), visit(acceptor, first_patience(plan), IDLE) as visitor, FileSink(path) as sink:
        receive(plan, visitor, sink)


def turned_away(name: str, error: PeerError) -> None:
    """Drop the report: only this user's own processes connect here, and the sender reports a failed link."""
