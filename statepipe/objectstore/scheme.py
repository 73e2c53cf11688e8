"""Addresses that stand where a FILE may be: which texts are some. Every command that names a file imports this."""

from __future__ import annotations

from statepipe.errors import UsageError

S3, GS, AZ, LOCAL = "s3", "gs", "az", "file"
STORES = S3, GS, AZ


def is_address(text: str) -> bool:
    """Return whether a FILE is an address, and not the path of a file: `./s3://x` is a path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in (*STORES, LOCAL)


def advice(words: str) -> str | None:
    """Return the hint for a file that is not there, if the words that name it have what looks like an address."""
    for word in words.split():
        if is_address(word):
            return "only files of this host can be named here: statepipe get reads an object, and put writes one"
        if ":/" in word:
            return "check the path; an object is named by s3://BUCKET/KEY, gs://BUCKET/KEY or az://CONTAINER/KEY"
    return None


def local_path(text: str) -> str | None:
    """Return the path that file:///PATH names, None for other addresses. Raises UsageError."""
    scheme, separator, path = text.partition("://")
    if not separator or scheme.lower() != LOCAL:
        return None
    if not path.startswith("/"):
        raise UsageError(f"'{text}' does not name a file by its absolute path", hint="write file:///PATH")
    return path
