"""SSH keys as recipients (ssh-ed25519 and ssh-rsa), so that an SSH login is enough to receive encrypted files.

A stanza begins with the first 4 bytes of the SHA-256 of the public key in SSH's format, so that an identity finds its
own stanza. An Ed25519 key is converted to X25519 by the map between the curves, and bound to its SSH form by a tweak.
An RSA key seals the file key with OAEP. The specification leaves SSH keys to age's agessh.go, which this follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from statepipe.formats.age.derive import check_stanza, decode_argument, hkdf, unwrap, wrap
from statepipe.formats.age.envelope import Wrapped
from statepipe.formats.age.header import HeaderError, Stanza, encode
from statepipe.formats.age.sshkey import ED25519, RSA, Blob, PrivateKey, blob_of, read_ed25519, read_rsa
from statepipe.formats.age.x25519 import check_point, exchange

ED25519_INFO = b"age-encryption.org/v1/ssh-ed25519"
RSA_LABEL = b"age-encryption.org/v1/ssh-rsa"

_PRIME = 2**255 - 19


def tag(blob: Blob) -> str:
    """Return the tag by which a stanza names its key."""
    return encode(hashlib.sha256(blob).digest()[:4])


def montgomery(key: bytes) -> bytes:
    """Return an Ed25519 key as X25519: u = (1 + y) / (1 - y) (RFC 7748 4.1). Raises ValueError for y = 1."""
    y = int.from_bytes(key, "little") & (1 << 255) - 1
    u = (1 + y) * pow(1 - y, -1, _PRIME) % _PRIME
    return u.to_bytes(32, "little")


def _tweak(blob: Blob) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hkdf(b"", blob, ED25519_INFO))


@dataclass(frozen=True, slots=True)
class Ed25519Recipient:
    """A key as in `id_ed25519.pub`: `blob` is its second word, decoded."""

    blob: Blob

    def check(self) -> None:
        """Raises ValueError for a key of low order, with which every shared secret would be the same."""
        check_point(montgomery(read_ed25519(self.blob)))

    def wrap(self, file_key: bytes) -> Wrapped:
        """Return one stanza."""
        theirs = montgomery(read_ed25519(self.blob))
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        shared = exchange(_tweak(self.blob), exchange(ephemeral, theirs))
        body = wrap(hkdf(shared, share + theirs, ED25519_INFO), file_key)
        return Wrapped((Stanza(ED25519, (tag(self.blob), encode(share)), body),))


@dataclass(frozen=True, slots=True)
class Ed25519Identity:
    """A key as in `id_ed25519`."""

    blob: Blob
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def recipient(self) -> Ed25519Recipient:
        """The recipient whose files this identity opens."""
        return Ed25519Recipient(self.blob)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if no stanza is for this identity. Raises HeaderError."""
        for stanza in stanzas:
            if stanza.kind == ED25519:
                check_stanza(stanza, 2)
                share = decode_argument(stanza, 1, 32)
                if stanza.arguments[0] != tag(self.blob):
                    continue
                scalar = hashlib.sha512(self.key.private_bytes_raw()).digest()[:32]
                shared = exchange(_tweak(self.blob), exchange(X25519PrivateKey.from_private_bytes(scalar), share))
                ours = montgomery(read_ed25519(self.blob))
                if file_key := unwrap(hkdf(shared, share + ours, ED25519_INFO), stanza.body):
                    return file_key
        return None


def _oaep() -> padding.OAEP:
    return padding.OAEP(padding.MGF1(SHA256()), SHA256(), RSA_LABEL)


@dataclass(frozen=True, slots=True)
class RsaRecipient:
    """A key as in `id_rsa.pub`: `blob` is its second word, decoded."""

    blob: Blob

    def wrap(self, file_key: bytes) -> Wrapped:
        """Return one stanza."""
        body = read_rsa(self.blob).encrypt(file_key, _oaep())
        return Wrapped((Stanza(RSA, (tag(self.blob),), body),))


@dataclass(frozen=True, slots=True)
class RsaIdentity:
    """A key as in `id_rsa`."""

    blob: Blob
    key: rsa.RSAPrivateKey = field(repr=False)

    @property
    def recipient(self) -> RsaRecipient:
        """The recipient whose files this identity opens."""
        return RsaRecipient(self.blob)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if no stanza is for this identity. Raises HeaderError."""
        for stanza in stanzas:
            if stanza.kind == RSA:
                check_stanza(stanza, 1, body=None)
                if stanza.arguments[0] != tag(self.blob):
                    continue
                try:
                    return self.key.decrypt(stanza.body, _oaep())
                except ValueError as error:
                    raise HeaderError("the ssh-rsa stanza for this key cannot be decrypted: it was changed") from error
        return None


def identity_of(key: PrivateKey) -> Ed25519Identity | RsaIdentity:
    """Return the identity of a private key. Raises ValueError for an RSA key that is too small."""
    blob = blob_of(key)
    return Ed25519Identity(blob, key) if isinstance(key, Ed25519PrivateKey) else RsaIdentity(blob, key)
