"""The post-quantum recipient of age, `age1pq1…`: ML-KEM-768 and X25519 combined (X-Wing) in HPKE (RFC 9180).

An attacker must break both. An identity is a seed of 32 bytes, `AGE-SECRET-KEY-PQ-1…`, that SHAKE256 expands to the
seed of the ML-KEM key (64 bytes) and the X25519 key (32 bytes).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from statepipe.extras import extra
from statepipe.formats.age import bech32
from statepipe.formats.age.derive import check_stanza, decode_argument
from statepipe.formats.age.envelope import Wrapped
from statepipe.formats.age.header import Stanza, encode
from statepipe.formats.age.x25519 import check_point, exchange

with extra("pq"):
    from cryptography.hazmat.primitives import hpke
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey

KIND = "mlkem768x25519"
NAME = "age1pq"
SECRET_NAME = "AGE-SECRET-KEY-PQ-"
INFO = b"age-encryption.org/mlkem768x25519"

MLKEM_SIZE = 1184
PUBLIC_SIZE = MLKEM_SIZE + 32
SHARE_SIZE = 1088 + 32
SEED_SIZE = 32

LABELS = frozenset({"postquantum"})
"""The label of post-quantum recipients. A recipient without it in the same header would remove the protection."""


def _suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True, slots=True)
class HybridRecipient:
    """Public keys: ML-KEM-768, 1184 bytes, then X25519, 32."""

    key: bytes

    def __str__(self) -> str:
        return bech32.encode(NAME, self.key)

    def check(self) -> None:
        """Raises ValueError unless these are valid keys."""
        self._public()
        check_point(self.key[MLKEM_SIZE:])

    def wrap(self, file_key: bytes) -> Wrapped:
        """Return one stanza."""
        sealed = _suite().encrypt(file_key, self._public(), INFO)
        return Wrapped((Stanza(KIND, (encode(sealed[:SHARE_SIZE]),), sealed[SHARE_SIZE:]),), LABELS)

    def _public(self) -> MLKEM768X25519PublicKey:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(self.key[:MLKEM_SIZE]),
            X25519PublicKey.from_public_bytes(self.key[MLKEM_SIZE:]),
        )


@dataclass(frozen=True, slots=True)
class HybridIdentity:
    """A seed of 32 bytes."""

    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> HybridIdentity:
        """Return a new identity."""
        return cls(secrets.token_bytes(SEED_SIZE))

    @property
    def recipient(self) -> HybridRecipient:
        """The recipient whose files this identity opens."""
        lattice, curve = self._keys()
        return HybridRecipient(lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw())

    def text(self) -> str:
        """Return the secret text for an identity file."""
        return bech32.encode(SECRET_NAME, self.seed)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if no stanza is for this identity. Raises HeaderError."""
        for stanza in stanzas:
            if stanza.kind == KIND:
                check_stanza(stanza, 1)
                share = decode_argument(stanza, 0, SHARE_SIZE)
                lattice, curve = self._keys()
                exchange(curve, share[-32:])
                with suppress(InvalidTag):  # it is for another identity
                    return _suite().decrypt(share + stanza.body, MLKEM768X25519PrivateKey(lattice, curve), INFO)
        return None

    def _keys(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        expanded = hashlib.shake_256(self.seed).digest(96)
        return MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
