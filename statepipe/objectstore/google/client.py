"""Google Cloud Storage, by its JSON API: uploads that can be continued, and ranges of one generation of an object.

    POST …?uploadType=resumable&ifGenerationMatch=0     begins a session: the condition and our notes are the object's
    PUT  bytes 0-8388607/*                              sends a part; 308 and Range say what the store has of all
    PUT  bytes 8388608-9000000/9000001, X-Goog-Hash     the end: the store compares the CRC32C of the whole, meets the
                                                        condition, and makes the object, or does none of these
    PUT  bytes */*                                      asks what the store has, after an answer that was lost
    DELETE                                              ends the session

Google's multipart uploads take no condition, so they cannot refuse to replace an object; and temporary objects that are
composed would be visible and charged for. A session has neither fault, but its parts go one after the other. Its URI is
a secret: whoever has it can write the object. It is in no message, and no list of the store has it; so no other process
can continue or end an upload, which the store drops a week after it began, and does not charge for.

Credentials are found and renewed by google-auth, as by Google's own tools; its transport is requests, which takes
proxies and certificates from the environment. google-cloud-storage has all of this and more, but tries again by itself
(objectstore/retry.py decides here) and takes 0.25 to 0.35 s to import, where these take 0.15 s.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, urlsplit

from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.failures import WAY, Occupied, Transient, missing, occupied, replaced, unreadable
from statepipe.objectstore.google.answers import is_bucket_missing, refused, session_gone, wrong_sum
from statepipe.objectstore.google.ranges import GoogleRange, range_in, seen_in
from statepipe.objectstore.google.transport import Slice, Transport
from statepipe.objectstore.settings import Settings
from statepipe.objectstore.store import Content, Part, Seen, Upload
from statepipe.typed import Any

GRAIN = 256 << 10
"""Bytes of which a request that is not the last one has a multiple (storage/docs/performing-resumable-uploads)."""

_HAS = re.compile(r"bytes=0-([0-9]{1,19})")


class SessionUri(str):
    """The id of an upload: who knows it can write the object. So nothing shows it by accident."""

    def __repr__(self) -> str:
        return "SessionUri(…)"


class _Session:
    """What is known of an upload that was begun. `start` is where the next part begins; `tail` is the end of what was
    given, less than GRAIN, which goes with the last request; `crc` is the CRC32C of all up to its end.

    `is_unsure`: a request was made, and how much of it the store has is not known.
    """

    def __init__(self) -> None:
        self.start = self.crc = 0
        self.tail = b""
        self.is_unsure = False
        self.parts: list[Part] = []


class GoogleStore:
    """Google Cloud Storage, in both roles. Raises StatepipeError if no client can be made."""

    in_flight = 1

    def __init__(self, settings: Settings) -> None:
        self._transport = Transport(settings)

    @property
    def place(self) -> str:
        """The URL of the store."""
        return self._transport.endpoint

    # --- writing

    def leftovers(self, address: ObjectAddress) -> str:
        """Return what becomes of the parts of an upload that could not be aborted."""
        return "the store drops them a week after the beginning, and does not charge for them"

    def look(self, address: ObjectAddress) -> Seen | None:
        """Return what is known of an object, None if there is none. Raises StatepipeError."""
        doing, rights = f"look for {address}", "storage.objects.get and storage.objects.list"
        query = {"fields": "size,generation,metadata"}
        with self._transport.asked(doing, "GET", self._transport.url(address), query) as answer:
            if answer.status_code == 404:
                refusal = self._transport.refusal(answer, doing)
                if is_bucket_missing(refusal):
                    raise refused(refusal, doing, rights)
                return None
            self._transport.demand(answer, (200,), doing, rights)
            return seen_in(self._transport.resource(answer, doing), doing)

    def begin(self, address: ObjectAddress, notes: Mapping[str, str], *, overwrite: bool) -> Upload:
        """Begin an upload. The object will have these notes, and be made only if there is none, unless `overwrite`.

        Raises Occupied if there is one, StatepipeError.
        """
        doing, rights = f"begin to upload {address}", "storage.objects.create"
        rights += " and storage.objects.delete" if overwrite else ""
        about = json.dumps({"contentType": "application/octet-stream", "metadata": dict(notes)}).encode()
        query = {"uploadType": "resumable", "name": address.key}
        if not overwrite:
            query["ifGenerationMatch"] = "0"
        url = f"{self._transport.endpoint}/upload/storage/v1/b/{quote(address.bucket, safe='')}/o"
        headers = {"Content-Type": "application/json; charset=UTF-8"}
        with self._transport.asked(doing, "POST", url, query, headers, about) as answer:
            if answer.status_code == 412:
                raise occupied(address)
            self._transport.demand(answer, (200, 201), doing, rights)
            uri = str(answer.headers.get("Location") or "")
        its, ours = urlsplit(uri), urlsplit(self._transport.endpoint)
        if (its.scheme, its.netloc) != (ours.scheme, ours.netloc):  # it would be given the object
            raise unreadable(ValueError(), doing)
        return Upload(address, SessionUri(uri), None, _Session())

    def put(self, upload: Upload, number: int, content: Content) -> Part:
        """Send a part, after the one before it. What is less than GRAIN of the last one is kept for `complete`.

        Raises UploadGone, IntegrityError for a store that loses what it had, StatepipeError.
        """
        session: _Session = upload.state
        doing = f"upload part {number} of {upload.address}"
        at, end = session.start, session.start + content.size // GRAIN * GRAIN
        if session.is_unsure:
            at = self._had(upload, self._ask(upload, doing), end, doing)
        while at < end:
            # What is sent twice is ignored, and a request begins where a whole number of GRAINs ends.
            first = at // GRAIN * GRAIN
            body = Slice(content.file, first - session.start, end - first)
            session.is_unsure = True
            span = f"bytes {first}-{end - 1}/*"
            now = self._had(upload, self._send(upload, span, body, doing), end, doing)
            if now <= at:
                raise Transient(f"cannot {doing}: the store keeps nothing of it", hint="try again later")
            at = now
        session.is_unsure = False
        content.file.seek(0)
        while piece := content.file.read(1 << 20):
            session.crc = self._transport.crc(session.crc, piece)
        content.file.seek(end - session.start)
        session.tail = content.file.read(content.size - (end - session.start))
        session.start = end
        session.parts.append(Part(number, content.size, "", None))
        return session.parts[-1]

    def parts(self, upload: Upload) -> Iterator[Part]:
        """Yield the parts that the store has, as its answers have said: it has no list of them."""
        yield from upload.state.parts

    def complete(self, upload: Upload, parts: Sequence[Part], notes: Mapping[str, str], *, overwrite: bool) -> str:
        """Send the end, and with it the CRC32C of all: then the object is there, at once. Return its generation. The
        session has notes and condition.

        Raises Occupied, UploadGone, IntegrityError, StatepipeError.
        """
        session: _Session = upload.state
        doing, total = f"complete {upload.address}", session.start + len(session.tail)
        made: dict[str, Any] | int = session.start
        if session.is_unsure:
            made = self._ask(upload, doing)
        if isinstance(made, int):
            self._had(upload, made, total, doing)
            session.is_unsure = True
            span = f"bytes {session.start}-{total - 1}/{total}" if session.tail else f"bytes */{total}"
            made = self._send(upload, span, session.tail, doing, {"X-Goog-Hash": f"crc32c={_base64(session.crc)}"})
        if isinstance(made, int):
            raise Transient(f"cannot {doing}: the store has only {made} bytes of {total}", hint="try again later")
        if (made.get("crc32c"), made.get("size")) != (_base64(session.crc), str(total)):
            raise self._taken_back(upload, made, f"cannot {doing}: the store has other bytes than were sent")
        return str(made["generation"])

    def abort(self, upload: Upload) -> None:
        """End an upload and drop what was sent; it may be gone already. Nothing is left. Raises StatepipeError."""
        doing = f"abort the upload of {upload.address}"
        with self._transport.asked(doing, "DELETE", upload.id, is_session=True) as answer:
            self._transport.demand(answer, (200, 204, 404, 410, 499), doing, "")

    def begun(self, address: ObjectAddress) -> Iterator[Upload]:
        """Raise UsageError: see `uploads`."""
        return self.uploads(address)

    def uploads(self, prefix: ObjectAddress) -> Iterator[Upload]:
        """Raise UsageError: the store tells nobody which uploads were begun."""
        what = f"{prefix}: Google's store does not list the uploads that were begun, so none can be continued or ended"
        raise UsageError(what, hint="upload anew: what was left costs nothing, and the store drops it after a week")

    def remove(self, address: ObjectAddress, seen: Seen) -> None:
        """Remove the object that was seen, and no other: by its generation.

        Raises Occupied if another one is there by now, StatepipeError.
        """
        doing = f"remove {address}"
        query = {"ifGenerationMatch": str(seen.version)}
        with self._transport.asked(doing, "DELETE", self._transport.url(address), query) as answer:
            if answer.status_code == 412:
                raise Occupied(f"{address} is another object by now, and stays", hint="look at it")
            self._transport.demand(answer, (200, 204, 404), doing, "storage.objects.delete")

    # --- a session's requests

    def _send(
        self, upload: Upload, span: str, body: Slice | bytes, doing: str, more: Mapping[str, str] | None = None
    ) -> dict[str, Any] | int:
        """Make one request of a session. Return the object if it was made, or how many bytes of it the store has.

        Raises Occupied, UploadGone, IntegrityError, StatepipeError.
        """
        headers = {"Content-Range": span, **(more or {})}
        with self._transport.asked(doing, "PUT", upload.id, None, headers, body, is_session=True) as answer:
            status = answer.status_code
            if status == 308:
                told = answer.headers.get("Range")
                if told is None:
                    return 0
                found = _HAS.fullmatch(told)
                if found is None:
                    raise unreadable(ValueError(), doing)
                return int(found[1]) + 1
            if status in (200, 201):
                made = self._transport.resource(answer, doing)
                seen_in(made, doing)
                return made
            refusal = self._transport.refusal(answer, doing)
            if more and (error := wrong_sum(refusal, doing)) is not None:
                raise error
            if status == 412:
                raise occupied(upload.address)
            if status in (404, 410) and not is_bucket_missing(refusal):
                raise session_gone(refusal, doing)
            raise refused(refusal, doing, "storage.objects.create")

    def _ask(self, upload: Upload, doing: str) -> dict[str, Any] | int:
        """Ask what the store has of an upload. Return as `_send`."""
        return self._send(upload, "bytes */*", b"", doing)

    def _had(self, upload: Upload, told: dict[str, Any] | int, end: int, doing: str) -> int:
        """Return how many bytes the store has, as it told. Raises IntegrityError unless this is what may be: all that
        it had before, and nothing that was not sent."""
        if not isinstance(told, int):
            raise self._taken_back(upload, told, f"cannot {doing}: the store has made the object before its end came")
        if not upload.state.start <= told <= end:
            what = f"the store says that it has {told} bytes of {upload.address}, but it had {upload.state.start}"
            what += f" and was sent {end}"
            raise IntegrityError(f"cannot {doing}: {what}", hint="start again; if this stays, the store is at fault")
        return told

    def _taken_back(self, upload: Upload, made: Mapping[str, Any], what: str) -> IntegrityError:
        """Remove an object that is not as it was sent. Return the error, which says whether it is gone."""
        try:
            self.remove(upload.address, seen_in(made, what))
        except StatepipeError as error:
            return IntegrityError(f"{what}, and the object is still there ({error})", hint="remove it by hand")
        return IntegrityError(f"{what}; the object was removed again", hint=WAY)

    # --- reading

    def fetch(self, address: ObjectAddress, seen: Seen | None, start: int | None, size: int) -> GoogleRange:
        """Begin to read `size` bytes at `start`, of the object that was seen if one was; None: its last ones.

        Near the end, and at the beginning of a small object, there are fewer. Raises Replaced if there is another
        object now, or none, Missing if none was seen before, StatepipeError.
        """
        doing = f"read the end of {address}" if start is None else f"read {size} bytes at byte {start} of {address}"
        query = {"alt": "media"}
        if seen is not None:
            query["generation"] = str(seen.version)
        span = f"bytes=-{size}" if start is None else f"bytes={start}-{start + size - 1}"
        # Without gzip here, the store would unpack an object with `Content-Encoding: gzip`, and send all of it.
        headers = {"Range": span, "Accept-Encoding": "gzip"}
        answer = self._transport.answer(doing, "GET", self._transport.url(address), query, headers)

        def read(size: int) -> bytes:
            return self._transport.read(answer, size, doing, unpacked=False)

        try:
            if answer.status_code == 416:
                if (now := self.look(address)) is None:
                    raise missing(address)
                found = GoogleRange(now, now.size, 0, answer, doing, read)
            else:
                self._demand_object(answer, address, seen, start, doing)
                found = range_in(answer, start, size, doing, read)
            if seen is not None and (found.seen.etag, found.seen.size) != (seen.etag, seen.size):
                raise replaced(address, start)
        except BaseException:
            answer.close()
            raise
        return found

    def _demand_object(
        self, answer: Any, address: ObjectAddress, seen: Seen | None, start: int | None, doing: str
    ) -> None:
        """Raise Missing, Replaced or another StatepipeError for an answer that is not of an object."""
        status = answer.status_code
        if status == 404:
            refusal = self._transport.refusal(answer, doing)
            if is_bucket_missing(refusal):
                raise refused(refusal, doing, "storage.objects.get")
            raise missing(address) if seen is None else replaced(address, start)
        if status == 412:
            raise replaced(address, start)
        self._transport.demand(answer, (200, 206), doing, "storage.objects.get")


def _base64(crc: int) -> str:
    """Return a CRC32C as Google writes it: its four bytes, the highest first, in base64."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()
