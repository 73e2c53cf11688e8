"""What both hosts agree on before anything moves, and the shapes of all messages between them.

    offer     the caller's purpose, its guest and host (qemu/facts.py), how its stages are undone, and whether the
              guest runs afterwards
    answer    the same facts of the other side; if it refuses, it aborts the session with the reason
    begin     the caller has compared them, and begins
    step      an event of the two phases (recovery/handover.py), at an end with the reason

Both sides are authenticated; still, no more is believed than must be. Messages are checked against their shapes here
and nowhere else, each when it is due: `Offer.make`, `answer` and `begin` send, `Offer.make`, `offered`, `begun` and
`step_of` receive.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from statepipe.errors import PeerError
from statepipe.migration.peer import Message, Peer
from statepipe.qemu.facts import FACTS
from statepipe.recovery.handover import Action, Destination, Event, Side, Source, destination, source
from statepipe.session.messages import MAX_MESSAGE
from statepipe.shapes import Misshapen, Shape, check, fields, flag, just, many, maybe, one_of, text, told
from statepipe.typed import Any

MIGRATE, CHECK = "migrate", "check"

UNDOING = {"decompress": "decompress:memory=8M", "decrypt": "decrypt"}
"""Stages that the other side may ask for, as words. They need nothing but this host's own configuration, and no more
memory than the output of our own compress does: zstd in frames of 1 MiB, xz with 4 MiB of dictionary."""

STAGES = 4
"""Most of them: compressed and encrypted, each twice. Each takes memory here."""

OFFER_TIME = 30.0
"""Seconds from the opening of a session to the whole offer: its facts were gathered before, or take a second."""

BEGIN_TIME = 60.0
"""Seconds from the answer to the next message: the caller only compares two tables meanwhile, and asks nobody."""

ANSWER_TIME = 600.0
"""Seconds from the offer to the answer: a QEMU that allocates its guest's memory first takes minutes."""

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
"""The event of the other side when an action sends."""

_ENDS = (Event.ABORT, Event.REFUSED, Event.UNSURE)

_OF_SOURCE = (Event.ASK, Event.GO, Event.ABORT)
_OF_DESTINATION = (Event.READY, Event.ACCEPTED, Event.RUNNING, Event.REFUSED, Event.UNSURE)


def _step(*events: Event) -> Shape:
    return fields({"event": one_of(*(event.name for event in events))}, optional={"reason": maybe(_REASON)})


HEARD_BY: Mapping[type[Source] | type[Destination], Shape] = {
    Source: _step(*_OF_DESTINATION),
    Destination: _step(*_OF_SOURCE),
}
"""What each side may receive: only the side that runs a guest reports that it does."""


@dataclass(frozen=True, slots=True)
class Offer:
    """`facts` are those of qemu/facts.py; `undo` names the stages that undo the caller's, in order. `arrived` is this
    host's clock when it arrived."""

    purpose: str
    facts: dict[str, Any]
    undo: tuple[str, ...] = ()
    runs: bool = True
    arrived: float = 0.0

    @property
    def disks(self) -> list[str]:
        """The paths of the caller's disks."""
        return [str(disk["path"]) for disk in self.facts["disks"]]

    def make(self, peer: Peer) -> dict[str, Any]:
        """Send it, and return the other side's facts. Raises PeerError with its reason if it refuses."""
        peer.tell({"offer": self.purpose, "facts": self.facts, "undo": self.undo, "runs": self.runs})
        facts: dict[str, Any] = _heard(peer, ANSWER, "an answer to an offer", ANSWER_TIME)["facts"]
        return facts


def begin(peer: Peer) -> Side[Source]:
    """Tell the other host that the move begins, ask it whether all is well there, and return the source's side from
    then on. Raises PeerError."""
    side = source()
    actions = side.hear(Event.ANSWER)
    assert actions == (Action.SEND_BEGIN, Action.SEND_ASK)
    peer.tell({"begin": True})
    peer.tell({"event": STEPS[Action.SEND_ASK].name})  # its answer is here before the guest is stopped
    return side


def offered(peer: Peer) -> tuple[Offer, Side[Destination]]:
    """Return the caller's offer, and the destination's side from then on: start QEMU, then `answer`.

    Raises PeerError if the message is not an offer, or none arrives within OFFER_TIME.
    """
    side = destination()
    message = _heard(peer, OFFER, "an offer of a guest", OFFER_TIME)
    actions = side.hear(Event.OFFER)
    assert actions == (Action.SEND_ANSWER,)
    return Offer(message["offer"], message["facts"], tuple(message["undo"]), message["runs"], time.time()), side


def answer(peer: Peer, offer: Offer, facts: Mapping[str, Any]) -> None:
    """Send what this host has, once its QEMU waits for the guest. Raises PeerError.

    Its clock is the one that it had when the offer arrived: QEMU may have taken minutes to start since, and would make
    it seem ahead.
    """
    peer.tell({"facts": {**facts, "clock": offer.arrived}})


def begun(peer: Peer, offer: Offer, side: Side[Destination]) -> bool:
    """Return whether the caller begins to move its guest; False if it leaves. `side` follows.

    Raises PeerError for any other message, and if none arrives within BEGIN_TIME.
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
    """Return the event of a message to `side`, and its reason, which every end has. Raises PeerError for a message that
    it cannot receive."""
    _checked("the other host", message, HEARD_BY[side], "a step of a migration")
    event, reason = Event[message["event"]], message.get("reason")
    if reason:
        return event, PeerError(f"the other host says: {told(reason)}")
    return event, PeerError("the other host gave up, without a reason") if event in _ENDS else None


def _heard(peer: Peer, shape: Shape, what: str, within: float) -> Message:
    """Return the other side's next message. Raises PeerError if it has left, or the message is another."""
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
