"""SSH keys: public ones in a line, private ones in a PEM (PROTOCOL.key in OpenSSH's source).

A private key in OpenSSH's own format holds its public key unencrypted, so we know which file a key opens before we
ask for its passphrase.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from statepipe.extras import extra

ED25519 = "ssh-ed25519"
RSA = "ssh-rsa"

SMALLEST_MODULUS = 2048
"""Bits at least, as in age."""

LARGEST_MODULUS = 16384
"""Bits at most, as in OpenSSH: more would only cost time."""

LARGEST_EXPONENT = 2**31 - 1
"""The largest public exponent, as in age, whose library refuses larger ones."""

PARTS = 16
"""Strings in a public key at most: our kinds have two or three, an SSH certificate eleven or more."""

OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"

Blob = bytes
"""A public key in SSH's wire format."""


def parse_line(text: str) -> Blob:
    """Return the public key in a line of `authorized_keys` without options. Raises ValueError."""
    blob = _blob_in(text)
    check_blob(blob)
    kind_of(text)
    return blob


def kind_of(text: str) -> str:
    """Return the kind of the key in such a line, supported or not. Raises ValueError if the key names another."""
    kind = text.split()[0]
    if not kind or (_strings(_blob_in(text)) or [b""])[0].decode(errors="replace") != kind:
        raise ValueError("the key is of another kind than its line says")
    return kind


def _blob_in(text: str) -> Blob:
    try:
        return binascii.a2b_base64(text.split()[1], strict_mode=True)
    except (IndexError, binascii.Error) as error:
        raise ValueError("not an SSH public key") from error


def check_blob(blob: Blob) -> None:
    """Raises ValueError unless `blob` is an Ed25519 or RSA key that is safe to encrypt for."""
    kind = (_strings(blob) or [b""])[0].decode(errors="replace")
    if kind == ED25519:
        read_ed25519(blob)
    elif kind == RSA:
        read_rsa(blob)
    else:
        raise ValueError(f"SSH keys of the kind {kind[:40]} are not supported, only {ED25519} and {RSA}")


def read_ed25519(blob: Blob) -> bytes:
    """Return the 32 bytes of the key. Raises ValueError."""
    _, key, *more = [*_strings(blob), b""]
    if len(key) != 32 or more != [b""]:
        raise ValueError("not an Ed25519 key")
    return key


def read_rsa(blob: Blob) -> RSAPublicKey:
    """Return the key. Raises ValueError for a size that is not supported, and for numbers that no RSA key has."""
    parts = _strings(blob)
    if len(parts) != 3:
        raise ValueError("not an RSA key")
    exponent, modulus = (int.from_bytes(part, "big") for part in parts[1:])
    if not SMALLEST_MODULUS <= modulus.bit_length() <= LARGEST_MODULUS:
        raise ValueError(
            f"an RSA key of {modulus.bit_length()} bits; {SMALLEST_MODULUS} to {LARGEST_MODULUS} are supported"
        )
    if not modulus % 2 or exponent > LARGEST_EXPONENT:  # cryptography fails only when such a key is used
        raise ValueError("not an RSA key that can be used: its numbers are wrong")
    return RSAPublicNumbers(exponent, modulus).public_key()


def _strings(data: bytes) -> list[bytes]:
    """Return the strings in `data`, each of which follows its length. Raises ValueError."""
    found: list[bytes] = []
    while data:
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 + size:
            raise ValueError("it is cut short")
        if len(found) == PARTS:
            raise ValueError(f"it has more than {PARTS} parts")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def public_part(pem: bytes) -> tuple[Blob, bool]:
    """Return the public key in a private key of OpenSSH's format, and whether a passphrase protects the private part.

    Raises ValueError.
    """
    inner = pem.strip().removeprefix(OPENSSH).partition(b"-----")[0]
    try:
        data = binascii.a2b_base64(inner)
    except binascii.Error as error:
        raise ValueError("not an OpenSSH private key") from error
    fields = [b""]
    if data.startswith(_MAGIC):
        cipher, rest = _cut(data[len(_MAGIC) :])
        for _ in range(2):  # the key derivation and its options
            _, rest = _cut(rest)
        fields = [cipher, _cut(rest[4:])[0]]
    if len(fields) < 2:
        raise ValueError("not an OpenSSH private key")
    check_blob(fields[1])
    return fields[1], fields[0] != b"none"


def _cut(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:4], "big")
    if len(data) < 4 + size:
        raise ValueError("it is cut short")
    return data[4 : 4 + size], data[4 + size :]


PrivateKey = Ed25519PrivateKey | RSAPrivateKey


def load_private(pem: bytes, ask: Callable[[], bytes]) -> PrivateKey:
    """Return the private key; calls `ask` for the passphrase of an encrypted one. Raises ValueError."""
    load = load_ssh_private_key if pem.startswith(OPENSSH) else load_pem_private_key
    try:
        try:
            key: object = load(pem, None)
        except TypeError:  # it is encrypted
            if pem.startswith(OPENSSH):
                with extra("ssh-keys"):
                    import bcrypt  # noqa: F401 (cryptography derives the key with it)
            key = load(pem, ask())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("the key cannot be opened: the passphrase is wrong, or the key is damaged") from error
    if not isinstance(key, Ed25519PrivateKey | RSAPrivateKey):
        raise ValueError(f"only {ED25519} and {RSA} keys open an age file")
    return key


def blob_of(key: PrivateKey) -> Blob:
    """Return the public key of `key`."""
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return parse_line(line.decode())
