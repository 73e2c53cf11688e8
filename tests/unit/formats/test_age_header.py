"""The age header, armor and keys are read strictly: one way to write a thing, and a bound for each."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepipe.errors import NoKeyError, StatepipeError, UsageError
from statepipe.formats.age import bech32, envelope
from statepipe.formats.age.armor import BEGIN, END, Armor, ArmorError, Dearmor
from statepipe.formats.age.envelope import MacError, open_header, seal
from statepipe.formats.age.header import (
    HEADER_LIMIT,
    STANZA_LIMIT,
    HeaderCut,
    HeaderError,
    HeaderReader,
    Stanza,
    covered,
    encode,
    parse,
    written,
)
from statepipe.formats.age.hybrid import HybridIdentity
from statepipe.formats.age.keys import parse_file, parse_identity, parse_recipient
from statepipe.formats.age.scrypt import PassphraseIdentity, PassphraseRecipient
from statepipe.formats.age.ssh import RsaRecipient
from statepipe.formats.age.x25519 import X25519Identity

KEY = bytes(16)
IDENTITY = X25519Identity(bytes(range(32)))
HEADER = seal(KEY, [IDENTITY.recipient])
STANZA, MAC_LINE = HEADER[22 : HEADER.index(b"---")], HEADER[HEADER.index(b"---") :]
BODY = Stanza("x", (), bytes(32))


def test_what_is_written_is_read() -> None:
    stanzas = tuple(Stanza("kind", ("a", "!~"), bytes(size)) for size in (0, 1, 47, 48, 49, 96, 1000))
    assert parse(written(stanzas, bytes(32))).stanzas == stanzas


STRICT = {
    "no stanza": b"",
    "a stanza without a kind": b"->\n\n",
    "a stanza with two spaces": b"-> a  b\n\n",
    "a space at the end": b"-> a \n\n",
    "another mark": b"=> a\n\n",
    "a letter beyond ASCII": "-> ä\n\n".encode(),
    "a control character": b"-> a\x7f\n\n",
    "a carriage return": b"-> a\r\n\r\n",
    "no body": b"-> a\n",
    "no last line": b"-> a\n" + b"A" * 64 + b"\n",
    "a short line within": b"-> a\nAAAA\nAAAA\n",
    "a long line": b"-> a\n" + b"A" * 68 + b"\n\n",
    "padding": b"-> a\nAAA=\n",
    "a value that is not canonical": b"-> a\nAAB\n",
    "a letter too many": b"-> a\nAAAAA\n",
    "a foreign letter": b"-> a\nAA_A\n",
    "an empty line between": b"\n-> a\n\n",
}


@pytest.mark.parametrize("text", STRICT.values(), ids=STRICT)
def test_a_stanza_that_age_would_not_write(text: bytes) -> None:
    reader = HeaderReader(0)
    with pytest.raises(HeaderError):
        reader.feed(HEADER[:22] + text + MAC_LINE)


MACS = {
    "no space": b"---AAAA",
    "two of them": b"--- AAAA" + MAC_LINE[:-1],
    "two spaces": b"---  " + b"A" * 43,
    "nothing": b"---",
    "padding": MAC_LINE[:-1] + b"=",
    "a space behind": MAC_LINE[:-1] + b" ",
    "short": MAC_LINE[:-3],
    "long": MAC_LINE[:-1] + b"AA",
    "a carriage return": MAC_LINE[:-1] + b"\r",
}


@pytest.mark.parametrize("line", MACS.values(), ids=MACS)
def test_a_mac_that_age_would_not_write(line: bytes) -> None:
    with pytest.raises(HeaderError):
        HeaderReader(0).feed(HEADER[:22] + STANZA + line + b"\n")


@pytest.mark.parametrize("version", [b"age-encryption.org/v2\n", b"age-encryption.org/v1\r\n", b"AGE", b"\nage-encry"])
def test_another_first_line(version: bytes) -> None:
    with pytest.raises(HeaderError):
        HeaderReader(0).feed(version)


def test_a_header_that_never_ends_is_not_kept() -> None:
    reader = HeaderReader(0)
    with pytest.raises(HeaderError, match=f"larger than {HEADER_LIMIT} bytes"):
        for _ in range(HEADER_LIMIT // 65536 + 2):
            reader.feed(HEADER[:22] + bytes(65536) if not reader.rest else bytes(65536))


def test_too_many_stanzas_are_not_tried() -> None:
    small = [Stanza("x", (), b"")] * (STANZA_LIMIT + 1)
    with pytest.raises(HeaderError, match="stanzas"):
        parse(written(small, bytes(32)))


@pytest.mark.parametrize(("limit", "value"), [("STANZA_LIMIT", 30), ("HEADER_LIMIT", 3000)])
def test_too_many_recipients_are_refused(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the limits of a reader, here smaller: to wrap a key for thousands takes seconds."""
    assert (envelope.STANZA_LIMIT, envelope.HEADER_LIMIT) == (STANZA_LIMIT, HEADER_LIMIT)
    monkeypatch.setattr(envelope, limit, value)
    assert len(seal(KEY, [IDENTITY.recipient] * 29)) < 3000
    with pytest.raises(UsageError, match="too many recipients"):
        seal(KEY, [IDENTITY.recipient] * 31)


def test_a_cut_header_says_where_it_ends() -> None:
    for size in range(len(HEADER) + 3):
        reader = HeaderReader(3)
        assert reader.feed(HEADER[:size] if size < len(HEADER) else HEADER + bytes(size - len(HEADER))) is None
        with pytest.raises(HeaderCut) as caught:
            reader.close()
        assert caught.value.offset == size


def key_of(stanzas: list[Stanza], identity: object, key: bytes = KEY) -> bytes:
    """Open a header of these stanzas, whose MAC is that of `key`."""
    from statepipe.formats.age.derive import header_mac

    return open_header(parse(written(stanzas, header_mac(key, covered(stanzas)))), [identity])  # type: ignore[list-item]


def test_stanzas_of_unknown_kinds_are_passed_over() -> None:
    ours = IDENTITY.recipient.wrap(KEY).stanzas[0]
    assert key_of([BODY, ours, Stanza("x25519", ("!",), b"")], IDENTITY) == KEY
    with pytest.raises(NoKeyError, match="no identity opens") as caught:
        key_of([BODY], IDENTITY)
    assert "give the right one with -i" in str(caught.value.hint)


def test_a_changed_header_is_refused_even_with_the_right_key() -> None:
    ours = IDENTITY.recipient.wrap(KEY).stanzas[0]
    with pytest.raises(MacError):
        key_of([ours], IDENTITY, key=bytes(15) + b"\1")


@pytest.mark.parametrize("share", [bytes(32), b"\1" + bytes(31), bytes(31), bytes(33)])
def test_a_share_that_gives_no_secret(share: bytes) -> None:
    with pytest.raises(HeaderError):
        key_of([Stanza("X25519", (encode(share),), bytes(32))], IDENTITY)


@pytest.mark.parametrize("size", [16, 31, 33, 48])
def test_a_file_key_of_another_size_is_not_tried(size: int) -> None:
    ours = IDENTITY.recipient.wrap(KEY).stanzas[0]
    with pytest.raises(HeaderError, match=f"holds {size} bytes, expected 32"):
        key_of([Stanza("X25519", ours.arguments, bytes(size))], IDENTITY)


def never() -> bytes:
    raise AssertionError("the passphrase is not to be used")


@pytest.mark.parametrize("work", ["0", "01", "+1", "-1", "23", "99", "1e1", "", "18446744073709551616", "１"])
def test_a_work_factor_is_refused_before_the_work(work: str) -> None:
    stanza = Stanza("scrypt", (encode(bytes(16)), work or "x"), bytes(32))
    with pytest.raises((HeaderError, UnicodeEncodeError)):
        PassphraseIdentity(never).unwrap([stanza])


def test_a_passphrase_is_alone() -> None:
    passphrase = PassphraseRecipient(b"x", work_factor=1)
    with pytest.raises(UsageError, match="cannot be combined with other recipients"):
        seal(KEY, [passphrase, IDENTITY.recipient])
    stanzas = [*passphrase.wrap(KEY).stanzas, *IDENTITY.recipient.wrap(KEY).stanzas]
    for identity in (IDENTITY, PassphraseIdentity(never)):
        with pytest.raises(HeaderError, match="combines a passphrase"):
            key_of(stanzas, identity)


def test_a_lack_of_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    stanza = PassphraseRecipient(b"x", work_factor=1).wrap(KEY).stanzas[0]
    heavy = Stanza("scrypt", (stanza.arguments[0], "22"), stanza.body)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, limits[1]))
    try:
        with pytest.raises(StatepipeError, match="work factor 22 needs 4096 MiB of memory"):
            PassphraseIdentity(lambda: b"x").unwrap([heavy])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_post_quantum_keys_go_with_no_others() -> None:
    hybrid = HybridIdentity.generate()
    header = seal(KEY, [hybrid.recipient, HybridIdentity.generate().recipient])
    assert open_header(parse(header), [IDENTITY, hybrid]) == KEY
    with pytest.raises(UsageError, match="some are postquantum"):
        seal(KEY, [hybrid.recipient, IDENTITY.recipient])


# --- keys


def test_keys_are_read_as_they_are_written() -> None:
    for identity in (IDENTITY, HybridIdentity.generate()):
        assert parse_identity(identity.text()) == identity
        assert parse_recipient(str(identity.recipient)) == identity.recipient
        assert identity.text() not in repr(identity)


@given(st.binary(max_size=100))
def test_bech32_there_and_back(data: bytes) -> None:
    assert bech32.decode(bech32.encode("age", data)) == ("age", data)
    assert bech32.decode(bech32.encode("AGE-X-", data)) == ("AGE-X-", data)


# BIP 173's own vectors; those that are wrong only by their length are good here.
VALID = ["A12UEL5L", "a12uel5l", "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w", "?1ezyfcl"]
INVALID = [
    "\x201nwldj5",
    "\x7f1axkwrx",
    "pzry9x0s0muk",
    "1pzry9x0s0muk",
    "x1b4n0q5v",
    "li1dgmt3",
    "A1G7SGD8",
    "10a06t8",
]
INVALID += ["de1lg7wt\xff", "1qzzfhee", "a12UEL5L", "", "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3x"]


@pytest.mark.parametrize("text", VALID)
def test_bech32_that_is_right(text: str) -> None:
    name, _ = bech32.decode(text)
    assert text.startswith(name)


@pytest.mark.parametrize("text", INVALID)
def test_bech32_that_is_wrong(text: str) -> None:
    with pytest.raises(ValueError):
        bech32.decode(text)


def ssh_line(key: bytes) -> str:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + key
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} comment"


NO_RECIPIENTS = {
    "": "is not a recipient",
    IDENTITY.text(): "this is a secret key, not a recipient",
    bech32.encode("age", bytes(31)): "it has 31 bytes, expected 32",
    bech32.encode("age", bytes(32)): "the key has low order and protects nothing",
    ssh_line(b"\1" + bytes(31)): "is not a recipient",
    ssh_line(bytes(32)): "the key has low order and protects nothing",
    ssh_line((2**255 - 18).to_bytes(32, "little")): "is not a recipient",
    bech32.encode("bitcoin", bytes(32)): "its kind is unknown",
    bech32.encode("age1../x", bytes(32)): "its kind is unknown",
    "ssh-ed25519 AAAA": "is not a recipient",
    "ssh-ed25519": "not an SSH public key",
    "ssh-dss AAAAB3NzaC1kc3M=": "SSH keys of the kind ssh-dss are not supported",
}


@pytest.mark.parametrize("text", NO_RECIPIENTS)
def test_what_is_no_recipient(text: str) -> None:
    with pytest.raises(UsageError, match=NO_RECIPIENTS[text]):
        parse_recipient(text)


def test_a_file_of_identities_names_its_line_and_no_secret() -> None:
    good = f"# a comment\u2028of two\x85lines\n\n{IDENTITY.text()}\r\n"
    assert parse_file(good, "keys", parse_identity) == [IDENTITY]
    broken = IDENTITY.text()[:-1] + "x"
    with pytest.raises(UsageError) as caught:
        parse_file(good + broken, "keys", parse_identity)
    assert "line 4 of keys is not an identity" in str(caught.value) and broken[:20] not in f"{caught.value}"


OTHERS = [
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAAAA me@host",
    "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAABHNzaDo=",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAwD//w== too-short",
]


@pytest.mark.parametrize("line", OTHERS)
def test_an_ssh_key_that_cannot_be_encrypted_for_is_passed_over_in_a_file(line: str) -> None:
    told: list[str] = []
    good = bech32.encode("age", IDENTITY.recipient.key)
    assert parse_file(f"{line}\n{good}\n", "keys", parse_recipient, told.append) == [IDENTITY.recipient]
    assert told == [f"line 1 of keys is skipped: age cannot encrypt for a key of the kind {line.split()[0]}"]
    with pytest.raises(UsageError):
        parse_recipient(line)


@pytest.mark.parametrize(
    "line", ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAAA==", OTHERS[0].replace("ecdsa", "ecdsb", 1), "age1x", "ssh-rsa"]
)
def test_a_line_that_is_damaged_is_not_passed_over(line: str) -> None:
    with pytest.raises(UsageError, match="line 1 of keys is not a recipient"):
        parse_file(line, "keys", parse_recipient, print)


def ssh_rsa(exponent: int, modulus: int) -> str:
    """A line of `id_rsa.pub` with these numbers."""
    parts = (b"ssh-rsa", *(n.to_bytes(n.bit_length() // 8 + 1, "big") for n in (exponent, modulus)))
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"ssh-rsa {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("exponent", "modulus"),
    [(65537, 2**2047 + 2), (2**31 + 1, 2**2047 + 1), (2**80 + 1, 2**4095 + 1), (2, 2**2047 + 1), (1, 2**2047 + 1)],
    ids=["even modulus", "large exponent", "larger than the cipher takes", "even exponent", "exponent of one"],
)
def test_an_rsa_key_with_numbers_that_no_key_has_is_refused_before_it_is_used(exponent: int, modulus: int) -> None:
    assert isinstance(parse_recipient(ssh_rsa(65537, 2**2047 + 1)), RsaRecipient)
    with pytest.raises(UsageError):
        parse_recipient(ssh_rsa(exponent, modulus))


def test_a_wrong_passphrase_is_called_that() -> None:
    stanzas = list(PassphraseRecipient(b"right", work_factor=1).wrap(KEY).stanzas)
    assert key_of(stanzas, PassphraseIdentity(lambda: b"right")) == KEY
    with pytest.raises(NoKeyError, match="the passphrase does not open this stream") as caught:
        key_of(stanzas, PassphraseIdentity(lambda: b"wrong"))
    assert caught.value.hint


# --- armor

DATA = hashlib.shake_128(b"armor").digest(1000)


def armored(data: bytes) -> bytes:
    armor = Armor()
    return armor.feed(data) + armor.close()


def dearmored(text: bytes, step: int = 1 << 20) -> bytes:
    armor = Dearmor()
    out = b"".join(armor.feed(text[at : at + step]) for at in range(0, len(text), step))
    return out + armor.close()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 47, 48, 49, 96, 1000])
@pytest.mark.parametrize("step", [1, 7, 65, 1 << 20])
def test_armor_there_and_back(size: int, step: int) -> None:
    text = armored(DATA[:size])
    for variant in (text, b"\n \t\r\n" + text + b"\n\n ", text.replace(b"\n", b"\r\n"), text.rstrip(b"\n")):
        assert dearmored(variant, step) == DATA[:size]
    assert max(map(len, text.splitlines())) <= 64


TEXT = armored(DATA[:100])
LINES = TEXT.splitlines(keepends=True)
LOOSE = {
    "nothing": b"",
    "another label": TEXT.replace(b"FILE", b"MESSAGE"),
    "lower case": TEXT.lower(),
    "words before": b"hello\n" + TEXT,
    "words behind": TEXT + b"hello\n",
    "white space at an end": TEXT.replace(b"\n", b" \n", 2),
    "a space before a line": LINES[0] + b" " + b"".join(LINES[1:]),
    "an empty line": LINES[0] + b"\n" + b"".join(LINES[1:]),
    "an empty last line": b"".join(LINES[:-1]) + b"\n" + LINES[-1],
    "a header": LINES[0] + b"Key: value\n\n" + b"".join(LINES[1:]),
    "a checksum": b"".join(LINES[:-1]) + b"=AAAA\n" + LINES[-1],
    "no padding": TEXT.replace(b"=", b""),
    "extra bits": BEGIN + b"\nAB==\n" + END,
    "a long line": LINES[0] + LINES[1][:-1] + b"AAAA\n" + b"".join(LINES[2:]),
    "a short line within": LINES[0] + b"AAAA\n" + b"".join(LINES[1:]),
    "a line across padding": BEGIN + b"\nAA=\n=\n" + END,
    "no end": b"".join(LINES[:-1]),
    "much space before": b"\n" * 1025 + TEXT,
    "much space behind": TEXT + b"\n" * 1025,
    "a line without an end": BEGIN + b"A" * 2000,
}


@pytest.mark.parametrize("text", LOOSE.values(), ids=LOOSE)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_armor_that_age_would_not_write(text: bytes, step: int) -> None:
    with pytest.raises(ArmorError) as caught:
        dearmored(text, step)
    assert caught.value.offset is not None and caught.value.offset <= len(text)
