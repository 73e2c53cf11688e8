"""The ids of Azure's blocks, which say whose they are and what is in them.

    statepipe | upload: 6 bytes of time, 8 at random | number, 2 bytes | SHA-256, 32 bytes

Azure knows no uploads: all writers of a blob share one list of its uncommitted blocks, and the list tells each block's
id and size alone. So two writers never take each other's blocks, as their numbers at random differ; the uploads of a
blob are found in its list, the newest by its time; and whoever continues one compares contents by the digest, which the
writer put there before the service verified the MD5 of the same bytes. The ids of a blob's blocks must have one length;
57 bytes are 76 in base64, without padding (learn.microsoft.com/rest/api/storageservices/put-block: 64 at most).
"""

from __future__ import annotations

import binascii
import os
from base64 import b64decode, b64encode
from datetime import UTC, datetime

from statepipe.typed import NamedTuple

_MAGIC = b"statepipe"
_TIME, _UPLOAD, _NUMBER, _SHA256 = 6, 14, 2, 32
_LENGTH = len(_MAGIC) + _UPLOAD + _NUMBER + _SHA256


class BlockId(NamedTuple):
    """What an id says: the upload in hexadecimal digits, the part's number, and its SHA-256 in base64."""

    upload: str
    number: int
    sha256: str

    def __str__(self) -> str:
        raw = _MAGIC + bytes.fromhex(self.upload) + self.number.to_bytes(_NUMBER) + b64decode(self.sha256)
        return b64encode(raw).decode()


def parse_block_id(text: str) -> BlockId | None:
    """Return what an id says; None if it is none of ours."""
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != _LENGTH or not raw.startswith(_MAGIC):
        return None
    upload, rest = raw[len(_MAGIC) :][:_UPLOAD], raw[len(_MAGIC) + _UPLOAD :]
    return BlockId(upload.hex(), int.from_bytes(rest[:_NUMBER]), b64encode(rest[_NUMBER:]).decode())


def new_upload(now: float) -> str:
    """Return an upload that nobody else has, begun at that time."""
    return int(now * 1000).to_bytes(_TIME).hex() + os.urandom(_UPLOAD - _TIME).hex()


def started(upload: str) -> datetime | None:
    """Return when an upload was begun, by its writer's clock; None if that cannot be a time."""
    try:
        return datetime.fromtimestamp(int(upload[: 2 * _TIME], 16) / 1000, UTC)
    except (ValueError, OverflowError):
        return None
