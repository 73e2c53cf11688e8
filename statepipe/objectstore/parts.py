"""The parts of an object: their one size, their bytes, and whether the store has what was sent.

All parts but the last have one size, since some stores demand it (Cloudflare R2), and an object has 10,000 of them at
most. So the size is chosen before the first part, by what is known of the stream then.
"""

from __future__ import annotations

import hashlib
import re

from statepipe.objectstore.store import Content, Part
from statepipe.threads import End

MOST_PARTS = 10_000
"""Parts of an object at most (docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""

FILLED = 9_000
"""Parts that an object of the expected size has at most: the rest is for what was not expected."""

LEAST = 8 << 20
"""Bytes of a part at least. S3 takes 5 MiB; each part costs a round trip, and below 8 MiB that shows."""

UNKNOWN = 1 << 40
"""Bytes of the largest object whose size nobody has told: 1 TiB, in parts of 105 MiB."""

ALONE = 32 << 20
"""Bytes of a part at least, of an object of a GiB or more, in a store that takes one at a time: between two, nothing is
sent while the store answers. In the 0.27 s that 32 MiB take at 1 Gbit/s, an answer after 0.1 s costs a quarter."""

GRAIN = 1 << 20

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
"""An ETag that is the MD5 of the bytes: that of a part, unless the store encrypts it with a key of KMS."""


def part_size(expected: int | None, in_flight: int) -> int:
    """Return the bytes of each part of an object of about `expected` bytes; None: nobody knows.

    `in_flight` is how many the store takes at once.
    """
    least = -(-UNKNOWN // MOST_PARTS) if expected is None else -(-expected // FILLED)
    if in_flight == 1 and expected is not None:
        least = max(least, min(ALONE, expected // 32))
    return max(LEAST, -(-least // GRAIN) * GRAIN)


def most_bytes(size: int) -> int:
    """Return the bytes of the largest object with parts of that size."""
    return size * MOST_PARTS


class Stopped(Exception):
    """The upload was given up while a part was being sent."""


class PartFile:
    """The bytes of a part as a file. It is read in small pieces, so that a stalled connection is noticed by each, and
    raises Stopped once `stop` was told."""

    def __init__(self, view: memoryview, stop: End) -> None:
        self._view, self._stop, self._at = view, stop, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`; all that are left if it is negative."""
        if self._stop.come:
            raise Stopped
        end = len(self._view) if size is None or size < 0 else self._at + size
        piece = bytes(self._view[self._at : end])
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position, as in any file; return it."""
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at


def is_same(part: Part, content: Content) -> bool | None:
    """Return whether the store's part is this content; None if the store does not tell enough to know.

    The SHA-256 counts, if the store told it, or an ETag that is an MD5.
    """
    if part.size != content.size:
        return False
    if part.sha256 is not None:
        return part.sha256 == content.sha256
    if (md5 := _MD5.fullmatch(part.etag)) is None:
        return None
    digest = hashlib.md5(usedforsecurity=False)
    content.file.seek(0)
    while piece := content.file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest() == md5[1]


def agree(listed: Part, answered: Part) -> bool:
    """Return whether the store lists a part as its answer to that part said."""
    sums = listed.sha256, answered.sha256
    is_same_sum = None in sums or sums[0] == sums[1]
    return (listed.size, listed.etag) == (answered.size, answered.etag) and is_same_sum


def etag_of(parts: list[Part]) -> str | None:
    """Return the ETag that stores give to an object of these parts, quotes included; None if it cannot be told."""
    found = [_MD5.fullmatch(part.etag) for part in parts]
    if not all(found):
        return None
    whole = hashlib.md5(b"".join(bytes.fromhex(each[1]) for each in found if each), usedforsecurity=False)
    return f'"{whole.hexdigest()}-{len(parts)}"'
