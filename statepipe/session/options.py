"""How to reach the other host, from the options; and a connected sender, as a receiver sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statepipe.ends.address import Address
from statepipe.ends.config import LARGE
from statepipe.ends.net import Patience, SocketSource
from statepipe.pipeline.pipeline import NamedStage
from statepipe.stage import Buffer
from statepipe.telling import Tell, nobody
from statepipe.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the session and ssl take 30 ms, which a plain connection need not pay
    import socket

    from statepipe.session.streams import Inlet


class ConnectionPlan(NamedTuple):
    """How to reach the other host: its address, the stages on the way, and the limits of each wait.

    `bind` is our own address, for send. For TLS: `creds` is the folder with certificates (None: pinned keys), `peer`
    the only peer that is accepted, `retry` the seconds that a session continues without a link (None: overtls.RETRY),
    `links` the number of links of a sender, `also` further addresses of the same host. `allow_empty`: a plain receiver
    accepts an empty stream. For ssh: `ssh` starts it here, `remote` is what its shell starts there. `ready` is an
    existing connection to the address. `records` is one of ends.config.RECORDS. `say` reports that nothing arrives
    from the other side.
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
    records: str = LARGE
    say: Tell = nobody


class Visit(NamedTuple):
    """A connected sender: its stream, how to send something back, and how to report success."""

    source: SocketSource | Inlet
    send: Callable[[Buffer], object]
    finish: Callable[[], object]
