"""Addresses of objects in a store.

s3://BUCKET/KEY  gs://BUCKET/KEY  az://CONTAINER/KEY

The key is taken as it is written, as the stores' own tools do: nothing is decoded, and `?` and `#` are ordinary.
"""

from __future__ import annotations

import re

from statepipe.errors import UsageError
from statepipe.guessing import did_you_mean
from statepipe.objectstore.scheme import STORES
from statepipe.typed import NamedTuple

KEY_LIMIT = 1024
"""Bytes of a key at most, in all three (docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html)."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,254}")
"""The widest of the rules: old buckets of S3 have capitals and underscores, those of GCS up to 222 bytes, and `$root`
and `$web` are containers of Azure. The store itself refuses a name that is none of its own."""

_AZURE = ("azure", "azblob", "abfs", "abfss", "wasb", "wasbs")
"""What other tools write for `az`."""

_HINT = "write s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY or file:///PATH"


class ObjectAddress(NamedTuple):
    """An object: its kind of store (S3, GS, AZ), its bucket (with Azure, its container) and its key.

    As a prefix, `key` may be empty or end with a slash.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"


def parse_object(text: str) -> ObjectAddress:
    """Parse the address of an object. Raises UsageError, which says what is wrong with it."""
    address = parse_prefix(text)
    if not address.key:
        raise UsageError(f"'{text}' names a bucket and no key", hint=f"write {address}KEY")
    if address.key.endswith("/"):
        raise UsageError(f"'{text}' ends with a slash, as a folder would", hint=f"name an object: {address}KEY")
    return address


def parse_prefix(text: str) -> ObjectAddress:
    """Parse what the addresses of several objects begin with; its key may be empty. Raises UsageError."""
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in STORES:
        hint = f"{_guess(scheme)}{_HINT}" if scheme else _HINT
        raise UsageError(f"'{text}' is not the address of an object", hint=hint)
    bucket, _, key = text[found.end() :].partition("/")
    if not bucket:
        raise UsageError(f"'{text}' names no bucket", hint=f"write {scheme}://BUCKET/KEY")
    if not _BUCKET.fullmatch(bucket):
        hint = (
            "a bucket's name has letters, digits, dots and dashes, and no user or port: the store is named by endpoint"
        )
        raise UsageError(f"'{text}': '{bucket}' is not the name of a bucket", hint=hint)
    _demand_key(text, key)
    return ObjectAddress(scheme, bucket, key)


def _guess(scheme: str) -> str:
    """Return the beginning of a hint for a scheme that is none of ours."""
    if scheme in ("http", "https"):
        return "the URL of a store is set beside its objects, as in AWS_ENDPOINT_URL_S3: "
    return "did you mean az? " if scheme in _AZURE else did_you_mean(scheme, STORES)


def _demand_key(text: str, key: str) -> None:
    """Raise UsageError for a key that stores or their tools change on the way, or cannot hold."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError(f"the key of {text!a} is not UTF-8", hint="a store's keys are UTF-8") from None
    if size > KEY_LIMIT:
        raise UsageError(
            f"the key has {size} bytes, and a store takes at most {KEY_LIMIT}", hint="choose a shorter key"
        )
    if not key.isprintable():
        raise UsageError(f"the key of {text!a} has control characters", hint="choose a key without them")
    parts = key.removesuffix("/").split("/") if key else []
    if bad := [part for part in parts if part in ("", ".", "..")]:
        what = f"'{bad[0]}' between two slashes" if bad[0] else "a slash at its beginning, or two behind one another"
        hint = "clients of a store resolve such a key as a path, and then it is another object"
        raise UsageError(f"the key of '{text}' has {what}", hint=hint)
