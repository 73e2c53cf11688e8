"""S3, and stores that speak it (Ceph, MinIO, Garage, SeaweedFS, R2), by botocore's client.

botocore is the low-level half of boto3. It alone has what writing needs together: uploads in parts with an id, which
another process can continue, their checksums, and If-None-Match on CompleteMultipartUpload. It signs, and finds
credentials as the aws command does. boto3 above it adds nothing for us and half of its start-up: 0.2 s of 0.5 s.
obstore reads as fast per processor time and starts in 30 ms, but cannot complete a multipart upload on a condition and
knows no upload's id.

Its own retries are off: objectstore/retry.py decides what is tried again and for how long, and tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.extras import extra
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.failures import (
    Occupied,
    UploadGone,
    cut_short,
    missing,
    not_as_sent,
    occupied,
    replaced,
    unfit,
    unreadable,
)
from statepipe.objectstore.parts import is_same
from statepipe.objectstore.s3.answers import broken, refused, senseless
from statepipe.objectstore.s3.bounds import COMPLETING, SILENCES, SMALL, bounded, keep_bounds
from statepipe.objectstore.s3.fields import Unfit, etag_in, id_in, part_in, seen_in, upload_in, version_in
from statepipe.objectstore.settings import CONNECT, Settings, endpoint_for_s3
from statepipe.objectstore.store import Content, Part, Seen, Upload
from statepipe.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import IO

Told = Callable[..., AbstractContextManager[None]]
"""Turns botocore's errors into ours, given what was being done, the right for it, and the bytes that may come."""

CONNECTIONS = 20
"""Connections that are kept open at most: more than there are parts in flight."""

IN_FLIGHT = 16
"""Parts on their way at most: of a host with many cores, more fill no faster network."""

_LISTED, _UPLOADS = 1000, 200
"""Entries of a list of parts, and of one of uploads, which is no longer than an answer may be (s3/bounds.py)."""

_MOST_UPLOADS, _MOST_PAGES = 1_000_000, 20_000
"""Uploads in a list, and its pages: some stores send pages that have none."""


class S3Store:
    """A store that speaks S3, in both roles. Raises StatepipeError if no client can be made."""

    in_flight = IN_FLIGHT

    def __init__(self, settings: Settings) -> None:
        with extra("object"):
            import botocore.config
            import botocore.exceptions
            import botocore.parsers
            import botocore.session
            import urllib3.exceptions
        self._errors: Any = botocore.exceptions
        # What the parser raises for nonsense: numbers that are none, dates of no year, elements nested for ever.
        nonsense = ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError
        # And urllib3's errors: botocore reads what a refused read says outside of where it turns them into its own.
        self._unreadable = botocore.parsers.ResponseParserError, urllib3.exceptions.HTTPError, *nonsense
        self._silence = settings.silence
        endpoint = endpoint_for_s3(settings)
        config = botocore.config.Config(
            connect_timeout=min(CONNECT, settings.silence),
            read_timeout=settings.silence,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},
            # We give a SHA-256 with each part; by default, botocore would add a CRC, which older stores refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
            user_agent_extra="statepipe",
            # Stores with an endpoint of their own seldom have a name for each bucket.
            s3={"addressing_style": "path"} if endpoint else None,
        )
        with self._told("reach the store", ""):
            session = botocore.session.Session()
            region = session.get_config_variable("region") or "us-east-1"
            self._client: Any = session.create_client("s3", region, endpoint_url=endpoint, config=config)
            self._client.meta.events.register("before-sign.s3.UploadPart", _tell_checksum)
        keep_bounds(self._client)
        self._client.meta.events.register("before-parse.s3", _demand_plain)

    @property
    def place(self) -> str:
        """The URL of the store."""
        return str(self._client.meta.endpoint_url)

    def look(self, address: ObjectAddress) -> Seen | None:
        """Return what is known of an object, None if there is none. Raises StatepipeError."""
        try:
            with self._told(f"look for {address}", "s3:GetObject and s3:ListBucket"):
                found = self._client.head_object(Bucket=address.bucket, Key=address.key)
                return seen_in(found, found["ContentLength"])
        except _Absent:
            return None

    def leftovers(self, address: ObjectAddress) -> str:
        """Return what becomes of the parts of an upload that could not be aborted."""
        return f"statepipe put --abort-stale {address} ends them"

    def begin(self, address: ObjectAddress, notes: Mapping[str, str], *, overwrite: bool) -> Upload:
        """Begin an upload. The object will have these notes; `complete` takes the condition. Raises StatepipeError."""
        with self._told(f"begin to upload {address}", "s3:PutObject"):
            made = self._client.create_multipart_upload(
                Bucket=address.bucket, Key=address.key, ChecksumAlgorithm="SHA256", Metadata=dict(notes)
            )
            return Upload(address, id_in(made), None)

    def put(self, upload: Upload, number: int, content: Content) -> Part:
        """Send a part. Raises NotAsSent if the store has other bytes than were sent, StatepipeError."""
        address, doing = upload.address, f"upload part {number} of {upload.address}"
        content.file.seek(0)
        with self._told(doing, "s3:PutObject"):
            made = self._client.upload_part(
                Bucket=address.bucket,
                Key=address.key,
                UploadId=upload.id,
                PartNumber=number,
                Body=content.file,
                ContentLength=content.size,
                ChecksumSHA256=content.sha256,
            )
            part = Part(number, content.size, etag_in(made), made.get("ChecksumSHA256"))
        verdict = is_same(part, content)
        if verdict is None:
            what = f"cannot {doing}: the store tells neither its SHA-256 nor its MD5, so nothing shows what it has"
            raise IntegrityError(what, hint="use a store that reports checksums")
        if not verdict:
            raise not_as_sent(doing, "the store has other bytes than were sent")
        return part

    def parts(self, upload: Upload) -> Iterator[Part]:
        """Yield the parts that the store has, by their numbers. Raises UploadGone, StatepipeError.

        SeaweedFS keeps and lists a part as often as it was sent: again, if an answer was lost.
        """
        after = 0
        while True:
            with self._told(f"list the parts of {upload.address}", "s3:ListMultipartUploadParts"):
                listed = self._client.list_parts(
                    Bucket=upload.address.bucket,
                    Key=upload.address.key,
                    UploadId=upload.id,
                    PartNumberMarker=after,
                    MaxParts=_LISTED,
                )
                found = [part_in(each) for each in listed.get("Parts", ())]
                is_last = not listed["IsTruncated"] or not found
                numbers = [part.number for part in found] or [after]
                if min(numbers) < after or (max(numbers) == after and not is_last):
                    raise Unfit("lists its parts again, in a list that does not go on")
            yield from found
            if is_last:
                return
            after = max(numbers)

    def complete(
        self, upload: Upload, parts: Sequence[Part], notes: Mapping[str, str], *, overwrite: bool
    ) -> str | None:
        """Make the object of the parts, at once. Return its version, None without versioning. The notes are there.

        Raises Occupied, Conflict, UploadGone, NoConditions, StatepipeError.
        """
        named = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        for row, part in zip(named, parts, strict=True):
            if part.sha256 is not None:
                row["ChecksumSHA256"] = part.sha256
        condition = {} if overwrite else {"IfNoneMatch": "*"}
        try:
            with self._told(f"complete {upload.address}", "s3:PutObject", seconds=COMPLETING):
                made = self._client.complete_multipart_upload(
                    Bucket=upload.address.bucket,
                    Key=upload.address.key,
                    UploadId=upload.id,
                    MultipartUpload={"Parts": named},
                    **condition,
                )
                etag_in(made)
                return version_in(made)
        except _Unmet as error:
            raise occupied(upload.address) from error

    def abort(self, upload: Upload) -> str | None:
        """End an upload and drop its parts; it may be gone already. Nothing is left. Raises StatepipeError."""
        try:
            with self._told(f"abort the upload of {upload.address}", "s3:AbortMultipartUpload"):
                self._client.abort_multipart_upload(
                    Bucket=upload.address.bucket, Key=upload.address.key, UploadId=upload.id
                )
        except UploadGone:
            pass
        return None

    def begun(self, address: ObjectAddress) -> Iterator[Upload]:
        """Yield the uploads that were begun for this object. Raises StatepipeError."""
        return (upload for upload in self.uploads(address) if upload.address == address)

    def uploads(self, prefix: ObjectAddress) -> Iterator[Upload]:
        """Yield the uploads that were begun for keys with this prefix. Raises StatepipeError."""
        marks: dict[str, str] = {}
        count = pages = 0
        while True:
            with self._told(f"list the uploads below {prefix}", "s3:ListBucketMultipartUploads"):
                listed = self._client.list_multipart_uploads(
                    Bucket=prefix.bucket, Prefix=prefix.key, MaxUploads=_UPLOADS, **marks
                )
                found = [upload_in(each, prefix) for each in listed.get("Uploads", ())]
                count, pages = count + len(found), pages + 1
                if count > _MOST_UPLOADS or pages > _MOST_PAGES:
                    raise Unfit(f"lists more than {count} uploads, on {pages} pages")
                names = "NextKeyMarker", "NextUploadIdMarker"
                after = {name.removeprefix("Next"): listed[name] for name in names if listed.get(name)}
                is_last = not listed["IsTruncated"] or "KeyMarker" not in after
                if not is_last and after == marks:
                    raise Unfit("lists the same uploads again and again")
            yield from found
            if is_last:
                return
            marks = after

    def remove(self, address: ObjectAddress, seen: Seen) -> None:
        """Remove the object that was seen, and no other: by its version, or if it still has its ETag.

        Raises Occupied if another one is there by now, StatepipeError.
        """
        which = {"VersionId": seen.version} if seen.version else {"IfMatch": seen.etag}
        try:
            with self._told(f"remove {address}", "s3:DeleteObject"):
                self._client.delete_object(Bucket=address.bucket, Key=address.key, **which)
        except _Absent:
            return
        except _Unmet as error:
            raise Occupied(f"{address} is another object by now, and stays", hint="look at it") from error

    def fetch(self, address: ObjectAddress, seen: Seen | None, start: int | None, size: int) -> S3Range:
        """Begin to read `size` bytes at `start`, of the object that was seen if one was; None: its last ones.

        Near the end, and at the beginning of a small object, there are fewer. Raises Replaced if there is another
        object now, or none, Missing if none was seen before, StatepipeError.
        """
        span = f"bytes=-{size}" if start is None else f"bytes={start}-{start + size - 1}"
        doing = f"read the end of {address}" if start is None else f"read {size} bytes at byte {start} of {address}"
        which = {} if seen is None else {"VersionId": seen.version} if seen.version else {"IfMatch": seen.etag}
        try:
            with self._told(doing, "s3:GetObject"):
                answer = self._client.get_object(Bucket=address.bucket, Key=address.key, Range=span, **which)
                try:
                    body = S3Range.of(answer, 0 if start else size, doing, self._told)
                except BaseException:
                    answer["Body"].close()
                    raise
        except _Absent as error:
            raise (missing(address) if seen is None else replaced(address, start)) from error
        except _Unmet as error:
            raise replaced(address, start) from error
        except _Beyond as error:
            if (now := self.look(address)) is None:
                raise missing(address) from error
            if seen is not None and now.etag != seen.etag:
                raise replaced(address, start) from error
            return S3Range(now, now.size, 0, None, doing, self._told)
        if seen is not None and body.seen.etag != seen.etag:  # a store, or what stands before it, without conditions
            body.close()
            raise replaced(address, start)
        at = max(body.seen.size - size, 0) if start is None else start
        if (body.start, body.size) != (at, min(size, body.seen.size - at)):
            body.close()
            raise unreadable(ValueError(), doing)
        return body

    @contextmanager
    def _told(self, doing: str, rights: str, size: int = SMALL, seconds: float = 0) -> Iterator[None]:
        """Turn botocore's errors into ours, and bound what comes: bytes, and seconds in which nothing more does.

        Raises StatepipeError, _Absent, _Unmet, _Beyond.
        """
        try:
            with bounded(size, max(seconds, SILENCES * self._silence)) as bound:
                yield
        except Unfit as error:
            raise unfit(str(error), doing) from error
        except self._errors.ClientError as error:
            answer = error.response
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = answer.get("Error", {}).get("Code")
            ours = refused(answer, doing, rights)
            if code in ("NoSuchKey", "NoSuchVersion") or (status == 404 and code in ("404", "NotFound", "", None)):
                raise _Absent(str(ours), hint=ours.hint) from error
            if code == "PreconditionFailed" or status == 412:
                raise _Unmet(str(ours), hint=ours.hint) from error
            if code == "InvalidRange" or status == 416:
                raise _Beyond(str(ours), hint=ours.hint) from error
            raise ours from error
        except self._errors.BotoCoreError as error:
            if bound.broken is not None:
                raise unfit(bound.broken, doing) from error
            raise broken(error, doing, self._errors) from error
        except self._unreadable as error:
            if bound.broken is not None:
                raise unfit(bound.broken, doing) from error
            if not rights:  # nothing was asked yet
                raise senseless(error, doing) from error
            raise unreadable(error, doing) from error


def _tell_checksum(request: Any, **_: object) -> None:
    """Tell botocore, before it signs a part, that its header has a checksum of ours: over TLS it hashes no body then.

    The header is signed, so the bytes are vouched for as well, and it saves 0.5 CPU s/GB: half of what is hashed.
    """
    request.context.setdefault("checksum", {})["request_algorithm"] = {"in": "header", "name": "x-amz-checksum-sha256"}


def _demand_plain(response_dict: Mapping[str, Any], **more: object) -> None:
    """Raise Unfit for XML that may define entities, with which some bytes become many: no store's does."""
    body = response_dict.get("body")
    if isinstance(body, bytes) and (b"<!DOCTYPE" in body or b"\0" in body):  # a page, a bomb, or one in UTF-16
        raise Unfit("sent what is no answer of a store's")


class _Absent(StatepipeError):
    """There is no such object."""


class _Unmet(StatepipeError):
    """The condition of a request was not met."""


class _Beyond(StatepipeError):
    """The object has no byte of the range that was asked for."""


_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


class S3Range:
    """A range of an object on its way: of which object, where it begins, and how many bytes it has.

    Closed before its end, it gives up its connection.
    """

    def __init__(self, seen: Seen, start: int, size: int, body: IO[bytes] | None, doing: str, told: Told) -> None:
        self.seen, self.start, self.size = seen, start, size
        self._body, self._doing, self._told = body, doing, told

    @classmethod
    def of(cls, answer: Mapping[str, Any], most: int, doing: str, told: Told) -> S3Range:
        """Return the range of an answer of botocore's, or the whole object if it has `most` bytes at most.

        Raises StatepipeError for a larger one; Transient for what is no object.
        """
        found = _RANGE.fullmatch(answer.get("ContentRange") or "")
        if found is None:
            length = answer.get("ContentLength")
            is_whole = answer["ResponseMetadata"]["HTTPStatusCode"] == 200 and "ETag" in answer
            if is_whole and length is not None and length <= most:  # of an empty object, some send no range
                return cls(seen_in(answer, length), 0, length, answer["Body"], doing, told)
            if not is_whole:  # a portal's page, perhaps
                raise unreadable(ValueError(), doing)
            what = f"cannot {doing}: the store sent the whole object"
            raise StatepipeError(what, hint="use a store, and a proxy before it, that can read ranges of an object")
        first, last, total = map(int, found.groups())
        seen = seen_in(answer, total)
        return cls(seen, first, last - first + 1, answer["Body"], doing, told)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises Transient if they do not come."""
        if self._body is None or not size:
            return b""
        with self._told(self._doing, "s3:GetObject", size + SMALL):
            data = self._body.read(size)
        if len(data) != size:
            raise cut_short(self._doing)
        return data

    def close(self) -> None:
        """End it."""
        if self._body is not None:
            self._body.close()
