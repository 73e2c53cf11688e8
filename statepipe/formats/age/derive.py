"""The primitives of all of age's keys: HKDF-SHA256, HMAC of the header, and file keys sealed by ChaCha20-Poly1305."""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from statepipe.formats.age.header import HeaderError, Stanza, decode

FILE_KEY_SIZE = 16

WRAPPED_SIZE = FILE_KEY_SIZE + 16
"""Bytes of a sealed file key. Anything longer could open under two keys at once, so it is refused unread."""

_NO_NONCE = bytes(12)
"""A fixed nonce is safe: each wrapping key seals only one file key."""


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes derived from `key` (RFC 5869)."""
    return HKDF(SHA256(), 32, salt, info).derive(key)


def header_mac(file_key: bytes, covered: bytes) -> bytes:
    """Return the MAC that proves that the sender wrote this header."""
    return hmac.digest(hkdf(file_key, b"", b"header"), covered, "sha256")


def wrap(key: bytes, file_key: bytes) -> bytes:
    """Return the sealed file key."""
    return ChaCha20Poly1305(key).encrypt(_NO_NONCE, file_key, None)


def unwrap(key: bytes, body: bytes) -> bytes | None:
    """Return the file key, or None if another key sealed it."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NO_NONCE, body, None)
    except InvalidTag:
        return None


def check_stanza(stanza: Stanza, arguments: int, body: int | None = WRAPPED_SIZE) -> None:
    """Raise HeaderError unless a stanza has that many arguments and a body of that many bytes."""
    if len(stanza.arguments) != arguments:
        raise HeaderError(f"the {stanza.kind} stanza has {len(stanza.arguments)} arguments, expected {arguments}")
    if body is not None and len(stanza.body) != body:
        raise HeaderError(f"the {stanza.kind} stanza holds {len(stanza.body)} bytes, expected {body}")


def decode_argument(stanza: Stanza, index: int, size: int) -> bytes:
    """Return an argument decoded, which must have `size` bytes. Raises HeaderError."""
    data = decode(stanza.arguments[index])
    if len(data) != size:
        raise HeaderError(f"an argument of the {stanza.kind} stanza has {len(data)} bytes, expected {size}")
    return data
