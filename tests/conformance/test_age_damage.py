"""Cuts, flips and wrong keys: what decrypt refuses, how, and that nothing unchecked leaves."""

from __future__ import annotations

import hashlib
import random

import pytest

from statepipe.errors import IntegrityError, NoKeyError, StatepipeError, TruncatedError
from statepipe.stage import chain, close
from tests import agefiles
from tests.conformance.adapters import build, cut, filtered
from tests.conformance.running import assert_one_error, run

SMALL = b"a few words"
LARGE = hashlib.shake_128(b"damage").digest(150_000)
CHUNK = 64 << 10


def attempt(data: bytes, sizes: list[int]) -> tuple[bytes, StatepipeError | None]:
    """What comes out of decrypt, and the refusal."""
    flow = chain(cut(data, sizes), [("it", build("decrypt", b""))])
    out = b""
    try:
        for buffer in flow:
            out += buffer
    except StatepipeError as error:
        return out, error
    finally:
        close(flow)
    return out, None


FILES = {
    "binary": agefiles.sealed(SMALL),
    "armored": filtered(SMALL, "encrypt", "-a", agefiles.RECIPIENT)[0],
    "empty": agefiles.sealed(b""),
}


@pytest.mark.parametrize("name", FILES)
def test_every_cut_of_a_small_file_is_found(name: str) -> None:
    """Armor needs no newline at its end."""
    file = FILES[name].removesuffix(b"\n") if name == "armored" else FILES[name]
    for size in range(len(file)):
        out, error = attempt(file[:size], [40, 1 << 20])
        assert isinstance(error, IntegrityError), size
        assert error.offset is not None and 0 <= error.offset <= size
        assert out == b""


def test_every_kind_of_cut_of_a_large_file_is_found() -> None:
    file = agefiles.sealed(LARGE)
    start = len(file) - len(LARGE) - 3 * 16
    ends = [start + chunk * (CHUNK + 16) + near for chunk in range(3) for near in (-1, 0, 1, 15, 16, 17)]
    for end in [*ends, len(file) - 1]:
        out, error = attempt(file[:end], [1 << 20])
        assert isinstance(error, TruncatedError), end
        assert out == LARGE[: max(0, end - start) // (CHUNK + 16) * CHUNK]


def refusals(file: bytes, plain: bytes, count: int) -> list[tuple[int, StatepipeError]]:
    """Flip a random bit, again and again; each must be refused, and only chunks before it may have left."""
    dice = random.Random(len(file))
    found = []
    for _ in range(count):
        at = dice.randrange(len(file))
        flipped = bytearray(file)
        flipped[at] ^= 1 << dice.randrange(8)
        out, error = attempt(bytes(flipped), [1 << 20])
        assert error is not None, at
        assert plain.startswith(out) and len(out) <= at
        found.append((at, error))
    return found


def test_a_thousand_flips_are_found() -> None:
    """Status 3 each: only where the flip is in the stanza can it be 4. There the stanza may be one of another kind,
    or hold another share or body: whether it was changed or is for someone else, nobody without its key can tell."""
    file = agefiles.sealed(SMALL)
    stanza = range(file.index(b"->"), file.index(b"\n---"))
    for at, error in refusals(file, SMALL, 700):
        assert isinstance(error, IntegrityError) or (isinstance(error, NoKeyError) and at in stanza), at


def test_flips_in_a_file_of_many_chunks_say_where() -> None:
    file = agefiles.sealed(LARGE)
    start = len(file) - len(LARGE) - 3 * 16
    for at, error in refusals(file, LARGE, 150):
        if at >= start:
            chunk = (at - start) // (CHUNK + 16)
            assert isinstance(error, IntegrityError)
            assert error.offset == start + chunk * (CHUNK + 16) and f"{chunk}" in str(error)


def test_flips_in_armor_are_found() -> None:
    """A flip may make a letter of another; then the file within is what was changed."""
    file, plain = FILES["armored"], SMALL
    dice = random.Random(1)
    for _ in range(150):
        at = dice.randrange(len(file) - 1)
        out, error = attempt(file[:at] + bytes([file[at] ^ 1 << dice.randrange(8)]) + file[at + 1 :], [1 << 20])
        assert out == b"" and isinstance(error, IntegrityError | NoKeyError), at
    assert plain


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_nothing_may_follow_the_end(size: int) -> None:
    file = agefiles.sealed(LARGE[:size])
    for more in (b"x", bytes(16), bytes(CHUNK + 16), agefiles.sealed(b"")):
        out, error = attempt(file + more, [1 << 20])
        assert isinstance(error, IntegrityError)
        assert LARGE[:size].startswith(out)


def test_chunks_that_change_places_are_found() -> None:
    file = agefiles.sealed(LARGE)
    start = len(file) - len(LARGE) - 3 * 16
    first, second = file[start : start + CHUNK + 16], file[start + CHUNK + 16 : start + 2 * (CHUNK + 16)]
    for middle in (second + first, first + first, first):
        out, error = attempt(file[:start] + middle + file[start + 2 * (CHUNK + 16) :], [1 << 20])
        assert isinstance(error, IntegrityError) and LARGE.startswith(out) and len(out) <= CHUNK


def test_a_wrong_key_is_told_before_anything_leaves(tmp_path: object) -> None:
    key = f"{tmp_path}/other"
    assert run("keygen", "-o", key).returncode == 0
    done = run("decrypt", "-i", key, data=agefiles.sealed(LARGE))
    assert (done.returncode, done.stdout) == (4, b"")
    assert_one_error(done.stderr, "decrypt", "no identity opens this stream")
    assert "X25519" in done.stderr.decode()


def test_the_command_says_where() -> None:
    file = agefiles.sealed(LARGE)
    for damaged in (file[:-1], file[:90_000] + b"!" + file[90_001:], file + b"x", file[:100]):
        done = run("decrypt", "-i", str(agefiles.KEY_FILE), data=damaged)
        assert done.returncode == 3
        assert_one_error(done.stderr, "decrypt", "at byte ")
        assert LARGE.startswith(done.stdout)


def test_what_is_no_age_file_is_refused() -> None:
    for data in (b"", b"\x28\xb5\x2f\xfd" + bytes(40), b"age-encryption.org/v2\n", b"-----BEGIN PGP MESSAGE-----\n"):
        out, error = attempt(data, [1 << 20])
        assert isinstance(error, IntegrityError) and out == b""
