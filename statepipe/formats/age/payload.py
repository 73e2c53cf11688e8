"""After the header: a nonce of 16 bytes, then the plaintext in chunks of 64 KiB, each sealed separately (STREAM).

    key = HKDF(file key, salt = nonce, "payload")
    a chunk's nonce = its number, 11 bytes, big-endian, and a byte that is 1 for the last chunk

A chunk that was removed, repeated or moved does not open under its number, and a file without its last chunk is
refused. Only the last chunk may be short; it is empty only in an empty file.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.age.derive import hkdf
from statepipe.stage import Buffer
from statepipe.typed import NamedTuple

NONCE_SIZE = 16
CHUNK = 64 << 10
TAG_SIZE = 16
SEALED = CHUNK + TAG_SIZE


class PayloadError(IntegrityError):
    """A chunk was changed or moved."""


class PayloadCut(PayloadError, TruncatedError):
    """The payload ends without its last chunk."""


def payload_key(file_key: bytes, nonce: bytes) -> ChaCha20Poly1305:
    """Return the key that seals and opens the chunks of one file."""
    return ChaCha20Poly1305(hkdf(file_key, nonce, b"payload"))


def chunk_nonce(number: int, last: int = 0) -> bytes:
    """Return the nonce of the chunk with that number, from 0; `last` is 1 for the last one."""
    return (number << 8 | last).to_bytes(12, "big")


WRITES_INTO = hasattr(ChaCha20Poly1305, "encrypt_into")
"""Whether cryptography (50 and later) seals and opens into a buffer of ours and lets other threads run meanwhile.

Without, each chunk is copied once more, and only one is worked on at a time: 44 to 49 keep the GIL."""


def seal_chunk(key: ChaCha20Poly1305, nonce: bytes, plain: Buffer, into: memoryview) -> None:
    """Seal a chunk into `into`, which is TAG_SIZE longer."""
    if WRITES_INTO:
        key.encrypt_into(nonce, plain, None, into)
    else:
        into[:] = key.encrypt(nonce, plain, None)


def open_chunk(key: ChaCha20Poly1305, number: int, sealed: Buffer, into: Buffer) -> int | None:
    """Decrypt a chunk into `into`, which has the size of its plaintext.

    Return 1 if the chunk is the last one, 0 if not, None if it is damaged. A short chunk can only be the last.
    """
    for last in (0, 1) if len(sealed) == SEALED else (1,):
        try:
            if WRITES_INTO:
                key.decrypt_into(chunk_nonce(number, last), sealed, None, into)
            else:
                memoryview(into)[:] = key.decrypt(chunk_nonce(number, last), sealed, None)
        except InvalidTag:
            continue
        return last
    return None


class Layout(NamedTuple):
    """Maps offsets of the plaintext to a file of `total` bytes whose payload's nonce ends at byte `start`."""

    start: int
    total: int

    @property
    def chunks(self) -> int:
        """The number of chunks. Raises PayloadError if the size does not match whole chunks."""
        count, rest = divmod(self.total - self.start, SEALED)
        if self.total <= self.start or 0 < rest < TAG_SIZE or (rest == TAG_SIZE and count):
            raise PayloadCut("the payload is cut short: its last chunk is missing", offset=self.total)
        return count + (rest > 0)

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self.total - self.start - self.chunks * TAG_SIZE

    def sealed(self, number: int) -> tuple[int, int]:
        """Return the offset and the size of a chunk in the file."""
        offset = self.start + number * SEALED
        return offset, min(SEALED, self.total - offset)

    def covering(self, offset: int, size: int) -> range:
        """Return the numbers of the chunks that hold `size` bytes of plaintext from `offset` on."""
        end = min(offset + size, self.size)
        return range(offset // CHUNK, -(-end // CHUNK) if end > offset else offset // CHUNK)
