"""The doors for what is encrypted and for keys: age's header, armor and payload, keys as people write them, plugins,
OpenPGP, and what gpg says of it."""

from __future__ import annotations

import base64
import hmac
import io
import os
import re
import tempfile
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from statepipe.errors import StatepipeError
from statepipe.formats.age import bech32
from statepipe.formats.age.armor import Dearmor, looks_armored
from statepipe.formats.age.hybrid import HybridIdentity
from statepipe.formats.age.keys import parse_file, parse_identity, parse_recipient
from statepipe.formats.age.plugin import Answers, stanzas_of
from statepipe.formats.age.scrypt import PassphraseIdentity, PassphraseRecipient
from statepipe.formats.age.ssh import identity_of
from statepipe.formats.age.x25519 import X25519Identity
from statepipe.formats.openpgp import (
    Status,
    first_tag,
    is_told,
    judge_decryption,
    judge_encryption,
    looks_encrypted,
    looks_like_openpgp,
)
from statepipe.stages.agekeys import read_identities
from statepipe.stages.context import Context, Talking
from statepipe.stages.encrypt import decrypt, encrypt
from statepipe.state.agefile import AgeReaderAt
from tests import agefiles
from tests.fuzz.harness import Door
from tests.fuzz.mutation import mutated, odd_text, portions

VECTORS = Path(os.environ.get("STATEPIPE_VECTORS") or Path(__file__).parents[3] / "shared" / "vectors" / "age")
"""Files of others, where they are at hand: tests/vectors/test_age.py."""

PLAIN = b"plain text, " * 12_000


def _nobody(prompt: str) -> str:
    return "no passphrase"


def _never(command: object) -> AbstractContextManager[Talking]:
    raise StatepipeError("no program here")


CONTEXT = Context(io.StringIO(), lambda text: None, lambda: 0.0, _nobody, None, _never, lambda: None, print)  # type: ignore[arg-type]


@lru_cache
def ssh_keys() -> list[Any]:
    return [ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32), rsa.generate_private_key(65537, 2048)]


@lru_cache
def identities() -> list[Any]:
    """One of each kind; `agefiles.sealed` is for the first."""
    first = parse_file(agefiles.KEY_FILE.read_text(), "age.key", parse_identity)
    return [*first, HybridIdentity(b"s" * 32), *map(identity_of, ssh_keys())]


@lru_cache
def good_files() -> list[bytes]:
    usual, *others = (identity.recipient for identity in identities())
    several = [[usual], [others[0]], [usual, *others[1:]], [PassphraseRecipient(b"word", 4)]]
    ours = [b"".join(encrypt(each)(iter([PLAIN[: 70_000 if each == [usual] else 100]]))) for each in several]
    return ours + [path.read_bytes().partition(b"\n\n")[2] for path in sorted(VECTORS.glob("*")) if path.is_file()]


COSTLY = re.compile(rb"scrypt \S+ (1[2-9]|2[0-9])\n")
"""A work factor that takes more memory than an input may: as large as age's own, and refused above that."""


def open_file(data: bytes) -> None:
    """As it streams, and at any place."""
    keys = [*identities()]
    if not COSTLY.search(data):
        keys.append(PassphraseIdentity(lambda: b"word"))
    with suppress(StatepipeError):
        for _ in decrypt(keys)(iter(portions(data))):
            pass
    reader = AgeReaderAt(_Bytes(data), keys)
    for offset, size in ((0, 10), (65_530, 20), (reader.size() - 3, 100), (1 << 40, 1), (0, 1 << 20)):
        assert len(reader.read(max(offset, 0), size)) <= size


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def size(self) -> int:
        return len(self._data)

    def tail(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def make_file(random: Random) -> bytes:
    """Changed anywhere; or with another header, and the MAC that belongs to it."""
    good = random.choice(good_files())
    if random.random() < 0.3:
        return _resealed(random)
    data = mutated(random, good[: random.choice((len(good), 1000))], good_files())
    return agefiles.armored(data) if random.random() < 0.2 else data


def _resealed(random: Random) -> bytes:
    """A header of any stanzas beside one that opens."""
    key, nonce = bytes(16), bytes(16)
    known = identities()[0].recipient.wrap(key).stanzas[0]
    stanzas = [bytes(known)]
    for _ in range(random.choice((1, 2, 5, 300))):
        words = random.choice(("X25519", "ssh-ed25519", "ssh-rsa", "mlkem768x25519", "scrypt", "piv-p256", "x"))
        words += "".join(f" {_base64(random.randbytes(size))}" for size in random.choices((0, 4, 16, 32, 1120), k=2))
        body = _base64(random.randbytes(random.choice((0, 32, 48, 300))))
        lines = [body[at : at + 64] for at in range(0, len(body) + 1, 64)]
        stanzas.insert(random.randrange(len(stanzas) + 1), f"-> {words}\n{chr(10).join(lines)}\n".encode())
    header = b"age-encryption.org/v1\n" + b"".join(stanzas) + b"---"
    mac = hmac.digest(agefiles._hkdf(key, b"", b"header"), header, "sha256")
    payload = agefiles._payload(b"x" * random.choice((0, 1, 65536)), agefiles._hkdf(key, nonce, b"payload"))
    return header + b" " + _base64(mac).encode() + b"\n" + nonce + payload


def _base64(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode()


def take_off(data: bytes) -> None:
    """The armor alone."""
    looks_armored(data)
    armor = Dearmor()
    plain = b"".join(armor.feed(part) for part in portions(data)) + armor.close()
    lines = b"".join(data.split(b"-----")[2].split())
    assert plain == base64.b64decode(lines, validate=True)


def make_armor(random: Random) -> bytes:
    data = agefiles.armored(random.randbytes(random.choice((0, 1, 47, 48, 49, 300, 10_000))))
    data += random.choice((b"", b"\n", b"\r\n", b"\n" * 1025))
    return mutated(random, random.choice((data, data.replace(b"\n", b"\r\n"), b" \n" + data)))


# --- keys


@lru_cache
def key_files() -> list[bytes]:
    secret = [
        *(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()) for key in ssh_keys()),
        ssh_keys()[1].private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        *(identity.text().encode() + b"\n" for identity in (X25519Identity(b"x" * 32), HybridIdentity(b"s" * 32))),
        bech32.encode("AGE-PLUGIN-DEMO-", b"data").encode(),
    ]
    public = [
        *(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for key in ssh_keys()),
        *(str(identity.recipient).encode() for identity in identities()[:2]),
        bech32.encode("age1demo", b"data").encode(),
    ]
    return [*secret, *public, b"# a comment\n" + secret[3] + public[2]]


def read_keys(data: bytes) -> None:
    """A file of keys, for all that one may be given as."""
    for parse in (parse_recipient, parse_identity):
        with suppress(StatepipeError):
            parse_file(data.decode(errors="replace"), "a file", parse)  # type: ignore[arg-type]
    for line in data.decode(errors="surrogateescape").split("\n")[:3]:
        with suppress(StatepipeError):
            found = parse_recipient(line)
            if hasattr(found, "wrap"):
                found.wrap(bytes(16))
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder) / "key"
        path.write_bytes(data)
        read_identities(str(path), CONTEXT)


def make_keys(random: Random) -> bytes:
    what = random.random()
    if what < 0.15:  # any bytes under a checksum that is right
        name = random.choice(("age", "AGE-SECRET-KEY-", "age1pq", "AGE-SECRET-KEY-PQ-", "AGE-PLUGIN-X-", "age1x", "y"))
        return bech32.encode(name, random.randbytes(random.choice((0, 1, 31, 32, 33, 1216)))).encode()
    if what < 0.35:
        blob = base64.b64decode(random.choice(key_files()[6:8]).split()[1])
        text = b" ".join((random.choice((b"ssh-ed25519", b"ssh-rsa")), base64.b64encode(mutated(random, blob))))
        return text
    if what < 0.5:
        begin, inner, end = key_files()[random.choice((0, 1, 2))].partition(b"\n"), b"", b""
        inner, _, end = begin[2].rpartition(b"\n-----END")
        with suppress(ValueError):
            changed = base64.encodebytes(mutated(random, base64.b64decode(inner)))
            return begin[0] + b"\n" + changed + b"-----END" + end
    return mutated(random, random.choice(key_files()), key_files())


# --- plugins


class _Person:
    def tell(self, text: str) -> None:
        assert text

    def ask(self, prompt: str) -> str:
        return "1234\udcff"


def hear_plugin(data: bytes) -> None:
    answers = Answers("demo", _Person())
    for stanza in stanzas_of(iter(part for part in portions(data) if part), "demo"):
        assert bytes(answers(stanza))
    assert answers.file_key is None or answers.file_key is not None
    answers.wrapped()


_PIECES = ("-> ", "msg", "request-secret", "file-key 0", "recipient-stanza 0 x y", "labels a b", "error", "done", "\n")


def make_plugin(random: Random) -> bytes:
    samples = (
        "-> msg\nSGVsbG8\n-> file-key 0\nAAAAAAAAAAAAAAAAAAAAAA\n-> done\n\n",
        "-> recipient-stanza 0 x\n\n-> done\n\n",
    )
    text = "".join(odd_text(random, samples, _PIECES) for _ in range(random.choice((1, 3))))
    return text.encode(errors="surrogateescape")


# --- OpenPGP


def look_at_head(data: bytes) -> None:
    for end in (0, 1, 4, 30, len(data)):
        head = data[:end]
        assert isinstance(is_told(head), bool) and isinstance(looks_like_openpgp(head), bool)
        looks_encrypted(head)
        first_tag(head)


def make_head(random: Random) -> bytes:
    armor = b"-----BEGIN PGP MESSAGE-----\nComment: x\n\n" + base64.b64encode(b"\x85\x01\x0c" + bytes(40)) + b"\n"
    return mutated(random, random.choice((armor, b"\x85\x01\x0c\x03" + bytes(30), b"\xc1\xc0\x4c\x03" + bytes(9))))


def hear_gpg(data: bytes) -> None:
    """Status lines of GnuPG, of whatever it was at."""
    for signed_by in (None, "0123456789ABCDEF0123456789ABCDEF01234567"):
        status = Status()
        for part in portions(data):
            status.feed(part)
        assert isinstance(status.is_excused, bool)
        with suppress(StatepipeError):
            for warning in judge_decryption(status, signed_by):
                assert warning
    judge_encryption(status, lambda name: {"e"} if len(name) % 2 else set())


GPG = (
    *("ENC_TO 0123456789ABCDEF 1 0", "BEGIN_DECRYPTION", "DECRYPTION_INFO 2 9 0", "PLAINTEXT 62 0 x"),
    *("PLAINTEXT_LENGTH 9", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION", "NODATA 1", "DECRYPTION_FAILED"),
    *("ERROR pkdecrypt_failed 83886097", "FAILURE sign 85", "BADSIG 0123 name", "GOODSIG 0123 name"),
    *("ERRSIG 0123456789ABCDEF 1 8 00 1 9", "EXPSIG 1 x", "REVKEYSIG 1 x", "INV_RECP 10 name", "INV_SGNR 9 name"),
    "VALIDSIG 0123456789ABCDEF0123456789ABCDEF01234567 2024 1 0 4 0 1 8 00 89ABCDEF01234567",
    *("BADMDC", "NO_SECKEY 0123456789ABCDEF"),
)


def make_gpg(random: Random) -> bytes:
    good = list(GPG[1:8:2]) if random.random() < 0.1 else list(random.choices(GPG, k=random.randrange(1, 15)))
    if random.random() < 0.4:
        good = [*GPG[:8], *good]
    out = []
    for line in good:
        words = line.split(" ")
        if random.random() < 0.3:
            words = words[: random.randrange(len(words) + 1)]
        if random.random() < 0.2 and words:
            words[random.randrange(len(words))] = odd_text(random, GPG, ("²", "٣", "_", "-1", "9" * 5000, ""))
        out.append(" ".join(["[GNUPG:]", *words]))
    text = "\n".join([*out, ""]).encode(errors="surrogateescape")
    return mutated(random, text) if random.random() < 0.2 else text


def _many_strings() -> bytes:
    """A public key of ssh that is made of a hundred thousand empty strings."""
    return b"ssh-ed25519 " + base64.b64encode(bytes(4 * 190_000))


GPG_KNOWN = {
    "an error without its words": lambda: b"[GNUPG:] ERROR\n",
    "a signature of nobody": lambda: b"[GNUPG:] ERRSIG\n[GNUPG:] VALIDSIG\n[GNUPG:] BADSIG\n",
    "a code of digits that are none": lambda: "[GNUPG:] ERROR pkdecrypt_failed ²\n".encode(),
}

DOORS = {
    "age-files": Door(open_file, make_file),
    "armor": Door(take_off, make_armor),
    "keys": Door(read_keys, make_keys, {"an ssh key of empty strings": _many_strings}),
    "plugins": Door(hear_plugin, make_plugin),
    "openpgp": Door(look_at_head, make_head),
    "gpg": Door(hear_gpg, make_gpg, GPG_KNOWN),
}
