"""The usual recipient of age: an X25519 key, `age1…`, whose identity is `AGE-SECRET-KEY-1…`.

wrapping key = HKDF(X25519(ephemeral, recipient), salt = ephemeral share and recipient, "age-encryption.org/v1/X25519")
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from statepipe.formats.age import bech32
from statepipe.formats.age.derive import check_stanza, decode_argument, hkdf, unwrap, wrap
from statepipe.formats.age.envelope import Wrapped
from statepipe.formats.age.header import HeaderError, Stanza, encode
from statepipe.typed import NamedTuple

KIND = "X25519"
NAME = "age"
SECRET_NAME = "AGE-SECRET-KEY-"
INFO = b"age-encryption.org/v1/X25519"


class X25519Recipient(NamedTuple):
    """A public key of 32 bytes."""

    key: bytes

    def __str__(self) -> str:
        return bech32.encode(NAME, self.key)

    def check(self) -> None:
        """Raises ValueError for a key of low order, with which every shared secret would be the same."""
        check_point(self.key)

    def wrap(self, file_key: bytes) -> Wrapped:
        """Return one stanza, with a share that is used once."""
        ephemeral = X25519PrivateKey.generate()
        share = ephemeral.public_key().public_bytes_raw()
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.key))
        body = wrap(hkdf(shared, share + self.key, INFO), file_key)
        return Wrapped((Stanza(KIND, (encode(share),), body),))


class X25519Identity(NamedTuple):
    """A secret key of 32 bytes."""

    secret: bytes

    def __repr__(self) -> str:
        return "X25519Identity()"

    @classmethod
    def generate(cls) -> X25519Identity:
        """Return a new identity."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    @property
    def recipient(self) -> X25519Recipient:
        """The recipient whose files this identity opens."""
        return X25519Recipient(self._key().public_key().public_bytes_raw())

    def text(self) -> str:
        """Return the secret text for an identity file."""
        return bech32.encode(SECRET_NAME, self.secret)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if no stanza is for this identity. Raises HeaderError."""
        for stanza in stanzas:
            if stanza.kind == KIND:
                check_stanza(stanza, 1)
                share = decode_argument(stanza, 0, 32)
                shared = exchange(self._key(), share)
                if file_key := unwrap(hkdf(shared, share + self.recipient.key, INFO), stanza.body):
                    return file_key
        return None

    def _key(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.secret)


def check_point(point: bytes) -> None:
    """Raises ValueError for a point of low order: the exchange returns zeros for any secret (RFC 7748, 6.1)."""
    try:
        X25519PrivateKey.from_private_bytes(bytes(range(32))).exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError as error:
        raise ValueError("the key has low order and protects nothing") from error


def exchange(secret: X25519PrivateKey, share: bytes) -> bytes:
    """Return the shared secret. Raises HeaderError for a share of low order, with which anyone could compute it."""
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError as error:
        raise HeaderError("a share in the age header has low order: every key would be the same") from error
