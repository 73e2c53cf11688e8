"""Addresses that stand where a FILE may be: which texts are some. Every command that names a file imports this."""

from __future__ import annotations

from statepipe.errors import UsageError

S3, GS, AZ, LOCAL = "s3", "gs", "az", "file"
STORES = S3, GS, AZ


def is_address(text: str) -> bool:
    """Return whether a FILE is an address, and not the path of a file: `./s3://x` is a path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in (*STORES, LOCAL)


def local_path(text: str) -> str | None:
    """Return the path that file:///PATH names, None for other addresses. Raises UsageError."""
    scheme, separator, path = text.partition("://")
    if not separator or scheme.lower() != LOCAL:
        return None
    if not path.startswith("/"):
        raise UsageError(f"'{text}' does not name a file by its absolute path", hint="write file:///PATH")
    return path
