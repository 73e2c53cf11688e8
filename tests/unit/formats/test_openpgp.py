"""What is told of OpenPGP without GnuPG: its first packet, and the verdict over gpg's status lines."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepipe.errors import IntegrityError, NoKeyError, StatepipeError, UsageError
from statepipe.formats.openpgp import (
    Status,
    fingerprint,
    first_tag,
    is_told,
    judge_decryption,
    judge_encryption,
    literal,
    looks_encrypted,
    looks_like_openpgp,
)

SESSION_KEY = bytes([0x84, 0x5E, 3]) + bytes(91)
"""A packet with a session key, tag 1, in the older form that gpg writes."""

HEADS = {
    SESSION_KEY: 1,
    b"\xc1\x5e": 1,
    b"\xd2\xff": 18,
    b"\xd4\xff": 20,
    b"\xcb\x0b": 11,
    b"\xa3\x01": 8,
    b"\x8c\x0d": 3,
    b"": None,
    b"age-encryption.org/v1\n": None,
    b"-----BEGIN AGE ENCRYPTED FILE-----\n": None,
}


def armored(data: bytes, *headers: str, newline: str = "\n") -> bytes:
    lines = ["-----BEGIN PGP MESSAGE-----", *headers, "", base64.b64encode(data).decode()]
    return newline.join([*lines, "-----END PGP MESSAGE-----", ""]).encode()


@pytest.mark.parametrize(("head", "tag"), HEADS.items())
def test_the_first_packet(head: bytes, tag: int | None) -> None:
    assert first_tag(head) == tag
    assert looks_like_openpgp(head) == (tag is not None)
    assert looks_encrypted(head) == (tag in (1, 3, 18, 20))


@pytest.mark.parametrize("headers", [[], ["Version: GnuPG v2", "Comment: x"]])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_first_packet_in_armor(headers: list[str], newline: str) -> None:
    text = armored(SESSION_KEY, *headers, newline=newline)
    assert first_tag(text) == first_tag(b" \n" + text) == 1
    assert looks_encrypted(text)
    assert not looks_encrypted(armored(b"\xcb\x0bb" + bytes(20)))
    assert looks_like_openpgp(b"-----BEGIN PGP SIGNED MESSAGE-----\n")


def test_how_much_it_takes_to_tell() -> None:
    text = armored(SESSION_KEY, "Comment: x")
    needed = text.index(b"\n\n") + 2 + 4
    assert [is_told(text[:size]) for size in range(1, needed + 1)] == [False] * (needed - 1) + [True]
    assert is_told(SESSION_KEY[:1]) and is_told(b"a") and is_told(b"-----BEGIN A")
    assert not is_told(b"") and not is_told(b"\n \n")
    assert is_told(b" " * 5000) and is_told(b"-----BEGIN PGP MESSAGE-----\n" + b"x" * 5000)


@given(st.binary(max_size=60))
def test_any_bytes_are_told_in_the_end(data: bytes) -> None:
    assert is_told(data + b" " * 5000) or is_told(data + b"\n" * 5000)
    looks_encrypted(data)


def status(*lines: str) -> Status:
    """As it comes: cut anywhere."""
    found = Status()
    text = "".join(f"[GNUPG:] {line}\n" for line in lines).encode()
    for at in range(0, len(text), 7):
        found.feed(text[at : at + 7])
    return found


OPENED = ("ENC_TO 8B488BDE73C9CE6B 18 0", "DECRYPTION_KEY A B u", "BEGIN_DECRYPTION", "DECRYPTION_INFO 2 9 0")
PROVED = ("PLAINTEXT 62 1 ", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION")
BOB = "C8E3BF0749E819510FE67C6E3624F0A41F4EC3E5"
GOOD = ("GOODSIG 3624F0A41F4EC3E5 bob", f"VALIDSIG {'A' * 40} 2026-11-25 1 0 4 0 22 10 00 {BOB}")


def judge(*lines: str, signed_by: str | None = None) -> list[str]:
    return list(judge_decryption(status(*lines), signed_by))


def test_a_message_that_is_good() -> None:
    assert judge(*OPENED, *PROVED) == []
    assert judge(*OPENED, PROVED[0], *GOOD, *PROVED[1:], signed_by=BOB) == []


def without(lines: tuple[str, ...], word: str) -> list[str]:
    return [line for line in lines if line.split()[0] != word]


@pytest.mark.parametrize("word", ["PLAINTEXT", "DECRYPTION_OKAY", "GOODMDC", "END_DECRYPTION"])
def test_every_line_of_the_proof_is_needed(word: str) -> None:
    with pytest.raises(IntegrityError):
        judge(*OPENED, *without(PROVED, word))


def test_plaintext_beside_what_was_encrypted() -> None:
    for lines in (("PLAINTEXT 62 1 ", *OPENED, *PROVED), (*OPENED, *PROVED, "PLAINTEXT 62 1 "), (*OPENED, *PROVED) * 2):
        with pytest.raises(IntegrityError):
            judge(*lines)
    with pytest.raises(IntegrityError, match="not encrypted"):
        judge("PLAINTEXT 62 1 ")


VERDICTS: list[tuple[tuple[str, ...], type[StatepipeError], str]] = [
    ((*OPENED, "PLAINTEXT 62 1 ", "BADMDC", "DECRYPTION_FAILED", "END_DECRYPTION"), IntegrityError, "changed, or cut"),
    ((*OPENED[:3], "DECRYPTION_INFO 0 2", *PROVED[:1], "END_DECRYPTION"), IntegrityError, "no integrity protection"),
    (("NODATA 1", "NODATA 2"), IntegrityError, "not an OpenPGP message"),
    (("ENC_TO 8B488BDE73C9CE6B 18 0", "NODATA 2"), IntegrityError, "not an OpenPGP message"),
    (("ENC_TO 1 18 0", "BEGIN_DECRYPTION", "DECRYPTION_FAILED", "END_DECRYPTION"), NoKeyError, "it is for 1"),
    (("ENC_TO 1 18 0", "ERROR pkdecrypt_failed 67108875", "BEGIN_DECRYPTION"), NoKeyError, "passphrase is wrong"),
    (("ENC_TO 1 18 0", "ERROR pkdecrypt_failed 83886179", "BEGIN_DECRYPTION"), StatepipeError, "was not given"),
    (("ENC_TO 1 18 0", "ERROR pkdecrypt_failed 83918950", "BEGIN_DECRYPTION"), StatepipeError, "could not ask"),
    ((*OPENED, PROVED[0], "BADSIG 1 bob", *PROVED[1:]), IntegrityError, "by 1 bob is bad"),
]


@pytest.mark.parametrize(("lines", "kind", "words"), VERDICTS)
def test_what_is_not_good(lines: tuple[str, ...], kind: type[StatepipeError], words: str) -> None:
    with pytest.raises(StatepipeError, match=words) as caught:
        judge(*lines)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (GOOD, "is signed by"),
        ((), "is not signed"),
        (("ERRSIG 3624F0A41F4EC3E5 22 10 00 1 9 -",), "not in GnuPG's keyring"),
        (("EXPKEYSIG 1 bob", GOOD[1]), "a key that has expired"),
        (("REVKEYSIG 1 bob", GOOD[1]), "a revoked key"),
        ((GOOD[1],), "is signed by"),
    ],
)
def test_a_signature_that_was_demanded(lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        judge(*OPENED, PROVED[0], *lines, *PROVED[1:], signed_by="0" * 40)
    if "GOODSIG" not in str(lines) and lines:
        with pytest.raises(IntegrityError):
            judge(*OPENED, PROVED[0], *lines, *PROVED[1:], signed_by=BOB)


def test_a_signature_that_nobody_asked_for() -> None:
    found = judge(*OPENED, PROVED[0], "EXPKEYSIG 1 bob", "ERRSIG 2 22 10 00 1 9 -", *PROVED[1:])
    assert len(found) == 2 and "expired" in found[0] and "was not checked" in found[1]


REFUSALS = [
    ("INV_RECP 1 x", set(), "recipient x is not in GnuPG's keyring"),
    ("INV_RECP 1 x", {"e"}, "has expired"),
    ("INV_RECP 0 x", {"r"}, "is revoked"),
    ("INV_RECP 0 x", {"u"}, "cannot be used for that"),
    ("INV_RECP 10 x y", {"-"}, "recipient x y is not trusted"),
    ("INV_SGNR 9 x", {"u"}, "signing key x has no secret key here"),
    ("FAILURE sign-encrypt 67108875", set(), "the passphrase is wrong"),
    ("BEGIN_ENCRYPTION 0 9", set(), "without integrity protection"),
]


@pytest.mark.parametrize(("line", "letters", "words"), REFUSALS)
def test_what_gpg_refuses_to_encrypt(line: str, letters: set[str], words: str) -> None:
    with pytest.raises(StatepipeError, match=words) as caught:
        judge_encryption(status("KEY_CONSIDERED A 0", line), lambda name: letters)
    assert caught.value.hint


@pytest.mark.parametrize("line", ["BEGIN_ENCRYPTION 2 9", "BEGIN_ENCRYPTION 0 9 2"])
def test_a_message_with_a_proof(line: str) -> None:
    judge_encryption(status(line, "END_ENCRYPTION"), lambda name: set())


LITERAL = b"b\x03abc\0\0\0\0data"


@pytest.mark.parametrize(
    "packet",
    [
        bytes([0xCB, len(LITERAL)]) + LITERAL,
        bytes([0xCB, 255, 0, 0, 0, len(LITERAL)]) + LITERAL,
        bytes([0xAC, len(LITERAL)]) + LITERAL,
        bytes([0xAD, 0, len(LITERAL)]) + LITERAL,
    ],
)
def test_a_literal_packet(packet: bytes) -> None:
    assert literal(packet) == (b"b", b"data")


@pytest.mark.parametrize("packet", [b"", b"\xcb", b"\xcb\x03b\0\0", b"\xcb\xe1" + LITERAL, SESSION_KEY, b"data"])
def test_what_is_no_literal_packet(packet: bytes) -> None:
    assert literal(packet) is None


@pytest.mark.parametrize(("letter", "warnings"), [("62", 0), ("74", 1), ("75", 1), ("6d", 1)])
def test_a_message_that_is_text(letter: str, warnings: int) -> None:
    assert len(judge(*OPENED, f"PLAINTEXT {letter} 1 ", *PROVED[1:])) == warnings


def test_what_gpg_says_is_bounded() -> None:
    found = Status()
    for _ in range(50):
        found.feed(b"[GNUPG:] WORD " + b"x" * 100_000)
    found.feed(b"\n[GNUPG:] LINE\n" * 9000)
    assert sum(len(" ".join(words)) for words in found.lines) < 100_000


@pytest.mark.parametrize("text", ["", "bob", "C8E3", "0x12345678", BOB + "00", "G" * 40])
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(UsageError):
        fingerprint(text)


def test_what_is_one() -> None:
    assert fingerprint("c8e3 bf07 49e8 1951 0fe6  7c6e 3624 f0a4 1f4e c3e5") == BOB
    for short in ("0x3624F0A41F4EC3E5", "1F4EC3E5", BOB[1:]):
        with pytest.raises(UsageError, match="not the whole fingerprint"):
            fingerprint(short)


def test_of_aead_no_exit_status_is_excused() -> None:
    """A stranger's signature must not cover up what gpg says of a bad chunk by its exit status alone."""
    for info, excused in (("DECRYPTION_INFO 2 9 0", True), ("DECRYPTION_INFO 0 7 0", False)):
        status = Status()
        lines = [*OPENED[:3], info, "PLAINTEXT 62 1 ", "ERRSIG 1 1 1 00 1 9", "DECRYPTION_OKAY", "GOODMDC"]
        status.feed("".join(f"[GNUPG:] {line}\n" for line in lines).encode())
        assert status.is_excused is excused
