"""A home of GnuPG's for tests, with keys of every kind of fate, and what the real gpg makes and reads there.

It is made once a process, when it is first asked for, and its agent ended with it. Its path is short: a socket lives
in it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESOCB3
from cryptography.hazmat.primitives.ciphers.algorithms import AES128

PRESENT = shutil.which("gpg") is not None

PASSPHRASE = "correct horse"
"""Of carol's key; the others have none."""


def environment() -> dict[str, str]:
    """This process's, with the home in it."""
    return os.environ | {"GNUPGHOME": str(home())}


def gpg(*options: str, data: bytes = b"", check: bool = True) -> bytes:
    """What gpg itself puts out."""
    command = ["gpg", "--batch", "--quiet", "--no-tty", *options]
    done = subprocess.run(command, input=data, capture_output=True, env=environment())
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def encrypted(data: bytes, *options: str, to: str = "alice") -> bytes:
    return gpg("-z", "0", "--recipient", to, *options, "--encrypt", data=data)


def decrypted(data: bytes) -> bytes:
    """As far as it goes: of a message that was cut, what there is."""
    return gpg("--decrypt", data=data, check=False)


def fingerprint(name: str) -> str:
    return _find(home(), name)


def uid(name: str) -> str:
    return f"{name} <{name}@example.org>"


def unproved(data: bytes, passphrase: str) -> bytes:
    """A message in the oldest form (RFC 4880, 5.7): AES-128, its key the SHA-1 of the passphrase, and no MDC."""
    key = hashlib.sha1(passphrase.encode()).digest()[:16]
    start = os.urandom(16)
    head = _cfb(key, bytes(16), start + start[-2:])
    literal = _packet(11, b"b\0" + bytes(4) + data)
    return _packet(3, bytes([4, 7, 0, 2])) + _packet(9, head + _cfb(key, head[2:], literal))


def by_ocb(data: bytes, passphrase: str, chunk: int = 64) -> bytes:
    """As GnuPG 2.3 and newer encrypt (draft-koch-librepgp, 5.16): AES-128 in OCB, in chunks of `chunk` bytes."""
    return packets_by_ocb(_packet(11, b"b\0" + bytes(4) + data), passphrase, chunk)


def packets_by_ocb(plain: bytes, passphrase: str, chunk: int = 64) -> bytes:
    """The same, of whole packets."""
    key = hashlib.sha1(passphrase.encode()).digest()[:16]
    vector, cipher = os.urandom(15), AESOCB3(key)
    head = bytes([1, 7, 2, chunk.bit_length() - 7])
    body = b""
    parts = [plain[at : at + chunk] for at in range(0, len(plain), chunk)]
    for number, part in enumerate([*parts, b""]):
        nonce = vector[:7] + (int.from_bytes(vector[7:], "big") ^ number).to_bytes(8, "big")
        known = b"\xd4" + head + number.to_bytes(8, "big") + (b"" if part else len(plain).to_bytes(8, "big"))
        body += cipher.encrypt(nonce, part, known)
    return _packet(3, bytes([4, 7, 0, 2])) + _packet(20, head + vector + body)


def _packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def _cfb(key: bytes, vector: bytes, data: bytes) -> bytes:
    return Cipher(AES128(key), CFB(vector)).encryptor().update(data)


def forget() -> None:
    """The agent remembers passphrases no longer."""
    _run(home(), "gpg-connect-agent", "reloadagent", "/bye")


@cache
def home() -> Path:
    """Where alice is, with her secret key."""
    folder = _new_home()
    _generate(folder, "alice")
    return folder


@cache
def elsewhere() -> Path:
    """Another home: alice, stranger and dave, and nothing is known of bob.

    With it the first one has more: bob; carol, who has a passphrase; old, who has expired; stranger, whom nobody
    trusts, and dave, whom we do: of both the public keys alone.
    """
    here, there = home(), _new_home()
    _generate(here, "bob")
    _generate(here, "carol", PASSPHRASE)
    _generate(here, "old", "", "20200103T000000", past=True)
    for name in ("stranger", "dave"):
        _generate(there, name)
        _copy(there, here, "--export", name)
    _run(here, "gpg", "--batch", "--quiet", "--import-ownertrust", data=f"{_find(here, 'dave')}:6:\n".encode())
    _copy(here, there, "--export-secret-keys", "alice")
    return there


def _new_home() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gpg-"))
    atexit.register(_end, folder)
    _run(folder, "gpgconf", "--launch", "gpg-agent")
    return folder


def _end(folder: Path) -> None:
    _run(folder, "gpgconf", "--kill", "all")
    shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, target: Path, how: str, name: str) -> None:
    key = _run(source, "gpg", "--batch", how, uid(name))
    _run(target, "gpg", "--batch", "--quiet", "--import", data=key)


def _generate(folder: Path, name: str, passphrase: str = "", expire: str = "never", *, past: bool = False) -> None:
    """A key that signs, and a part of it that encrypts. A clock that is set back goes on from there in each process."""
    ways = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", passphrase]
    first, second = ([["--faked-system-time", f"2020010{day}T000000"] for day in (1, 2)]) if past else ([], [])
    _run(folder, *ways, *first, "--quick-generate-key", uid(name), "ed25519", "sign", expire)
    _run(folder, *ways, *second, "--quick-add-key", _find(folder, name), "cv25519", "encr", expire)


def _find(folder: Path, name: str) -> str:
    """The fingerprint of its primary key."""
    lines = _run(folder, "gpg", "--batch", "--with-colons", "--list-keys", f"={uid(name)}").decode().splitlines()
    return next(line.split(":")[9] for line in lines if line.startswith("fpr"))


def _run(folder: Path, *command: str, data: bytes = b"") -> bytes:
    """Without this test's runtime folder, which is how processes left over are known: an agent is started once."""
    variables = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    done = subprocess.run(command, input=data, capture_output=True, env=variables | {"GNUPGHOME": str(folder)})
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout
