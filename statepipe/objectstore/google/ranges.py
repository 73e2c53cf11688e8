"""A range of an object of Google's store: which object an answer is of, and whether it is what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from statepipe.errors import StatepipeError
from statepipe.objectstore.failures import cut_short, unreadable
from statepipe.objectstore.store import Seen
from statepipe.typed import Any

Read = Callable[[int], bytes]
"""Returns as many bytes of an answer, fewer at its end. Raises StatepipeError."""

_NUMBER = re.compile(r"[0-9]{1,19}")
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


def seen_in(resource: Mapping[str, Any], doing: str) -> Seen:
    """Return what the resource of an object says of it. Its generation tells it from any other with its key, as ETags
    of the two APIs differ. Raises Transient."""
    try:
        generation, size = str(int(resource["generation"])), int(resource["size"])
        notes = {str(name): str(note) for name, note in dict(resource.get("metadata") or {}).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(error, doing) from error
    return Seen(size, f'"{generation}"', generation, notes)


def range_in(answer: Any, start: int | None, size: int, doing: str, read: Read) -> GoogleRange:
    """Return the range that an answer (200, 206) brings, for `size` bytes at `start`, or the last ones if it is None.

    Raises StatepipeError for other bytes than those, or than are stored; Transient for what is no object.
    """
    headers = answer.headers
    generation, length = headers.get("X-Goog-Generation"), headers.get("Content-Length")
    if not generation or _NUMBER.fullmatch(length or "") is None:  # a portal's page, perhaps
        raise unreadable(ValueError(), doing)
    first, comes = 0, int(length)
    total = comes
    found = _RANGE.fullmatch(headers.get("Content-Range") or "")
    if found is not None:
        first, total, comes = int(found[1]), int(found[3]), int(found[2]) - int(found[1]) + 1
    _demand_as_stored(headers, total, doing)
    at = max(total - size, 0) if start is None else start
    if found is None and comes > size:
        what = f"cannot {doing}: the store sent the whole object"
        raise StatepipeError(what, hint="use a store, and a proxy before it, that can read ranges of an object")
    if (first, comes) != (at, min(size, total - at)):
        raise unreadable(ValueError(), doing)
    return GoogleRange(Seen(total, f'"{generation}"', generation, {}), first, comes, answer, doing, read)


def _demand_as_stored(headers: Mapping[str, str], total: int, doing: str) -> None:
    """Raise StatepipeError if the bytes that come are not those in the store, but packed or unpacked on the way."""
    stored, comes = headers.get("X-Goog-Stored-Content-Encoding"), headers.get("Content-Encoding") or "identity"
    length = headers.get("X-Goog-Stored-Content-Length") or str(total)
    if (stored or comes) != comes or length != str(total):
        what = f"cannot {doing}: it is stored as {stored or 'identity'} and comes as {comes}"
        raise StatepipeError(what, hint="remove its Content-Encoding: gcloud storage objects update")


class GoogleRange:
    """A range of an object on its way: of which object, where it begins, and how many bytes it has.

    Closed before its end, it gives up its connection.
    """

    def __init__(self, seen: Seen, start: int, size: int, answer: Any, doing: str, read: Read) -> None:
        self.seen, self.start, self.size = seen, start, size
        self._answer, self._doing, self._read = answer, doing, read

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises Transient if they do not come."""
        if not size or not self.size:
            return b""
        data = self._read(size)
        if len(data) != size:
            raise cut_short(self._doing)
        return data

    def close(self) -> None:
        """End it."""
        self._answer.close()
