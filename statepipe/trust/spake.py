"""pairing: two hosts that share a short code exchange certificates, and nobody between can put in their own.

    hello     name, certificate, and the first half of a SPAKE2 exchange over the code     both ways
    confirm   HMAC of both hellos under the key that came of it                            both ways
    ready     who listens can keep the certificate                                         from who listens
    kept      who connects has it                                                          from who connects
    done      and now so has who listens: without it, who connects forgets it again        from who listens

SPAKE2 (RFC 9382) gives both the same key only if both had the same code, and tells an eavesdropper nothing to try
codes against. Who takes part without the code has one guess in 10^8, and then the run is over on both sides. The
confirmation covers both hellos whole, so a certificate that was changed on its way is noticed too.

So a pair is made on both sides or on neither, but for a connection that breaks in the moment of the last word.

Sans-IO: `hello` and `confirm` are bytes for the caller to carry, the hello in a frame, the others of a fixed size.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass
from hashlib import sha256

from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from statepipe.errors import IntegrityError, PeerError
from statepipe.shapes import Misshapen, fields, parse, text
from statepipe.trust.certificates import read_certificate

HELLO_LIMIT = 16 << 10
"""Bytes of a hello: a certificate of ours has 550."""

_HELLO = fields({"name": text(255), "certificate": text(HELLO_LIMIT), "spake2": text(256)})
_AMISS = (AssertionError, ValueError, SPAKEError, NotOnCurve)
"""What spake2 says of an element that is none: of a wrong length, side or group, our own, or off the curve."""

CODE_DIGITS = 8

CONFIRM_SIZE = 32
"""Bytes of a confirmation, and of each word after it."""

READY, KEPT, DONE = b"ready", b"kept", b"done"
"""The words after the confirmation, in this order."""


def new_code() -> str:
    """A one-time code for people to carry: eight digits, in two groups."""
    digits = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
    return f"{digits[:4]}-{digits[4:]}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: what it calls itself, and its certificate in PEM."""

    name: str
    certificate: str


class Pairing:
    """One side of one attempt. `first` is for the one who listens and shows the code."""

    def __init__(self, code: str, name: str, certificate: str, *, first: bool) -> None:
        secret = "".join(filter(str.isalnum, code)).lower().encode()
        side = SPAKE2_A if first else SPAKE2_B
        self._spake = side(secret, idA=b"statepipe pair, listening", idB=b"statepipe pair, connecting")
        self._label, self._theirs = (b"A", b"B") if first else (b"B", b"A")
        fields = {"name": name, "certificate": certificate, "spake2": self._spake.start().hex()}
        self.hello = json.dumps(fields).encode()
        self._key = b""
        self._transcript = b""
        self._peer: Peer | None = None

    def take_hello(self, data: bytes) -> bytes:
        """Take the peer's hello; our confirmation. Raises PeerError for what is none: that has tried no code."""
        try:
            hello = parse(data, _HELLO)
            read_certificate(hello["certificate"].encode(), "its certificate")
            self._key = self._spake.finish(bytes.fromhex(hello["spake2"]))
        except (Misshapen, IntegrityError, *_AMISS) as error:
            raise PeerError("the other side does not speak as 'statepipe pair' does") from error
        self._peer = Peer(hello["name"], hello["certificate"])
        hellos = (self.hello, data) if self._label == b"A" else (data, self.hello)
        self._transcript = b"".join(sha256(hello).digest() for hello in hellos)
        return self._confirm(self._label)

    def take_confirm(self, data: bytes) -> Peer:
        """Take the peer's confirmation; who the peer is. Raises PeerError for a wrong code."""
        if self._peer is None or not hmac.compare_digest(data, self._confirm(self._theirs)):
            hint = "begin again on both hosts: each code is good for one attempt"
            raise PeerError("the codes differ, or somebody is between the two hosts", hint=hint)
        return self._peer

    def word(self, word: bytes) -> bytes:
        """READY, KEPT or DONE as nobody says it who has not the key."""
        return hmac.digest(self._key, b"statepipe pair " + word + self._transcript, "sha256")

    def take_word(self, data: bytes, word: bytes) -> None:
        """Raises PeerError for anything else."""
        if not hmac.compare_digest(data, self.word(word)):
            raise PeerError("the other side does not speak as 'statepipe pair' does", hint="are both of one version?")

    def _confirm(self, label: bytes) -> bytes:
        return hmac.digest(self._key, b"statepipe pair confirm " + label + self._transcript, "sha256")
