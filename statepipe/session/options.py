"""What send and recv are asked for, and what a sender who came in is to a receiver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from statepipe.ends.address import Address
from statepipe.ends.net import Patience, SocketSource
from statepipe.pipeline.pipeline import NamedStage
from statepipe.stage import Buffer
from statepipe.telling import Tell, nobody

if TYPE_CHECKING:  # the session and ssl take 30 ms, which a plain connection need not pay
    import socket

    from statepipe.session.streams import Inlet


@dataclass(frozen=True, slots=True)
class Plan:
    """Where, through which stages, how patiently, and from which address of ours (`bind`, for send).

    For TLS: the folder with certificates (None: the pinned keys), the one peer that is meant, how many seconds a
    session goes on without any link (None: as long as overtls.py has it), how many links a sender keeps, and which
    other addresses of the same host they lead to in turn. For a plain receiver: whether a stream of no byte is one
    (`allow_empty`). For ssh: the words that start it here, and the shell's that start statepipe there. `ready` is a
    connection to the address that is there already. `say` is told when the other side is not heard of for a while.
    """

    address: Address
    words: Sequence[NamedStage]
    patience: Patience
    insecure: bool = False
    bind: str | None = None
    creds: str | None = None
    peer: str | None = None
    retry: float | None = None
    links: int = 1
    ssh: Sequence[str] = ("ssh",)
    remote: str = "statepipe"
    also: Sequence[Address] = ()
    allow_empty: bool = False
    ready: socket.socket | None = None
    say: Tell = nobody


@dataclass(frozen=True, slots=True)
class Visit:
    """A sender who came in: its stream, how to send it something, and how to tell it that all is well."""

    source: SocketSource | Inlet
    send: Callable[[Buffer], object]
    finish: Callable[[], object]
