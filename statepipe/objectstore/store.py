"""What an object store does for us, whatever its kind: two roles, one for writing an object and one for reading one.

To write: `begin` an upload, `put` its parts, as many side by side as the store takes (if one, in their order), compare
them with `parts`, and `complete` it. Before that, no object is there. `abort` ends an upload that is not to be
completed; `begun` and `uploads` find those that a killed process has left. To read: `fetch` ranges; the first tells
which object it is of, and the others are of that one.

Every method makes one attempt, may be called from any thread, and raises a StatepipeError that names the bucket, the
key and the next step (failures.py): Transient, if another attempt may succeed.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property

from statepipe.objectstore.address import ObjectAddress
from statepipe.typed import Any, NamedTuple, Protocol


class Seen(NamedTuple):
    """An object as it was seen: its bytes, what tells it from any other that has its key, and what its writer noted.

    `etag` is the store's, quotes included (of Google's, the generation). `version` is None without versioning.
    """

    size: int
    etag: str
    version: str | None
    notes: Mapping[str, str]


class Part(NamedTuple):
    """A part that the store has: its number from 1, its bytes, the store's `etag`, and its SHA-256 in base64, None if
    the store does not tell it."""

    number: int
    size: int
    etag: str
    sha256: str | None


class Upload(NamedTuple):
    """An upload that was begun and neither completed nor aborted. `started` is None where the store does not tell.

    `state` is what its client keeps of it, if that must not be told or changes; no other process has it.
    """

    address: ObjectAddress
    id: str
    started: datetime | None
    state: Any = None


class Rereadable(Protocol):
    """A file that can be read again from its beginning."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...


class Content:
    """The bytes of a part as a file, and their number."""

    def __init__(self, file: Rereadable, size: int) -> None:
        self.file, self.size = file, size

    @cached_property
    def sha256(self) -> str:
        """Their SHA-256 in base64, as S3 writes it; some stores take none. The file is at its beginning then."""
        digest = hashlib.sha256()
        self.file.seek(0)
        while piece := self.file.read(1 << 20):
            digest.update(piece)
        self.file.seek(0)
        return b64encode(digest.digest()).decode()


class WritingStore(Protocol):
    """The role of writing. `in_flight` is how many parts may be on their way at once; if one, in their order."""

    @property
    def in_flight(self) -> int: ...

    def leftovers(self, address: ObjectAddress) -> str:
        """Return what becomes of the parts of an upload that could not be aborted, for a message."""

    def look(self, address: ObjectAddress) -> Seen | None:
        """Return what is known of an object, None if there is none."""

    def begin(self, address: ObjectAddress, notes: Mapping[str, str], *, overwrite: bool) -> Upload:
        """Begin an upload. The object will have these notes. Some stores take the condition of `complete` here, and
        others the notes only there.

        Raises Occupied if there is an object and it is not to be overwritten.
        """

    def put(self, upload: Upload, number: int, content: Content) -> Part:
        """Send a part. Raises IntegrityError if the store has other bytes than were sent."""

    def parts(self, upload: Upload) -> Iterator[Part]:
        """Yield the parts that the store has, by their numbers: several of one number, if it keeps what was sent again.

        Those without bytes may be missing. Raises UploadGone.
        """

    def complete(
        self, upload: Upload, parts: Sequence[Part], notes: Mapping[str, str], *, overwrite: bool
    ) -> str | None:
        """Make the object of the parts, at once. Return its version, None without versioning.

        `notes` are those of `begin`, or of another process that began it: stores that took them there ignore these.
        Raises Occupied if there is an object and it is not to be overwritten, UploadGone.
        """

    def abort(self, upload: Upload) -> str | None:
        """End an upload and drop its parts. An upload that is not there any more is no error.

        Return None; or what becomes of the parts, if the store cannot end an upload. Then a request to complete it,
        whose answer did not come, may still be carried out.
        """

    def begun(self, address: ObjectAddress) -> Iterator[Upload]:
        """Yield the uploads that were begun for this object. Raises UsageError if the store cannot tell."""

    def uploads(self, prefix: ObjectAddress) -> Iterator[Upload]:
        """Yield the uploads that were begun for keys with this prefix. Raises UsageError if the store cannot tell, or
        cannot end them."""

    def remove(self, address: ObjectAddress, seen: Seen) -> None:
        """Remove the object that was seen, and no other."""


class Range(Protocol):
    """A range of an object on its way: of which object, where it begins, and how many bytes it has."""

    seen: Seen
    start: int
    size: int

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises Transient if they do not come."""

    def close(self) -> None:
        """End it."""


class ReadingStore(Protocol):
    """The role of reading. `place` tells the store from others."""

    @property
    def place(self) -> str: ...

    def look(self, address: ObjectAddress) -> Seen | None:
        """Return what is known of an object, None if there is none."""

    def fetch(self, address: ObjectAddress, seen: Seen | None, start: int | None, size: int) -> Range:
        """Begin to read `size` bytes at `start`, of the object that was seen if one was; None: its last ones.

        There are fewer if the object ends before. Raises Replaced if there is another object now, or none, Missing if
        none was seen before.
        """


class Store(WritingStore, ReadingStore, Protocol):
    """Both roles: what the client of each kind of store is."""
