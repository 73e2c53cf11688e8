"""What both hosts agree on before anything moves, and all that they ever say to each other: its shapes.

    offer     what the caller is there for, its guest and host (qemu/facts.py), how its stages are undone, and whether
              the guest is to run
    answer    the same facts of the other side; where it will not, the session is aborted with the reason
    begin     the caller has compared them, and is content
    step      an event of the two phases (recovery/handover.py), and where it ends the reason

Both sides are authenticated; still, no more is believed than must be. What is said is held against its shape here and
nowhere else, and each thing is said when it is due: `Offer.make`, `answer` and `begin` say it, `Offer.make`, `offered`,
`begun` and `step_of` hear it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from statepipe.errors import PeerError
from statepipe.migration.peer import Message, Peer
from statepipe.qemu.facts import FACTS
from statepipe.recovery.handover import Action, Destination, Event, Side, Source, destination, source
from statepipe.session.messages import MAX_MESSAGE
from statepipe.shapes import Misshapen, Shape, check, fields, flag, just, many, maybe, one_of, text, told

MIGRATE, CHECK = "migrate", "check"

UNDOING = {"decompress": "decompress:memory=8M", "decrypt": "decrypt"}
"""Stages that the other side may ask for, as words. They need no more than what this host's own configuration holds,
and no more memory than what our own compress makes: zstd in frames of 1 MiB, xz with 4 MiB of dictionary."""

STAGES = 4
"""How many of them: compressed and encrypted, each twice. Every one takes memory here."""

OFFER_TIME = 30.0
"""Seconds from the opening of a session to the whole of the offer: what it tells was gathered before, or takes a
second."""

BEGIN_TIME = 60.0
"""Seconds from the answer to what follows it. Two tables are compared meanwhile, and nobody is asked."""

ANSWER_TIME = 600.0
"""Seconds from the offer to the answer: a QEMU that makes its guest's memory ready beforehand takes minutes."""

_REASON = text(MAX_MESSAGE)

OFFER = fields(
    {"offer": one_of(MIGRATE, CHECK), "facts": FACTS, "undo": many(one_of(*UNDOING), most=STAGES), "runs": flag}
)
ANSWER = fields({"facts": FACTS})
BEGIN = fields({"begin": just(True)})

STEPS: Mapping[Action, Event] = {
    Action.SEND_ASK: Event.ASK,
    Action.SEND_GO: Event.GO,
    Action.SEND_ABORT: Event.ABORT,
    Action.SEND_READY: Event.READY,
    Action.SEND_ACCEPTED: Event.ACCEPTED,
    Action.SEND_RUNNING: Event.RUNNING,
    Action.SEND_REFUSED: Event.REFUSED,
    Action.SEND_UNSURE: Event.UNSURE,
}
"""What the other side hears when an action sends."""

_OF_SOURCE = (Event.ASK, Event.GO, Event.ABORT)
_OF_DESTINATION = (Event.READY, Event.ACCEPTED, Event.RUNNING, Event.REFUSED, Event.UNSURE)


def _step(*events: Event) -> Shape:
    return fields({"event": one_of(*(event.name for event in events))}, optional={"reason": maybe(_REASON)})


HEARD_BY: Mapping[type[Source] | type[Destination], Shape] = {
    Source: _step(*_OF_DESTINATION),
    Destination: _step(*_OF_SOURCE),
}
"""What each side may be told: that a guest runs here, nobody says but who runs it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """`facts` are those of qemu/facts.py, `undo` names stages in the order in which they undo the caller's."""

    purpose: str
    facts: dict[str, Any]
    undo: tuple[str, ...] = ()
    runs: bool = True

    @property
    def disks(self) -> list[str]:
        """The paths that the caller's guest has."""
        return [str(disk["path"]) for disk in self.facts["disks"]]

    def make(self, peer: Peer) -> dict[str, Any]:
        """Say it; the other side's facts. Raises PeerError with its reason where it will not."""
        peer.tell({"offer": self.purpose, "facts": self.facts, "undo": self.undo, "runs": self.runs})
        facts: dict[str, Any] = _heard(peer, ANSWER, "an answer to an offer", ANSWER_TIME)["facts"]
        return facts


def begin(peer: Peer) -> Side[Source]:
    """Tell the other host, whose answer was compared, that the guest begins to move; the source from then on.

    Raises PeerError.
    """
    side = source()
    for action in side.hear(Event.ANSWER):
        assert action is Action.SEND_BEGIN
        peer.tell({"begin": True})
    return side


def offered(peer: Peer) -> tuple[Offer, Side[Destination]]:
    """The caller's offer, and the destination from then on: QEMU is to wait, then `answer`.

    Raises PeerError if the message is not an offer, or if none comes within OFFER_TIME.
    """
    side = destination()
    message = _heard(peer, OFFER, "an offer of a guest", OFFER_TIME)
    actions = side.hear(Event.OFFER)
    assert actions == (Action.SEND_ANSWER,)
    return Offer(message["offer"], message["facts"], tuple(message["undo"]), message["runs"]), side


def answer(peer: Peer, facts: Mapping[str, Any]) -> None:
    """Tell the caller what this host has; its QEMU waits for the guest. Raises PeerError."""
    peer.tell({"facts": dict(facts)})


def begun(peer: Peer, offer: Offer, side: Side[Destination]) -> bool:
    """Whether the caller begins to move its guest; False if it leaves. `side` follows.

    Raises PeerError for any other message, and if nothing comes within BEGIN_TIME.
    """
    if (message := peer.hear(BEGIN_TIME)) is None:
        side.hear(Event.LOST)
        return False
    _checked(peer.name, message, BEGIN, "the message to begin")
    if offer.purpose == CHECK:
        hint = "update both hosts to the same version of statepipe"
        raise PeerError(f"{peer.name} announced a check but started a migration", hint=hint)
    side.hear(Event.BEGIN)
    return True


def step_of(message: Message, side: type[Source] | type[Destination]) -> tuple[Event, PeerError | None]:
    """The event in what `side` is told, and the reason for it. Raises PeerError for what it cannot be told."""
    _checked("the other host", message, HEARD_BY[side], "a step of a migration")
    reason = message.get("reason")
    return Event[message["event"]], PeerError(f"the other host says: {told(reason)}") if reason else None


def _heard(peer: Peer, shape: Shape, what: str, within: float) -> Message:
    """What the other side says next. Raises PeerError when it has left, or says something else."""
    if (message := peer.hear(within)) is None:
        raise PeerError(f"{peer.name} ended the session before both hosts had agreed to the migration")
    return _checked(peer.name, message, shape, what)


def _checked(name: str, message: Message, shape: Shape, what: str) -> Message:
    try:
        check(message, shape)
    except Misshapen as error:
        hint = "update both hosts to the same version of statepipe"
        raise PeerError(f"{name} sent something that is not {what}: {told(error, 200)}", hint=hint) from error
    return message
