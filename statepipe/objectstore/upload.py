"""A sink that becomes an object: the object is there once all of it was written, checked and committed, or it is not.

    __init__   nothing has the key (unless it may be overwritten); the upload begins, which shows that we may write
    write      fills parts of one size; threads send them, several at once, and compare what the store has received
    sync       the last part is sent, and the store's list of parts is compared with ours
    commit     CompleteMultipartUpload with If-None-Match: the one step that makes the object
    __exit__   without a commit, the upload is aborted

So a process that is killed leaves no object, but parts that cost money: a lifecycle rule of the bucket ends them, or
`put --abort-stale`, or `put --resume` goes on with them.

An answer to the commit may be lost. Then the object tells whether it is ours: its notes have a number that only this
upload has.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

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
    MOST_PARTS,
    PartFile,
    agree,
    etag_of,
    is_same,
    most_bytes,
    part_size,
)
from statepipe.objectstore.retry import Tries
from statepipe.objectstore.settings import LEAST_SILENCE, Settings
from statepipe.objectstore.store import Content, Part, Seen, Upload, WritingStore
from statepipe.stage import Buffer
from statepipe.telling import Tell, nobody
from statepipe.threads import End, NoThread, cores, held, join, start
from statepipe.typed import Any, NamedTuple, Self
from statepipe.units import format_size

NOTE = "statepipe-upload"
"""The note (S3's user metadata) that tells our object from any other with its key."""

BUDGET = 212 << 20
"""Bytes of parts in memory at most, with the one that is being filled: two of 105 MiB. With the interpreter and
botocore (75 MB), the process stays below 300 MB."""

CONNECTIONS = 4
"""Parts in flight at most for each core: sending waits for the network, and hashing (1 GB/s) for a core."""

HURRY = 15.0
"""Seconds for which the upload is undone at most, while somebody waits for our end."""

LEAVING = 2.0
"""Seconds to wait for the threads that send, before the upload is aborted under them."""


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
        self._store: WritingStore = open_store(address, settings)
        self._in_flight = min(CONNECTIONS * cores(), self._store.in_flight)
        self._stop = End()
        self._tries = Tries(settings.retry, tell, self._stop)
        self._note = os.urandom(16).hex()
        self._older: dict[int, list[Part]] = {}
        self._overwrite = how.overwrite
        self._done = self._unclear = self._is_lost = self._synced = False
        self._version: str | None = None
        if not how.overwrite and self._look() is not None:
            raise occupied(address)
        self._upload = (self._continued() if how.resume else None) or self._begun()
        self._parts: dict[int, Part] = {}
        self._error: BaseException | None = None
        self._head = bytearray()
        self._size = 0  # of each part, once it is known
        self._filling: bytearray | None = None
        self._filled = self._submitted = self._buffers = self._kept = 0
        self._tasks: queue.SimpleQueue[tuple[int, bytearray, int] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def _look(self) -> Seen | None:
        """Return what is at the address. None also without the right to look: then the commit's condition decides."""
        try:
            return self._tries(lambda: self._store.look(self._address))
        except NoRight:
            return None

    def _begun(self) -> Upload:
        """Begin an upload. A signal that comes meanwhile is raised once it is aborted again."""
        made: list[Upload] = []

        def attempt() -> Upload:
            with held():  # so that the answer is not lost
                made.append(self._store.begin(self._address, {NOTE: self._note}, overwrite=self._overwrite))
            return made[0]

        try:
            return self._tries(attempt)
        except InterruptedBySignal as error:
            if made:
                self._upload = made[0]
                self._abort(error)
            raise

    def _continued(self) -> Upload | None:
        """Return the newest upload of the same object and note its parts; None if there is none."""
        found = self._tries(lambda: list(self._store.begun(self._address)))
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
        for part in self._tries(lambda: list(self._store.parts(upload))):
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
                self._filling, self._filled = self._buffer(), 0
            taken = view[: self._size - self._filled]
            self._filling[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            view = view[len(taken) :]
            if self._filled == self._size:
                self._submit(self._filling, self._filled)
                self._filling = None
        self._head = bytearray()

    def _choose_size(self) -> None:
        """Choose the size of all parts: that of an upload that is continued, or by what is known of the stream."""
        expected = self._how.size if self._how.size is not None else self.measure()
        older = max((part.size for parts in self._older.values() for part in parts), default=0)
        self._size = older if older >= LEAST else part_size(expected)
        if expected is not None and expected > most_bytes(self._size):
            self._size, self._older = part_size(expected), {}

    def _buffer(self) -> bytearray:
        """Return memory for a part: new, or that of a part that the store has. Raises what a thread has met."""
        if self._buffers < max(1, min(self._in_flight + 1, BUDGET // self._size)):
            self._buffers += 1
            buffer = bytearray(self._size)
        else:
            buffer = self._free.get()
        self._refuse_failed()
        return buffer

    def _refuse_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _submit(self, buffer: bytearray, size: int) -> None:
        """Give a part to the threads. Raises StatepipeError if there are too many."""
        if self._submitted == MOST_PARTS:
            what = f"an object has {MOST_PARTS} parts at most, and those of {format_size(self._size)} do not suffice"
            raise StatepipeError(what, hint="tell with --size how much will come")
        self._submitted += 1
        if len(self._threads) < min(self._buffers, self._in_flight):
            self._start_thread()
        self._tasks.put((self._submitted, buffer, size))

    def _start_thread(self) -> None:
        """Start one more thread that sends; without one more, those that run suffice. Raises NoThread for the first."""
        thread = threading.Thread(target=self._work, name="upload", daemon=True)
        try:
            start(thread)
        except NoThread:
            if not self._threads:
                raise
            return
        self._threads.append(thread)

    def _work(self) -> None:
        """Send parts, until there is no more. What fails is raised by the thread that writes."""
        while (task := self._tasks.get()) is not None:
            number, buffer, size = task
            try:
                if self._error is None and not self._stop.come:
                    self._parts[number] = self._send(number, memoryview(buffer)[:size])
            except BaseException as error:
                self._error = self._error or error
            self._free.put(buffer)
            del task, buffer

    def _send(self, number: int, view: memoryview) -> Part:
        content = Content(PartFile(view, self._stop), len(view))
        for older in self._older.get(number, ()):
            if is_same(older, content):
                self._kept += 1
                return older
        return self._tries(lambda: self._store.put(self._upload, number, content))

    def sync(self) -> None:
        """Wait until the store has all parts, and compare its list with ours: the long part of a commit.

        Raises StatepipeError.
        """
        if self._synced:
            return
        if not self._size:  # less than a part: what it has is all
            self._size = max(len(self._head), 1)
            self._filling, self._filled = self._head, len(self._head)
            self._buffers += 1
        if self._filling is not None and (self._filled or not self._submitted):
            self._submit(self._filling, self._filled)
        elif self._filling is not None:
            self._free.put(self._filling)
        self._filling = None
        for _ in range(self._buffers):
            self._free.get()
            self._refuse_failed()
        self._buffers = 0
        self._refuse_failed()
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
        for number, part in sorted(self._parts.items()):
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
        try:
            self._tries(self._complete)
        except Transient as error:
            if not self._unclear or isinstance(error, Conflict):
                raise
            if not self._settled():
                raise
        except InterruptedBySignal:
            if self._done:
                self.withdraw()
            raise

    def _refuse_occupied(self) -> None:
        """Raise Occupied if there is an object that is not to be replaced: its commit may have ended our upload."""
        if not self._overwrite and self._look() is not None:
            raise occupied(self._address)

    def _complete(self) -> None:
        """Make one attempt to complete the upload."""
        if self._unclear and self._is_ours():
            self._done = True
            return
        parts = [self._parts[number] for number in sorted(self._parts)]
        try:
            with held():
                notes = {NOTE: self._note}
                self._version = self._store.complete(self._upload, parts, notes, overwrite=self._overwrite)
                self._done = True
        except (Occupied, UploadGone):
            if not self._is_ours():  # the answer to an earlier attempt was lost, perhaps on its way through a proxy
                self._refuse_occupied()
                raise
            self._done = True
        except NoConditions:
            if self._overwrite:
                raise
            if self._look() is not None:
                raise occupied(self._address) from None
            self._tell(f"the store knows no conditions: an object that gets the name {self.name} now is replaced")
            self._overwrite = True
            self._complete()
        except (Conflict, NotDone):
            raise
        except Transient:
            self._unclear = True
            raise

    def _is_ours(self) -> bool:
        """Return whether the object that has the key is this upload's. Raises StatepipeError."""
        seen = self._store.look(self._address)
        if seen is None:
            return False
        if seen.notes.get(NOTE) == self._note:
            return True
        if not self._how.resume or seen.size != self.bytes:
            return False
        return seen.etag == etag_of([self._parts[number] for number in sorted(self._parts)])

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
            self._is_lost = True
            what = f"it is not known whether {self.name} is there: {error}"
            raise PeerError(what, hint="look for it once the store answers: if it is there, it is whole") from error
        finally:
            self._store = store
        self._done = True
        return True

    def _hurried(self) -> Tries:
        """Go on with a client that waits less; return what tries again for as long."""
        seconds = min(HURRY, max(self._settings.retry, LEAST_SILENCE))
        self._store = open_store(self._address, self._settings._replace(retry=seconds))
        return Tries(seconds, nobody, self._stop)

    def withdraw(self) -> None:
        """Remove the object that was committed, because another part of the work failed. Raises StatepipeError."""
        seen = self._tries(lambda: self._store.look(self._address))
        if seen is not None and self._version is not None:
            seen = seen._replace(version=self._version)
        if seen is not None:
            self._tries(lambda: self._store.remove(self._address, seen))
        self._done = False

    def __exit__(self, *raised: object) -> None:
        """End the threads; without a commit, abort the upload. If that fails, the error that led here says so."""
        error = raised[1] if len(raised) > 1 else None
        for _ in range(len(self._threads) + 1):
            self._stop.tell()
            self._tasks.put(None)
        until = time.monotonic() + LEAVING
        for thread in self._threads:
            join(thread, max(until - time.monotonic(), 0))
        if self._done or self._is_lost:
            return
        if self._how.resume:
            if isinstance(error, StatepipeError):
                error.advise("what the store has of it is kept: put --resume goes on with it")
            return
        self._abort(error)

    def _abort(self, error: object) -> None:
        """Undo the upload because of `error`, which says so if that fails. Raises StatepipeError if it is none of
        ours."""
        try:
            left = self._undo()
        except StatepipeError as another:
            left = f"parts of it are left in the store ({another}): {self._store.leftovers(self._address)}"
            if not isinstance(error, StatepipeError):
                raise
        if left is not None and isinstance(error, StatepipeError):
            error.advise(left)

    def _undo(self) -> str | None:
        """Abort the upload, and remove an object that a commit without an answer has made. Return what is left of it.

        Raises StatepipeError.
        """
        self._stop = End()
        self._tries = self._hurried()
        left = self._tries(lambda: self._store.abort(self._upload))
        if not self._unclear:
            return left
        try:
            if self._tries(self._is_ours):
                self.withdraw()
                return left
        except StatepipeError as error:
            if left is None:
                raise
            return f"{left}; it is not known whether {self.name} is there: {error}"
        return None if left is None else f"{left}; {may_come(self.name)}"

    def facts(self) -> dict[str, Any]:
        """Return the figures of the upload."""
        again, kept = self._tries.again, self._kept
        return {"parts": len(self._parts), "part_size": self._size, "parts_again": again, "parts_kept": kept}
