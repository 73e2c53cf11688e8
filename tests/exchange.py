"""The exchange that docs/protocol.md shows, made by the two ends of today: their machines, over socket pairs.

What is random in a real session is fixed here: the session's id is 00 01 … 0f, its token 20 21 … 3f.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from statepipe.session.messages import Messages
from statepipe.session.protocol.admission import Doorkeeper, Party, Secrets
from statepipe.session.protocol.channels import WINDOW, ChannelVerdict
from statepipe.session.protocol.frames import GREETING_SIZE, Role, decode_greeting
from statepipe.session.protocol.states import State
from statepipe.session.protocol.wire import Wire
from statepipe.session.session import Session, Timing
from tests.wires import receive

SECRETS = Secrets(bytes(range(16)), bytes(range(32, 64)))

FIRST, SECOND = 16, 32
"""Numbers of the two links: one on lane 0, and the one that takes its place."""


class Ends:
    """A sender that dials and a receiver that accepts. `said` is all that went over the links, turn by turn."""

    def __init__(self, roles: tuple[Role, Role] = (Role.SENDS, Role.RECEIVES), channels: int = 1) -> None:
        self.sender = Wire(Party(SECRETS, roles[0], WINDOW), channels)
        self.receiver = Wire(Party(SECRETS, roles[1], WINDOW), channels)
        self.said: list[bytes] = []
        self._door = Doorkeeper(SECRETS, "the sender")

    @contextmanager
    def link(self, number: int) -> Iterator[Link]:
        """A link from its greeting to its loss."""
        here, there = socket.socketpair()
        with here, there:
            link = Link(self, number, here, there)
            here.sendall(self.sender.dial(number))
            greeting = decode_greeting(link.hear(there, GREETING_SIZE))
            self._door.admit(greeting, "the sender")
            there.sendall(self.receiver.accept(greeting))
            receive(self.sender, number, link.hear(here, GREETING_SIZE))
            yield link
        self.sender.lost(number)
        self.receiver.lost(number)


class Link:
    """One link of both ends."""

    def __init__(self, ends: Ends, number: int, here: socket.socket, there: socket.socket) -> None:
        self._ends, self._number, self._here, self._there = ends, number, here, there

    def send(self) -> None:
        """What the sender has to say now, to the receiver."""
        self._carry(self._ends.sender, self._here, self._ends.receiver, self._there)

    def answer(self) -> None:
        """What the receiver has to say now, to the sender."""
        self._carry(self._ends.receiver, self._there, self._ends.sender, self._here)

    def _carry(self, one: Wire, way: socket.socket, other: Wire, end: socket.socket) -> None:
        data = b"".join(one.to_send(self._number))
        way.sendall(data)
        receive(other, self._number, self.hear(end, len(data)))

    def hear(self, end: socket.socket, size: int) -> bytes:
        data = end.recv(size, socket.MSG_WAITALL)
        self._ends.said.append(data)
        return data


def transfer() -> list[bytes]:
    """`hello world` and a newline from one end to the other, over a link that dies and one that takes its place."""
    ends = Ends()
    out, back = ends.sender.open(0), ends.receiver.open(0)
    incoming = ends.receiver.read(0)
    ends.sender.read(0)

    def write(data: bytes) -> None:
        out.absorb(data)
        out.write(data)

    def consume() -> None:
        while (data := ends.receiver.take(incoming)) is not None:
            incoming.absorb(data)

    with ends.link(FIRST) as link:
        write(b"hello ")
        link.send()
        consume()
    with ends.link(SECOND) as link:
        link.answer()  # ACK
        write(b"world\n")
        ends.sender.end(out)
        link.send()  # END, DATA
        consume()
        for side in (ends.sender, ends.receiver):
            side.tick(8)
        link.send()  # PING
        ends.receiver.end(back)
        incoming.prove()
        ends.receiver.judge(incoming, ChannelVerdict())
        link.answer()  # END of what comes back, DONE, PING
        ends.sender.close()
        link.send()
        ends.receiver.close()
        link.answer()
    assert out.verdict == ChannelVerdict()
    assert ends.sender.state is ends.receiver.state is State.OVER
    return ends.said


def message() -> bytes:
    """The frame in which who moves a guest says that it begins."""
    ends = Ends((Role.BOTH, Role.BOTH), channels=2)
    with Session(ends.sender, Timing(tick=3600), "the other host") as session:
        Messages(session).tell({"begin": True})
        with ends.link(FIRST) as link:
            link.send()
    return ends.said[-1]
