"""age files by none of our code, for one key: written by the book, and read as far as they go, cut ones too."""

from __future__ import annotations

import atexit
import base64
import hmac
import secrets
import shutil
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305


def _private_copy(file: Path) -> Path:
    """Everybody may read what git checks out, and a key that everybody may read is refused."""
    folder = tempfile.mkdtemp(prefix="statepipe-key-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder) / file.name
    copy.touch(0o600)
    copy.write_bytes(file.read_bytes())
    return copy


KEY_FILE = _private_copy(Path(__file__).parent / "age.key")
"""As age-keygen writes it. A key for tests alone: it is public."""

RECIPIENT = "age1jppnaz6jtxqg66ef6nh7xrlnqfh7ar09ujmv5w9yu46kf9xz9u6qksd8ee"
_KEY = X25519PrivateKey.from_private_bytes(
    bytes.fromhex("a0a4e141fb1a7cf87b3b998839f695fd95ae914aff184511d6deebb78cada850")
)
_PUBLIC = _KEY.public_key().public_bytes_raw()
_CHUNK = 65536


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return hmac.digest(hmac.digest(salt or bytes(32), key, "sha256"), info + b"\1", "sha256")


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4))


def _wrapping_key(shared: bytes, share: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_hkdf(shared, share + _PUBLIC, b"age-encryption.org/v1/X25519"))


def sealed(data: bytes) -> bytes:
    """`data` encrypted for RECIPIENT."""
    file_key, nonce, ephemeral = secrets.token_bytes(16), secrets.token_bytes(16), X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    body = _wrapping_key(ephemeral.exchange(_KEY.public_key()), share).encrypt(bytes(12), file_key, None)
    header = b"age-encryption.org/v1\n-> X25519 " + _base64(share) + b"\n" + _base64(body) + b"\n---"
    mac = hmac.digest(_hkdf(file_key, b"", b"header"), header, "sha256")
    return header + b" " + _base64(mac) + b"\n" + nonce + _payload(data, _hkdf(file_key, nonce, b"payload"))


def _payload(data: bytes, key: bytes) -> bytes:
    cipher = ChaCha20Poly1305(key)
    chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)] or [b""]
    nonces = [(256 * at + (at == len(chunks) - 1)).to_bytes(12, "big") for at in range(len(chunks))]
    return b"".join(cipher.encrypt(nonce, chunk, None) for nonce, chunk in zip(nonces, chunks, strict=True))


def opened(data: bytes) -> bytes:
    """What is in the chunks of a file for RECIPIENT, up to one that does not open."""
    head, _, rest = data.partition(b"\n--- ")
    mac, payload = rest[:43], rest[44:]
    words = head.split()
    share = _unbase64(words[words.index(b"X25519") + 1])
    shared = _KEY.exchange(X25519PublicKey.from_public_bytes(share))
    file_key = _wrapping_key(shared, share).decrypt(bytes(12), _unbase64(words[words.index(b"X25519") + 2]), None)
    assert mac == _base64(hmac.digest(_hkdf(file_key, b"", b"header"), head + b"\n---", "sha256"))
    return _open_chunks(payload[16:], ChaCha20Poly1305(_hkdf(file_key, payload[:16], b"payload")))


def armored(data: bytes) -> bytes:
    """As text, without the newline at the end, which need not be there."""
    lines = [base64.b64encode(data[at : at + 48]) + b"\n" for at in range(0, len(data), 48)]
    return b"".join([b"-----BEGIN AGE ENCRYPTED FILE-----\n", *lines, b"-----END AGE ENCRYPTED FILE-----"])


def dearmored(text: bytes) -> bytes:
    """Out of text, as far as it goes."""
    letters = b"".join(line for line in text.splitlines() if not line.startswith(b"-"))
    return base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)


def _open_chunks(payload: bytes, cipher: ChaCha20Poly1305) -> bytes:
    plain = b""
    for number, at in enumerate(range(0, len(payload), _CHUNK + 16)):
        for last in (0, 1):
            try:
                chunk = payload[at : at + _CHUNK + 16]
                plain += cipher.decrypt((256 * number + last).to_bytes(12, "big"), chunk, None)
                break
            except InvalidTag:
                continue
        else:
            return plain
    return plain
