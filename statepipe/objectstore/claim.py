"""An upload whose process was killed: another process finds out whether it has made its object, and takes that back."""

from __future__ import annotations

from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.failures import may_come
from statepipe.objectstore.open import open_store
from statepipe.objectstore.retry import Tries
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Seen, Store, Upload
from statepipe.objectstore.upload import HURRY, NOTE
from statepipe.telling import nobody
from statepipe.threads import End
from statepipe.typed import NamedTuple


class Claim(NamedTuple):
    """The upload: its address and id, the note that its object has, and the endpoint of its store."""

    address: ObjectAddress
    id: str
    note: str
    endpoint: str | None

    def has_made(self) -> bool:
        """End the upload, so that no late request completes it, and return whether the object is there by now. A store
        that cannot end an upload may still make it later.

        Raises StatepipeError if the store does not tell within HURRY seconds.
        """
        store, tries = self._store()
        tries(lambda: store.abort(Upload(self.address, self.id, None)))
        return self._seen(store, tries) is not None

    def take_back(self) -> None:
        """Remove the object if this upload has made it. Raises StatepipeError, also if it may still come."""
        store, tries = self._store()
        left = tries(lambda: store.abort(Upload(self.address, self.id, None)))
        if (seen := self._seen(store, tries)) is not None:
            tries(lambda: store.remove(self.address, seen))
        elif left is not None:
            raise may_come(str(self.address))

    def _store(self) -> tuple[Store, Tries]:
        return open_store(self.address, Settings(self.endpoint, HURRY)), Tries(HURRY, nobody, End())

    def _seen(self, store: Store, tries: Tries) -> Seen | None:
        seen = tries(lambda: store.look(self.address))
        return seen if seen is not None and seen.notes.get(NOTE) == self.note else None
