"""Large records: what protects a TLS link after its greetings (docs/protocol.md, 2). No I/O.

TLS 1.3 authenticates both sides, and carries their greetings and a secret of each. From then on the connection carries
records that are built as TLS 1.3 builds its own (RFC 8446, 5.2 and 5.3), but of up to 256 KiB, and with nothing but a
length before them (draft-ietf-tls-super-jumbo-record-limit):

    be32 length, then so many bytes: the content and a byte 23 (application data), sealed

The nonce is the IV xor the number of the record, and the length is authenticated with the content. So a record opens
only as the next one of its link and direction. A record that was changed, repeated, moved or
sent back, or that replaces another, is refused, and the link ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple, Protocol

from statepipe.errors import PeerError
from statepipe.reuse import Buffers
from statepipe.session.protocol.frames import FRAME_SIZE, HEADER_SIZE
from statepipe.stage import Buffer

AES = "statepipe/1-aes256gcm"
CHACHA = "statepipe/1-chacha20poly1305"
"""How TLS's ALPN names the two ciphers. A later form of records gets other names."""

SECRET_SIZE = 32
"""Bytes of the secret that each side makes for a link."""

MAX_CONTENT = HEADER_SIZE + FRAME_SIZE
"""Bytes of content that a record may have: a full frame as we send it, whose reader then need not copy it."""

KEY_BYTES = 320 << 30
"""Bytes that one key may protect, each record's overhead included; a link is replaced before (tls.RENEWED). AES-GCM
allows 2^38.5 bytes under one key, whatever the size of the records: RFC 8446, 5.5, counts full ones, and the draft
divides their number by their size."""

UNSENT, UNTAKEN = 4, 64
"""Full records whose memory is used again: those that a socket has not taken, and those whose content was not taken."""

_LENGTH = Struct(">I")
LENGTH_SIZE = _LENGTH.size
TAG_SIZE = 16
TYPE = b"\x17"
"""The content type of application data, the only one here (RFC 8446, B.1)."""

OVERHEAD = LENGTH_SIZE + len(TYPE) + TAG_SIZE
MAX_SEALED = MAX_CONTENT + len(TYPE) + TAG_SIZE
_KEY_SIZE, _IV_SIZE = 32, 12


class Aead(Protocol):
    """An authenticated cipher of the cryptography library."""

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None) -> bytes: ...

    def encrypt_into(self, nonce: bytes, data: Buffer, associated_data: bytes | None, buf: Buffer) -> int: ...

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None) -> bytes: ...

    def decrypt_into(self, nonce: bytes, data: Buffer, associated_data: bytes | None, buf: Buffer) -> int: ...


class Agreement(NamedTuple):
    """What both sides know of a link once its greetings were exchanged, and what its keys are made of.

    `suite` is what ALPN chose; `finished` is the client's Finished of the TLS handshake (RFC 8446, 4.4.4); then the
    greeting and the secret of the dialler, and of the acceptor.
    """

    suite: str
    finished: bytes
    asked: bytes
    dialler: bytes
    answered: bytes
    acceptor: bytes

    def key(self, *, of_dialler: bool) -> tuple[Aead, bytes]:
        """Return the cipher, with its key, and the IV of the records that this side sends."""
        from cryptography.hazmat.primitives.hashes import SHA384
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        seen = b"".join((bytes([len(self.finished)]), self.finished, self.asked, self.answered, self.suite.encode()))
        info = b"statepipe records of the " + (b"dialler" if of_dialler else b"acceptor")
        made = HKDF(SHA384(), _KEY_SIZE + _IV_SIZE, hashlib.sha384(seen).digest(), info)
        both = made.derive(self.dialler + self.acceptor)
        return _cipher(self.suite)(both[:_KEY_SIZE]), both[_KEY_SIZE:]


def can_use(suite: str) -> bool:
    """Return whether the library makes this cipher here."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        _cipher(suite)(bytes(_KEY_SIZE))
    except UnsupportedAlgorithm:
        return False
    return True


def _cipher(suite: str) -> Callable[[bytes], Aead]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    ciphers: dict[str, Callable[[bytes], Aead]] = {AES: AESGCM, CHACHA: ChaCha20Poly1305}
    return ciphers[suite]


class _Protection:
    """The key of a link's direction, and the number of its next record."""

    def __init__(self, aead: Aead, iv: bytes) -> None:
        self._aead, self._iv, self._number = aead, int.from_bytes(iv), 0
        self._left = KEY_BYTES
        self._writes_into = hasattr(aead, "encrypt_into")  # cryptography 50 and later

    def _nonce(self, size: int) -> bytes:
        """Return the nonce of the next record, of so many sealed bytes. Raises PeerError if the key is used up."""
        self._left -= size + LENGTH_SIZE
        if self._left < 0:
            raise PeerError(f"the keys of the link have protected {KEY_BYTES >> 30} GiB")
        nonce = (self._iv ^ self._number).to_bytes(_IV_SIZE)
        self._number += 1
        return nonce


class Sealer(_Protection):
    """Seals the records of one direction."""

    def __init__(self, aead: Aead, iv: bytes) -> None:
        super().__init__(aead, iv)
        self._plain = memoryview(bytearray(MAX_CONTENT + len(TYPE)))
        self._buffers = Buffers(MAX_SEALED, UNSENT)

    def seal(self, content: Sequence[Buffer]) -> list[Buffer]:
        """Return a record with this content, of MAX_CONTENT bytes at most. Raises PeerError if the key is used up."""
        plain = self._joined((*content, TYPE))
        size = len(plain) + TAG_SIZE
        length, nonce = _LENGTH.pack(size), self._nonce(size)
        if not self._writes_into:
            return [length, self._aead.encrypt(nonce, plain, length)]
        sealed = memoryview(self._buffers.get(MAX_SEALED))[:size]
        self._aead.encrypt_into(nonce, plain, length, sealed)
        return [length, sealed]

    def _joined(self, pieces: Sequence[Buffer]) -> memoryview:
        """Return the pieces in the memory of this direction: until the next call."""
        end = 0
        for piece in pieces:
            start, end = end, end + len(piece)
            self._plain[start:end] = piece
        return self._plain[:end]


class Opener(_Protection):
    """Opens the records of one direction, in their order."""

    def __init__(self, aead: Aead, iv: bytes) -> None:
        super().__init__(aead, iv)
        self._buffers = Buffers(MAX_CONTENT + len(TYPE), UNTAKEN)

    def open(self, length: bytes, sealed: Buffer) -> memoryview:
        """Return the content of a record. Raises PeerError if it is not the next record as it was sent."""
        from cryptography.exceptions import InvalidTag

        nonce = self._nonce(len(sealed))
        try:
            if self._writes_into:
                plain: Buffer = self._buffers.get(len(sealed) - TAG_SIZE)
                self._aead.decrypt_into(nonce, sealed, length, plain)
            else:
                plain = self._aead.decrypt(nonce, sealed, length)
        except InvalidTag as error:
            raise PeerError("a record was changed, or is not the next one", hint=ON_THE_WAY) from error
        if plain[-1:] != TYPE:
            raise PeerError(f"a record of type {plain[-1]}, which is not used here")
        return memoryview(plain)[:-1]


ON_THE_WAY = "something between the hosts changes the data: it was refused"


def sealed_size(length: Buffer) -> int:
    """Return how many bytes follow a record's length. Raises PeerError."""
    size: int = _LENGTH.unpack(length)[0]
    if not len(TYPE) + TAG_SIZE < size <= MAX_SEALED:
        raise PeerError(
            f"a record of {size} bytes: {len(TYPE) + TAG_SIZE + 1} to {MAX_SEALED} are allowed", hint=ON_THE_WAY
        )
    return size
