"""What the fields of an answer may be: a store may be broken, or hostile, and what it tells is kept and sent back."""

from __future__ import annotations

from collections.abc import Mapping

from statepipe.objectstore.address import KEY_LIMIT, ObjectAddress
from statepipe.objectstore.parts import MOST_PARTS
from statepipe.objectstore.store import Part, Seen, Upload
from statepipe.shapes import told
from statepipe.typed import Any

LONGEST = 2048
"""Characters of an ETag, of a version and of the id of an upload: the longest that are known have some hundred."""

LARGEST = 1 << 60
"""Bytes of an object: stores take less than 2^46 (48.8 TiB)."""


class Unfit(Exception):
    """An answer has what no store's may have. The text says what: a verb, and more."""


def _size(value: object, what: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise Unfit(f"says that {what} has {told(value, 30)} bytes")
    return value


def _word(value: object, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST or not value.isprintable():
        raise Unfit(f"sent {what} that is none: {told(value, 30)}")
    return value


def version_in(answer: Mapping[str, Any]) -> str | None:
    """Return the version that an answer tells; None without versioning. Raises Unfit."""
    version = answer.get("VersionId")
    return None if version in (None, "null") else _word(version, "a version")


def seen_in(answer: Mapping[str, Any], size: object) -> Seen:
    """Return what an answer says of an object of `size` bytes. Raises Unfit, KeyError without an ETag."""
    etag = _word(answer["ETag"], "an ETag")
    return Seen(_size(size, "the object"), etag, version_in(answer), answer.get("Metadata") or {})


def part_in(row: Mapping[str, Any]) -> Part:
    """Return the part that a row of a list tells. Raises Unfit, KeyError."""
    number, sha256 = row["PartNumber"], row.get("ChecksumSHA256")
    if not 1 <= number <= MOST_PARTS:
        raise Unfit(f"lists a part {told(number, 30)}, and an object has parts 1 to {MOST_PARTS}")
    etag = _word(row["ETag"], "an ETag")
    return Part(number, _size(row["Size"], f"part {number}"), etag, sha256 and _word(sha256, "a SHA-256"))


def upload_in(row: Mapping[str, Any], prefix: ObjectAddress) -> Upload:
    """Return the upload that a row of a list tells, of a key with the prefix. Raises Unfit, KeyError."""
    key = row["Key"]
    if not key.startswith(prefix.key) or not 0 < len(key.encode(errors="surrogatepass")) <= KEY_LIMIT:
        raise Unfit(f"lists an upload of the key {told(key, 100)}, which does not begin with the prefix")
    return Upload(prefix._replace(key=key), id_in(row), row.get("Initiated"))


def id_in(answer: Mapping[str, Any]) -> str:
    """Return the id of an upload. Raises Unfit, KeyError."""
    return _word(answer["UploadId"], "the id of an upload")


def etag_in(answer: Mapping[str, Any]) -> str:
    """Return the ETag. Raises Unfit, KeyError."""
    return _word(answer["ETag"], "an ETag")
