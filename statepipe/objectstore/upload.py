"""A sink that becomes an object: the object is there once all of it was written, checked and committed, or it is not.

    __init__   nothing has the key (unless it may be overwritten); the upload begins, which shows that we may write
    write      fills parts of one size; threads send them, several at once, and compare what the store has received
    sync       the last part is sent, and the store's list of parts is compared with ours
    commit     CompleteMultipartUpload with If-None-Match: the one step that makes the object
    __exit__   without a commit, the upload is aborted

So a process that is killed leaves no object, but parts that cost money: a lifecycle rule of the bucket ends them, or
`put --abort-stale`, or `put --resume` goes on with them. (The names are S3's. Azure says Put Block List, and ends parts
by itself after a week.)

An answer to the commit may be lost. Then the object tells whether it is ours: its notes have a number that only this
upload has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from statepipe.errors import InterruptedBySignal, PeerError, StatepipeError
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.failures import (
    Conflict,
    NoConditions,
    NoRight,
    NotDone,
    Occupied,
    Transient,
    UploadGone,
    may_come,
    not_as_sent,
    occupied,
)
from statepipe.objectstore.open import open_store
from statepipe.objectstore.parts import (
    LEAST,
    PartFile,
    agree,
    etag_of,
    is_same,
    most_bytes,
    part_size,
)
from statepipe.objectstore.retry import Tries
from statepipe.objectstore.sending import Sending
from statepipe.objectstore.settings import LEAST_SILENCE, Settings
from statepipe.objectstore.store import Content, Part, Seen, Upload, WritingStore
from statepipe.objectstore.workers import Aside, aside
from statepipe.stage import Buffer
from statepipe.telling import Tell, nobody
from statepipe.threads import End, held
from statepipe.typed import Any, NamedTuple, Self, TypeVar

T = TypeVar("T")

NOTE = "statepipe-upload"
"""The note (S3's user metadata) that tells our object from any other with its key."""

HURRY = 8.0
"""Seconds for which the upload is undone at most, while somebody waits for our end."""

LEAVING = 2.0
"""Seconds to wait for the threads that send, before the upload is aborted under them."""

ANSWER = 5.0
"""Seconds to wait for the answer to a request that begins an upload or makes an object, once a signal has come."""


class How(NamedTuple):
    """`overwrite` allows an object in the place of another. `size` is about how many bytes will come. With `resume`,
    an upload of the same object is continued if there is one, and is kept if this one fails."""

    overwrite: bool = False
    size: int | None = None
    resume: bool = False


SAFE = How()


class ObjectSink:
    """Writes an object. `tell` hears what is retried and kept.

    `measure` is asked once, after the first bytes, for about how many bytes will come; None: nobody knows. Raises
    UsageError if the object is there already, StatepipeError.
    """

    def __init__(self, address: ObjectAddress, settings: Settings, how: How = SAFE, tell: Tell = nobody) -> None:
        self.name, self.bytes = str(address), 0
        self.measure: Callable[[], int | None] = lambda: None
        self._address, self._settings, self._how, self._tell = address, settings, how, tell
        self._store: WritingStore = aside(lambda: open_store(address, settings))
        self._stop = End()
        self._tries = Tries(settings.retry, tell, self._stop)
        self._note = os.urandom(16).hex()
        self._older: dict[int, list[Part]] = {}
        self._overwrite = how.overwrite
        self._done = self._unclear = self._is_lost = self._synced = False
        self._version: str | None = None
        if not how.overwrite and self._ask(self._look) is not None:
            raise occupied(address)
        self._sending = Sending(self._send, self._store.in_flight)
        self._upload = (self._continued() if how.resume else None) or self._begun()
        self._head = bytearray()
        self._size = 0  # of each part, once it is known
        self._filling: bytearray | None = None
        self._filled = self._kept = 0

    def _ask(self, attempt: Callable[[], T]) -> T:
        """Have a thread make attempts, as a signal's exception would be lost in the client library.

        Raises what the last attempt raises, or a signal's exception; then no further attempt is made.
        """
        tries = self._tries
        try:
            return aside(lambda: tries(attempt))
        except InterruptedBySignal:
            self._stop.tell()
            raise

    def _look(self) -> Seen | None:
        """Return what is at the address. None also without the right to look: then the commit's condition decides."""
        try:
            return self._store.look(self._address)
        except NoRight:
            return None

    def _begun(self) -> Upload:
        """Begin an upload. A signal that comes meanwhile is raised once it is aborted again."""
        asked = Aside(
            lambda: self._tries(lambda: self._store.begin(self._address, {NOTE: self._note}, overwrite=self._overwrite))
        )
        try:
            with held():  # so that the answer is not lost
                return asked.take()
        except InterruptedBySignal as error:
            self._stop.tell()
            if not asked.wait(ANSWER):
                error.advise(f"an upload may have begun, which statepipe put --abort-stale {self.name} ends in a day")
            elif asked.error is None:
                self._upload = asked.result()
                self._abort(error)
            raise

    def _continued(self) -> Upload | None:
        """Return the newest upload of the same object and note its parts; None if there is none."""
        found = self._ask(lambda: list(self._store.begun(self._address)))
        if not found:
            self._tell(f"there is no upload of {self.name} to continue: it begins anew")
            return None
        upload = max(found, key=lambda upload: upload.started.timestamp() if upload.started else 0)
        self._older = self._listed(upload)
        return upload

    def _listed(self, upload: Upload) -> dict[int, list[Part]]:
        """Return the parts that the store has, by their numbers: several of one number, if it keeps what was replaced.

        Raises StatepipeError.
        """
        listed: dict[int, list[Part]] = {}
        for part in self._ask(lambda: list(self._store.parts(upload))):
            listed.setdefault(part.number, []).append(part)
        return listed

    def __enter__(self) -> Self:
        return self

    def write(self, buffer: Buffer) -> None:
        """Append the buffer. It waits while all parts that memory allows are on their way. Raises StatepipeError."""
        view = memoryview(buffer).cast("B")
        self.bytes += len(view)
        if not self._size:
            self._head += view
            if len(self._head) < LEAST:
                return
            view = memoryview(self._head)
            self._choose_size()
        while len(view):
            if self._filling is None:
                self._filling, self._filled = self._sending.buffer(self._size), 0
            taken = view[: self._size - self._filled]
            self._filling[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            view = view[len(taken) :]
            self._sending.keep_pace(self._filled / self._size)
            if self._filled == self._size:
                self._sending.submit(self._filling, self._filled)
                self._filling = None
        self._head = bytearray()

    def _choose_size(self) -> None:
        """Choose the size of all parts: that of an upload that is continued, or by what is known of the stream."""
        expected = self._how.size if self._how.size is not None else self.measure()
        older = max((part.size for parts in self._older.values() for part in parts), default=0)
        self._size = older if older >= LEAST else part_size(expected, self._store.in_flight)
        if expected is not None and expected > most_bytes(self._size):
            self._size, self._older = part_size(expected, self._store.in_flight), {}

    def _send(self, number: int, view: memoryview) -> Part:
        content = Content(PartFile(view, self._stop), len(view))
        for older in self._older.get(number, ()):
            if is_same(older, content):
                self._kept += 1
                # A commit names the SHA-256 of each part: SeaweedFS has them, refuses a commit without, and lists none.
                return older._replace(sha256=content.sha256) if older.sha256 is None else older
        return self._tries(lambda: self._store.put(self._upload, number, content))

    def sync(self) -> None:
        """Wait until the store has all parts, and compare its list with ours: the long part of a commit.

        Raises StatepipeError.
        """
        if self._synced:
            return
        if not self._size:  # less than a part: what it has is all
            self._sending.submit_foreign(self._head)
        elif self._filling is not None and self._filled:
            self._sending.submit(self._filling, self._filled)
        elif self._filling is not None:
            self._sending.give_back(self._filling)
        self._filling = None
        self._sending.wait()
        self._compare()
        self._synced = True

    def _compare(self) -> None:
        """Raise IntegrityError unless the store's list has each part as its answer to that part said."""
        try:
            listed = self._listed(self._upload)
        except NoRight:  # the answers to the parts were compared
            return
        except UploadGone:
            self._refuse_occupied()
            raise
        doing = f"complete {self.name}"
        for number, part in sorted(self._sending.parts.items()):
            if not part.size:
                continue
            if number not in listed:
                raise not_as_sent(doing, f"the store lacks part {number}, which it had")
            if not any(agree(other, part) for other in listed[number]):
                raise not_as_sent(doing, f"the store lists part {number} as another one than it has received")

    def commit(self) -> None:
        """Make the object. Raises Occupied if another one has the key, StatepipeError; then it is not there, or the
        message says that this is not known."""
        self.sync()
        asked = Aside(lambda: self._tries(self._complete))
        try:
            with held():  # so that the answer is not lost
                self._version = asked.take()
                self._done = True
        except Transient as error:
            if not self._unclear or isinstance(error, Conflict) or not self._found_out():
                raise
            self._done = True
        except InterruptedBySignal:
            self._stop.tell()
            if not asked.wait(ANSWER) or asked.error is None:
                self._done, self._unclear = False, True  # what it has made, or makes yet, is undone at the exit
            raise

    def _found_out(self) -> bool:
        """Return whether a commit without an answer has made the object. Raises PeerError if nobody knows, and a
        signal's exception: then it is undone at the exit."""
        try:
            return aside(self._settled)
        except PeerError:
            self._is_lost = True
            raise

    def _refuse_occupied(self) -> None:
        """Raise Occupied if there is an object that is not to be replaced: its commit may have ended our upload."""
        if not self._overwrite and self._look() is not None:
            raise occupied(self._address)

    def _complete(self) -> str | None:
        """Make one attempt to complete the upload; return the object's version."""
        if self._unclear:
            with suppress(NoRight):  # the next attempt may tell
                if self._is_ours():
                    return None
        parts = [self._sending.parts[number] for number in sorted(self._sending.parts)]
        try:
            return self._store.complete(self._upload, parts, {NOTE: self._note}, overwrite=self._overwrite)
        except (Occupied, UploadGone):
            if not self._is_ours():  # the answer to an earlier attempt was lost, perhaps on its way through a proxy
                self._refuse_occupied()
                raise
            return None
        except NoConditions:
            if self._overwrite:
                raise
            if self._look() is not None:
                raise occupied(self._address) from None
            self._tell(f"the store knows no conditions: an object that gets the name {self.name} now is replaced")
            self._overwrite = True
            return self._complete()
        except (Conflict, NotDone):
            raise
        except Transient:
            self._unclear = True
            raise

    def _is_ours(self) -> bool:
        """Return whether the object that has the key is this upload's. Raises StatepipeError."""
        seen = self._store.look(self._address)
        return seen is not None and self._is_of_us(seen)

    def _is_of_us(self, seen: Seen) -> bool:
        """Return whether it is this upload that has made the object."""
        if seen.notes.get(NOTE) == self._note:
            return True
        if not self._how.resume or seen.size != self.bytes:
            return False
        return seen.etag == etag_of([self._sending.parts[number] for number in sorted(self._sending.parts)])

    def _settled(self) -> bool:
        """Decide what became of a commit without an answer: return True if the object is there. If it is not, the
        upload is aborted, so that no late request makes it. Raises PeerError if nobody knows."""
        store, tries = self._store, self._hurried()
        try:
            if not tries(self._is_ours):
                left = tries(lambda: self._store.abort(self._upload))
                if not tries(self._is_ours):
                    if left is not None:
                        raise may_come(self.name)
                    return False
        except StatepipeError as error:
            what = f"it is not known whether {self.name} is there: {error}"
            hint = "look for it once the store answers: it is whole if it is there, but if its guest runs on, remove it"
            raise PeerError(what, hint=hint) from error
        finally:
            self._store = store
        return True

    def _hurried(self) -> Tries:
        """Go on with a client that waits less; return what tries again for as long."""
        seconds = min(HURRY, max(self._settings.retry, LEAST_SILENCE))
        self._store = open_store(self._address, self._settings._replace(retry=seconds))
        return Tries(seconds, nobody, self._stop)

    def withdraw(self) -> None:
        """Remove the object that was committed, because another part of the work failed. Raises StatepipeError."""
        with held():
            removed = Aside(self._remove)
            removed.wait()
            removed.result()
            self._done = False

    def _remove(self) -> None:
        """Remove the object, if it is still ours. Raises StatepipeError."""
        seen = self._tries(lambda: self._store.look(self._address))
        if seen is None or (self._version is None and not self._is_of_us(seen)):
            return
        ours = seen if self._version is None else seen._replace(version=self._version)
        with suppress(Occupied):  # another one has taken its place
            self._tries(lambda: self._store.remove(self._address, ours))

    def __exit__(self, *raised: object) -> None:
        """End the threads; without a commit, abort the upload. If that fails, the error that led here says so."""
        error = raised[1] if len(raised) > 1 else None
        if self._done or self._is_lost:
            self._end_threads()
        elif self._how.resume and not self._unclear:
            if isinstance(error, StatepipeError):
                error.advise("what the store has of it is kept: put --resume goes on with it, put alone begins anew")
            self._end_threads()
        else:
            self._abort(error)

    def _end_threads(self) -> None:
        for _ in range(self._sending.submitted + 1):
            self._stop.tell()
        self._sending.end(LEAVING)

    def _abort(self, error: object) -> None:
        """End the threads and undo the upload because of `error`, which says so if that fails. Raises StatepipeError if
        it is none of ours; a signal's exception, for one that comes meanwhile, once it is done."""
        left: str | None = None
        try:
            with held():
                self._end_threads()
                try:
                    left = self._undo()
                except PeerError as another:
                    left = str(another)
                    if not isinstance(error, StatepipeError):
                        raise
        except InterruptedBySignal as late:
            error = late
            raise
        finally:
            if isinstance(error, StatepipeError):
                error.advise(left)

    def _undo(self) -> str | None:
        """Undo the upload while somebody waits; return what is left of it. Raises PeerError if that fails."""
        self._stop = End()
        undone, why = Aside(self._undone), "the store has not answered"
        try:
            if undone.wait(2 * HURRY):
                return undone.result()
            self._stop.tell()
        except StatepipeError as error:
            why = str(error)
        unknown = f"it is not known whether {self.name} is there, and " if self._unclear else ""
        words = f"{unknown}parts of it are left in the store ({why}): "
        words += self._store.leftovers(self._address)
        raise PeerError(words)

    def _undone(self) -> str | None:
        """Abort the upload, and remove an object that a commit without an answer has made. Return what is left of it.

        Raises StatepipeError.
        """
        self._tries = self._hurried()
        left = self._tries(lambda: self._store.abort(self._upload))
        if not self._unclear:
            return left
        try:
            if self._tries(self._is_ours):
                self._remove()
                return left
        except StatepipeError as error:
            if left is None:
                raise
            return f"{left}; it is not known whether {self.name} is there: {error}"
        return None if left is None else f"{left}; {may_come(self.name)}"

    def naming(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Return what another process needs to tell whether the object is there, and to take it back (`Claim`). The id
        of an upload may be all that it takes to go on with it: it is told to nobody else."""
        return {"claim": [list(self._address), self._upload.id, self._note, self._settings.endpoint]}, {}

    def facts(self) -> dict[str, Any]:
        """Return the figures of the upload."""
        again, kept = self._tries.again, self._kept
        return {"parts": len(self._sending.parts), "part_size": self._size, "parts_again": again, "parts_kept": kept}
