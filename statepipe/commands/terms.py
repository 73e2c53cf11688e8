"""What both hosts agree on before anything moves.

    offer     what the caller is there for, its guest and host (qemu/facts.py), how its stages are undone, and whether
              the guest is to run
    answer    the same facts of the other side
    begin     the caller has compared them, and is content

Both sides are authenticated; still, no more is believed than must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statepipe.engine.peer import Message, Peer
from statepipe.errors import PeerError

MIGRATE, CHECK = "migrate", "check"

UNDOING = ("decompress", "decrypt")
"""Stages that the other side may ask for. They need no more than what this host's own configuration holds."""

STAGES = 8
"""How many of them."""


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
        answer = heard(peer)
        facts = answer.get("facts")
        if not isinstance(facts, dict):
            raise PeerError(f"{peer.name} will not: {str(answer.get('refused', 'it gives no reason'))[:1000]}")
        return facts


def heard(peer: Peer) -> Message:
    """What the other side says next. Raises PeerError when it has left."""
    if (message := peer.hear()) is None:
        raise PeerError(f"{peer.name} has left before anything was agreed on")
    return message


def offered(peer: Peer) -> Offer:
    """What the caller wants. Raises PeerError for what is no offer."""
    message = heard(peer)
    purpose, facts, undo = message.get("offer"), message.get("facts"), message.get("undo")
    if purpose not in (MIGRATE, CHECK) or not isinstance(facts, dict) or not isinstance(undo, list):
        raise PeerError(f"{peer.name} says {str(message)[:80]!r}, which is no offer of a guest", hint=_HINT)
    if len(undo) > STAGES or not all(name in UNDOING for name in undo):
        raise PeerError(f"{peer.name} has stages that cannot be undone here: {str(undo)[:80]}")
    return Offer(str(purpose), _known(facts, peer), tuple(undo), message.get("runs") is True)


_HINT = "are both sides of the same version?"


def _known(facts: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """What is read here of the facts has the shape that it should."""
    disks, guest = facts.get("disks"), facts.get("guest")
    sound = isinstance(guest, dict) and isinstance(disks, list)
    if not sound or not all(isinstance(disk, dict) and isinstance(disk.get("path"), str) for disk in disks or []):
        raise PeerError(f"{peer.name} tells nothing of its guest that is understood here", hint=_HINT)
    return facts
