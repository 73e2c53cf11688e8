"""S3, and stores that speak it (Ceph, MinIO, Garage, SeaweedFS, R2), by botocore's client.

botocore is the low-level half of boto3. It alone has what writing needs together: uploads in parts with an id, which
another process can continue, their checksums, and If-None-Match on CompleteMultipartUpload. It signs, and finds
credentials as the aws command does. boto3 above it adds nothing for us and half of its start-up: 0.2 s of 0.5 s.
obstore reads as fast per processor time and starts in 30 ms, but cannot complete a multipart upload on a condition and
knows no upload's id.

Its own retries are off: objectstore/retry.py decides what is tried again and for how long, and tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from statepipe.errors import IntegrityError
from statepipe.extras import extra
from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.failures import Occupied, UploadGone, broken, not_as_sent, occupied, refused, unreadable
from statepipe.objectstore.parts import is_same
from statepipe.objectstore.settings import CONNECT, Settings, endpoint_for_s3
from statepipe.objectstore.store import Content, Part, Seen, Upload
from statepipe.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import IO

CONNECTIONS = 20
"""Connections that are kept open at most: more than there are parts in flight."""

_LISTED = 1000
"""Entries of a list at most, and by default."""


class S3Store:
    """A store that speaks S3, in both roles. Raises StatepipeError if no client can be made."""

    def __init__(self, settings: Settings) -> None:
        with extra("object"):
            import botocore.config
            import botocore.exceptions
            import botocore.parsers
            import botocore.session
        self._errors: Any = botocore.exceptions
        self._unreadable = botocore.parsers.ResponseParserError, KeyError
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

    def look(self, address: ObjectAddress) -> Seen | None:
        """Return what is known of an object, None if there is none. Raises StatepipeError."""
        try:
            with self._told(f"look for {address}", "s3:GetObject and s3:ListBucket"):
                found = self._client.head_object(Bucket=address.bucket, Key=address.key)
                version = found.get("VersionId")
                return Seen(
                    found["ContentLength"],
                    found["ETag"],
                    None if version in (None, "null") else version,
                    found.get("Metadata", {}),
                )
        except _Absent:
            return None

    def begin(self, address: ObjectAddress, notes: Mapping[str, str]) -> Upload:
        """Begin an upload. The object will have these notes. Raises StatepipeError."""
        with self._told(f"begin to upload {address}", "s3:PutObject"):
            made = self._client.create_multipart_upload(
                Bucket=address.bucket, Key=address.key, ChecksumAlgorithm="SHA256", Metadata=dict(notes)
            )
            return Upload(address, made["UploadId"], None)

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
            part = Part(number, content.size, made["ETag"], made.get("ChecksumSHA256"))
        verdict = is_same(part, content)
        if verdict is None:
            what = f"cannot {doing}: the store tells neither its SHA-256 nor its MD5, so nothing shows what it has"
            raise IntegrityError(what, hint="use a store that reports checksums")
        if not verdict:
            raise not_as_sent(doing, "the store has other bytes than were sent")
        return part

    def parts(self, upload: Upload) -> Iterator[Part]:
        """Yield the parts that the store has, by their numbers. Raises UploadGone, StatepipeError."""
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
                found = [
                    Part(each["PartNumber"], each["Size"], each["ETag"], each.get("ChecksumSHA256"))
                    for each in listed.get("Parts", ())
                ]
                is_last = not listed["IsTruncated"] or not found
            yield from found
            if is_last:
                return
            after = found[-1].number

    def complete(self, upload: Upload, parts: Sequence[Part], *, overwrite: bool) -> str | None:
        """Make the object of the parts, at once. Return its version, None without versioning.

        Raises Occupied, Conflict, UploadGone, NoConditions, StatepipeError.
        """
        named = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        for row, part in zip(named, parts, strict=True):
            if part.sha256 is not None:
                row["ChecksumSHA256"] = part.sha256
        condition = {} if overwrite else {"IfNoneMatch": "*"}
        try:
            with self._told(f"complete {upload.address}", "s3:PutObject"):
                made = self._client.complete_multipart_upload(
                    Bucket=upload.address.bucket,
                    Key=upload.address.key,
                    UploadId=upload.id,
                    MultipartUpload={"Parts": named},
                    **condition,
                )
                made["ETag"]
        except _Unmet as error:
            raise occupied(upload.address) from error
        version = made.get("VersionId")
        return None if version == "null" else version

    def abort(self, upload: Upload) -> None:
        """End an upload and drop its parts; it may be gone already. Raises StatepipeError."""
        try:
            with self._told(f"abort the upload of {upload.address}", "s3:AbortMultipartUpload"):
                self._client.abort_multipart_upload(
                    Bucket=upload.address.bucket, Key=upload.address.key, UploadId=upload.id
                )
        except UploadGone:
            return

    def uploads(self, prefix: ObjectAddress) -> Iterator[Upload]:
        """Yield the uploads that were begun for keys with this prefix. Raises StatepipeError."""
        marks: dict[str, str] = {}
        while True:
            with self._told(f"list the uploads below {prefix}", "s3:ListBucketMultipartUploads"):
                listed = self._client.list_multipart_uploads(
                    Bucket=prefix.bucket, Prefix=prefix.key, MaxUploads=_LISTED, **marks
                )
                found = [
                    Upload(prefix._replace(key=each["Key"]), each["UploadId"], each.get("Initiated"))
                    for each in listed.get("Uploads", ())
                ]
                is_last = not listed["IsTruncated"] or not listed.get("NextKeyMarker")
            yield from found
            if is_last:
                return
            marks = {"KeyMarker": listed["NextKeyMarker"], "UploadIdMarker": listed.get("NextUploadIdMarker", "")}

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

    def read(self, address: ObjectAddress, seen: Seen, start: int, size: int) -> bytes:
        """Return `size` bytes at `start` of the object that was seen.

        Raises IntegrityError if it was replaced or removed, StatepipeError.
        """
        which = {"VersionId": seen.version} if seen.version else {"IfMatch": seen.etag}
        doing = f"read {size} bytes at byte {start} of {address}"
        try:
            with self._told(doing, "s3:GetObject"):
                found = self._client.get_object(
                    Bucket=address.bucket, Key=address.key, Range=f"bytes={start}-{start + size - 1}", **which
                )
                body: IO[bytes] = found["Body"]
                data = body.read()
        except (_Absent, _Unmet) as error:
            hint = "read it again from the beginning"
            raise IntegrityError(f"{address} was replaced or removed while it was read", hint=hint) from error
        if len(data) != size:
            raise not_as_sent(doing, f"the store sent {len(data)} bytes")
        return data

    @contextmanager
    def _told(self, doing: str, rights: str) -> Iterator[None]:
        """Turn botocore's errors into ours. Raises StatepipeError, _Absent, _Unmet."""
        try:
            yield
        except self._errors.ClientError as error:
            answer = error.response
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = answer.get("Error", {}).get("Code")
            if code in ("NoSuchKey", "NoSuchVersion") or (status == 404 and code in ("404", "NotFound", "", None)):
                raise _Absent from error
            if code == "PreconditionFailed" or status == 412:
                raise _Unmet from error
            raise refused(answer, doing, rights) from error
        except self._errors.BotoCoreError as error:
            raise broken(error, doing, self._errors) from error
        except self._unreadable as error:
            raise unreadable(error, doing) from error


class _Absent(Exception):
    """There is no such object."""


class _Unmet(Exception):
    """The condition of a request was not met."""
