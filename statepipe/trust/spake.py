"""Pairing: two hosts that share a short code exchange certificates, protected against a man in the middle.

    hello     name, certificate, and the first half of a SPAKE2 exchange over the code     both ways
    confirm   HMAC of both hellos under the resulting key                                  both ways
    ready     the listener is able to keep the certificate                                 from the listener
    kept      the connecting host has kept the certificate                                 from the connecting host
    done      the listener has kept it too; without it, the connecting host undoes its pin from the listener

SPAKE2 (RFC 9382) gives both sides the same key only if both have the same code, and gives an eavesdropper nothing to
test codes against. An attacker without the code has one guess in 10^8; then the attempt is over on both sides. The
confirmation covers both hellos whole, so a certificate that was changed on its way is detected too.

So either both sides pin each other or neither does, except if the connection breaks just before the final message.

No I/O: the caller carries the bytes, `hello` in a frame, the other messages with a fixed size.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass
from hashlib import sha256

from statepipe.errors import IntegrityError, PeerError
from statepipe.extras import extra
from statepipe.shapes import Misshapen, fields, parse, text
from statepipe.trust.certificates import read_certificate

with extra("pair"):
    from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
    from spake2.ed25519_basic import NotOnCurve

HELLO_LIMIT = 16 << 10
"""Bytes of a hello at most: one of our certificates has 550."""

_HELLO = fields({"name": text(255), "certificate": text(HELLO_LIMIT), "spake2": text(256)})
_AMISS = (AssertionError, ValueError, SPAKEError, NotOnCurve)
"""The exceptions of spake2 for an invalid element: wrong length, side or group, our own, or off the curve."""

CODE_DIGITS = 8

CONFIRM_SIZE = 32
"""Bytes of a confirmation, and of each message after it."""

READY, KEPT, DONE = b"ready", b"kept", b"done"
"""The messages after the confirmation, in this order."""


def new_code() -> str:
    """Return a one-time code that is easy to type: eight digits, in two groups."""
    digits = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
    return f"{digits[:4]}-{digits[4:]}"


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """The host at the other end: the name it sent, and its certificate in PEM."""

    name: str
    certificate: str


class Pairing:
    """One side of one attempt. `first` is true on the side that listens and shows the code."""

    def __init__(self, code: str, name: str, certificate: str, *, first: bool) -> None:
        secret = "".join(filter(str.isalnum, code)).lower().encode()
        side = SPAKE2_A if first else SPAKE2_B
        self._spake = side(secret, idA=b"statepipe pair, listening", idB=b"statepipe pair, connecting")
        self._label, self._theirs = (b"A", b"B") if first else (b"B", b"A")
        fields = {"name": name, "certificate": certificate, "spake2": self._spake.start().hex()}
        self.hello = json.dumps(fields).encode()
        self._key = b""
        self._transcript = b""
        self._peer: RemoteHost | None = None

    def take_hello(self, data: bytes) -> bytes:
        """Take the peer's hello; return our confirmation. Raises PeerError for an invalid hello: no code was tried."""
        try:
            hello = parse(data, _HELLO)
            read_certificate(hello["certificate"].encode(), "its certificate")
            self._key = self._spake.finish(bytes.fromhex(hello["spake2"]))
        except (Misshapen, IntegrityError, *_AMISS) as error:
            raise PeerError("the other host does not follow the protocol of 'statepipe pair'") from error
        self._peer = RemoteHost(hello["name"], hello["certificate"])
        hellos = (self.hello, data) if self._label == b"A" else (data, self.hello)
        self._transcript = b"".join(sha256(hello).digest() for hello in hellos)
        return self._confirm(self._label)

    def take_confirm(self, data: bytes) -> RemoteHost:
        """Take the peer's confirmation; return the peer. Raises PeerError for a wrong code."""
        if self._peer is None or not hmac.compare_digest(data, self._confirm(self._theirs)):
            hint = "start again on both hosts: each code is valid for one attempt"
            raise PeerError(
                "the codes differ, or someone interfered with the connection between the two hosts", hint=hint
            )
        return self._peer

    def word(self, word: bytes) -> bytes:
        """Return READY, KEPT or DONE, authenticated with the key."""
        return hmac.digest(self._key, b"statepipe pair " + word + self._transcript, "sha256")

    def take_word(self, data: bytes, word: bytes) -> None:
        """Raises PeerError unless `data` is this message."""
        if not hmac.compare_digest(data, self.word(word)):
            raise PeerError(
                "the other host does not follow the protocol of 'statepipe pair'",
                hint="install the same version on both hosts",
            )

    def _confirm(self, label: bytes) -> bytes:
        return hmac.digest(self._key, b"statepipe pair confirm " + label + self._transcript, "sha256")
