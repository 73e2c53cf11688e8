"""The public vectors of age (C2SP/CCTV), read where they lie: each file tests one thing, and says what should come.

Set STATEPIPE_VECTORS to their folder, or put them beside the checkout in shared/vectors/age.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from statepipe.errors import IntegrityError, NoKeyError
from statepipe.formats.age.armor import ArmorError
from statepipe.formats.age.envelope import Identity, MacError
from statepipe.formats.age.header import HeaderError
from statepipe.formats.age.keys import parse_identity
from statepipe.formats.age.payload import PayloadError
from statepipe.formats.age.scrypt import PassphraseIdentity
from statepipe.stage import close
from statepipe.stages.encrypt import decrypt
from tests.conformance.adapters import cut

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("STATEPIPE_VECTORS") or ROOT.parent / "shared" / "vectors" / "age")
NAMES = sorted(path.name for path in FOLDER.glob("*") if path.suffix != ".md") if FOLDER.is_dir() else []

OUTCOMES: dict[type[Exception], str] = {
    NoKeyError: "no match",
    MacError: "HMAC failure",
    HeaderError: "header failure",
    ArmorError: "armor failure",
    PayloadError: "payload failure",
}


@dataclass(frozen=True, slots=True)
class Vector:
    """Facts in the order they are written, and the age file."""

    facts: list[tuple[str, str]]
    file: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.facts if key == name]

    def one(self, name: str) -> str | None:
        return (self.all(name) or [None])[0]


def read(name: str) -> Vector:
    head, _, body = (FOLDER / name).read_bytes().partition(b"\n\n")
    facts = [(key, value.strip()) for key, _, value in (line.partition(":") for line in head.decode().splitlines())]
    vector = Vector(facts, body)
    return Vector(facts, zlib.decompress(body)) if vector.one("compressed") == "zlib" else vector


def identities(vector: Vector) -> Iterator[Identity]:
    for text in vector.all("identity"):
        yield parse_identity(text)
    for text in vector.all("passphrase"):
        yield PassphraseIdentity(lambda text=text: text.encode())  # type: ignore[misc]


def outcome(vector: Vector, sizes: list[int]) -> tuple[str, bytes]:
    """What happened, in the vectors' words, and what left before."""
    flow = decrypt(list(identities(vector)))(cut(vector.file, sizes))
    out = b""
    try:
        for buffer in flow:
            out += buffer
    except (NoKeyError, IntegrityError) as error:
        return next(word for kind, word in OUTCOMES.items() if isinstance(error, kind)), out
    finally:
        close(flow)
    return "success", out


@pytest.mark.skipif(not NAMES, reason=f"the vectors are not in {FOLDER}")
@pytest.mark.parametrize("sizes", [[1 << 20], [13, 0, 1000]], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_it_comes_out_as_the_vector_says(name: str, sizes: list[int]) -> None:
    vector = read(name)
    said, out = outcome(vector, sizes)
    assert said == vector.one("expect")
    if said in ("success", "payload failure"):
        assert hashlib.sha256(out).hexdigest() == vector.one("payload")
    else:
        assert out == b""


def test_each_vector_says_an_outcome_that_we_know() -> None:
    assert {read(name).one("expect") for name in NAMES} <= {"success", *OUTCOMES.values()}
