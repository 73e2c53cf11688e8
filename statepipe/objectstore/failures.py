"""What may go wrong with a store, of whatever kind: errors of ours, which say whether to try again.

Each names what was being done, to which object and part, the store's own words, and the next step. What the answers of
a kind of store mean stands with its client (s3/answers.py).
"""

from __future__ import annotations

from statepipe.errors import IntegrityError, PeerError, StatepipeError, UsageError
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.scheme import AZ, GS, S3


class Transient(PeerError):
    """The store, or the network to it, failed in a way that another attempt may not meet."""


class NotDone(Transient):
    """Nothing was done: the request was not sent, or the store has refused it for now."""


class Conflict(Transient):
    """Another writer was completing the same object at that moment (409): nothing of ours is there."""


class NotAsSent(IntegrityError, Transient):
    """The store has other bytes than were sent."""


class Occupied(UsageError):
    """There is an object already, and it is not to be replaced (412)."""


class UploadGone(StatepipeError):
    """The store does not know the upload: it was completed, aborted, or ended by a lifecycle rule."""


class NoConditions(StatepipeError):
    """The store does not know If-None-Match, and says so."""


class NoRight(StatepipeError):
    """The credentials lack a right (401, 403). It may be a right to look, without which writing still works."""


class Missing(StatepipeError):
    """There is no such object."""


class Replaced(StatepipeError):
    """The object was replaced or removed while it was read."""


_LISTED = {S3: "aws s3 ls", GS: "gcloud storage ls", AZ: "az storage blob list"}


def missing(address: ObjectAddress) -> Missing:
    """Return the error for an object that is not there."""
    hint = f"check the bucket and the key, as with: {_LISTED[address.scheme]}"
    return Missing(f"there is no object {address}", hint=hint)


def replaced(address: object, at: int | None) -> Replaced:
    """Return the error for an object of which the bytes from `at` on are no longer there."""
    hint = "take the object that was meant, and begin again; a store with versions still has the older one"
    where = "" if at is None else f", before byte {at} came"
    return Replaced(f"{address} was replaced or removed while it was read{where}", hint=hint, offset=at)


def occupied(address: object) -> Occupied:
    """Return the error for an object that must not be replaced."""
    hint = "name another object; put, save, recv and convert replace it with --overwrite"
    return Occupied(f"{address} exists already", hint=hint)


WAY = "the bytes were changed on their way: check the network and what stands between, such as a proxy"
LATER = "the store is overloaded or in trouble: try again later; --retry SECONDS waits longer"
NETWORK = "check the network and the endpoint; --retry SECONDS waits longer"


def cut_short(doing: str) -> Transient:
    """Return the error for an answer whose end did not come."""
    said = f"cannot {doing}: the connection ended before all of it came"
    return Transient(said, hint=NETWORK)


def unreadable(error: Exception, doing: str) -> Transient:
    """Return the error for an answer that was cut short, or is none of a store's."""
    said = f"cannot {doing}: the store's answer is cut short or none: {type(error).__name__}"
    return Transient(said, hint="check the endpoint, and what stands between, such as a proxy")


def unfit(what: str, doing: str) -> Transient:
    """Return the error for an answer that no store may send; `what` says what the store did."""
    said = f"cannot {doing}: the store {what}"
    return Transient(said, hint="check the endpoint: the store, or what stands between, is broken or not to be trusted")


def not_as_sent(doing: str, what: str) -> NotAsSent:
    """Return the error for a part that the store has in another form than was sent."""
    return NotAsSent(f"cannot {doing}: {what}", hint=WAY)


def may_come(name: str) -> PeerError:
    """Return the error for a commit without an answer, in a store that cannot end an upload."""
    return PeerError(f"the store may still carry out the request that makes {name}, whose answer did not come")
