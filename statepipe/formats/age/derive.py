"""What all of age's keys come from: HKDF-SHA256, HMAC over the header, and a file key sealed with ChaCha20-Poly1305."""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from statepipe.formats.age.header import HeaderError, Stanza, decode

FILE_KEY_SIZE = 16

WRAPPED_SIZE = FILE_KEY_SIZE + 16
"""A sealed file key: anything longer could be opened under two keys at once, so that it is never tried."""

_NO_NONCE = bytes(12)
"""Each wrapping key seals one file key."""


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes (RFC 5869)."""
    return HKDF(SHA256(), 32, salt, info).derive(key)


def header_mac(file_key: bytes, covered: bytes) -> bytes:
    """The MAC that proves a header to be what the sender wrote."""
    return hmac.digest(hkdf(file_key, b"", b"header"), covered, "sha256")


def wrap(key: bytes, file_key: bytes) -> bytes:
    """The file key, sealed."""
    return ChaCha20Poly1305(key).encrypt(_NO_NONCE, file_key, None)


def unwrap(key: bytes, body: bytes) -> bytes | None:
    """The file key, or None if this is not the key that sealed it."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NO_NONCE, body, None)
    except InvalidTag:
        return None


def check_stanza(stanza: Stanza, arguments: int, body: int | None = WRAPPED_SIZE) -> None:
    """That a stanza has so many arguments and a body of that size. Raises HeaderError."""
    if len(stanza.arguments) != arguments:
        raise HeaderError(f"the {stanza.kind} stanza has {len(stanza.arguments)} arguments and not {arguments}")
    if body is not None and len(stanza.body) != body:
        raise HeaderError(f"the {stanza.kind} stanza holds {len(stanza.body)} bytes and not {body}")


def decode_argument(stanza: Stanza, index: int, size: int) -> bytes:
    """An argument that stands for `size` bytes. Raises HeaderError."""
    data = decode(stanza.arguments[index])
    if len(data) != size:
        raise HeaderError(f"an argument of the {stanza.kind} stanza has {len(data)} bytes and not {size}")
    return data
