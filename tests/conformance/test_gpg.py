"""encrypt and decrypt by GnuPG, beside the real gpg: both ways, every refusal, and what gpg alone lets pass."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import agefiles, gpghome
from tests.conformance import running
from tests.conformance.running import STATEPIPE, assert_none_left, assert_one_error, started, stop, wait_until_read

pytestmark = pytest.mark.skipif(not gpghome.PRESENT, reason="gpg is not installed: tools/setup test")

NOISE = hashlib.shake_128(b"gpg").digest(3 << 20)
SIZES = (0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, len(NOISE))


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return running.run(*arguments, **({"env": gpghome.environment()} | options))


@pytest.fixture(autouse=True, scope="module")
def everybody() -> None:
    gpghome.elsewhere()


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    (tmp_path / "passphrase").write_text(gpghome.PASSPHRASE + "\n")
    (tmp_path / "passphrase").chmod(0o600)
    return tmp_path / "passphrase"


# --- both ways


@pytest.mark.parametrize("armor", [[], ["--armor"]], ids=["binary", "armored"])
@pytest.mark.parametrize("size", SIZES)
def test_the_real_gpg_and_we_read_each_other(size: int, armor: list[str]) -> None:
    ours = run("encrypt", "gpg:alice", *armor, data=NOISE[:size])
    assert (ours.returncode, ours.stderr) == (0, b"")
    assert ours.stdout.startswith(b"-----BEGIN PGP MESSAGE-----") == bool(armor)
    assert gpghome.gpg("--decrypt", data=ours.stdout) == NOISE[:size]
    for message in (ours.stdout, gpghome.encrypted(NOISE[:size], *armor)):
        back = run("decrypt", data=message)
        assert (back.returncode, back.stdout == NOISE[:size], back.stderr) == (0, True, b"")


def test_text_stays_as_it_is() -> None:
    text = b"lines\r\nof\ntext \n"
    assert run("decrypt", data=gpghome.encrypted(text, "--textmode")).stdout.split() == text.split()
    assert run("decrypt", data=run("encrypt", "gpg:alice", data=text).stdout).stdout == text


def test_what_gpg_compressed_is_read() -> None:
    assert run("decrypt", data=gpghome.encrypted(bytes(1 << 20), "-z", "6")).stdout == bytes(1 << 20)


def test_two_recipients_and_the_words_of_pipe() -> None:
    done = run("pipe", "compress", "encrypt:gpg:alice,gpg:bob,sign=bob", data=NOISE)
    assert done.returncode == 0
    keys = gpghome.gpg("--list-packets", data=done.stdout).count(b":pubkey enc packet")
    assert keys == 2
    back = run("pipe", f"decrypt:signed-by={gpghome.fingerprint('bob')}", "decompress", data=done.stdout)
    assert (back.returncode, back.stdout == NOISE, back.stderr) == (0, True, b"")


def test_age_is_still_age() -> None:
    done = run("decrypt", "-i", str(agefiles.KEY_FILE), data=agefiles.sealed(NOISE))
    assert (done.returncode, done.stdout == NOISE) == (0, True)


def test_a_message_under_a_passphrase(passphrase: Path) -> None:
    message = gpghome.gpg("--pinentry-mode", "loopback", "--passphrase", gpghome.PASSPHRASE, "-c", data=NOISE)
    done = run("decrypt", "--passphrase-file", str(passphrase), data=message)
    assert (done.returncode, done.stdout == NOISE) == (0, True)
    passphrase.write_text("wrong\n")
    passphrase.chmod(0o600)
    done = run("decrypt", "--passphrase-file", str(passphrase), data=message)
    assert (done.returncode, done.stdout) == (4, b"")
    assert_one_error(done.stderr, "decrypt", "passphrase")


# --- who signed


def test_a_signature_that_is_demanded() -> None:
    signed = run("encrypt", "gpg:alice", "--sign", "bob", data=NOISE).stdout
    for name in (gpghome.fingerprint("bob"), f"0x{gpghome.fingerprint('bob').lower()}"):
        done = run("decrypt", "--signed-by", name, data=signed)
        assert (done.returncode, done.stdout == NOISE) == (0, True)
    assert run("decrypt", data=signed).returncode == 0


@pytest.mark.parametrize(("signer", "words"), [(["--sign", "alice"], "is signed by"), ([], "is not signed")])
def test_another_signature_or_none(signer: list[str], words: str) -> None:
    message = run("encrypt", "gpg:alice", *signer, data=NOISE).stdout
    done = run("decrypt", "--signed-by", gpghome.fingerprint("bob"), data=message)
    assert done.returncode == 3 and len(done.stdout) < len(NOISE)
    assert_one_error(done.stderr, "decrypt", words)


def test_a_key_that_signs_is_opened_by_a_passphrase(passphrase: Path) -> None:
    ways = ["encrypt", "gpg:alice", "--sign", "carol", "--passphrase-file", str(passphrase)]
    done = run(*ways, data=NOISE)
    assert done.returncode == 0
    back = run("decrypt", "--signed-by", gpghome.fingerprint("carol"), data=done.stdout)
    assert (back.returncode, back.stdout == NOISE) == (0, True)


def test_a_signature_by_a_key_that_is_not_known() -> None:
    """Nobody asked who it was: a warning. Somebody did: an error."""
    message = run("encrypt", "gpg:alice", "--sign", "bob", data=NOISE).stdout
    other = os.environ | {"GNUPGHOME": str(gpghome.elsewhere())}
    done = run("decrypt", data=message, env=other)
    assert (done.returncode, done.stdout == NOISE) == (0, True)
    assert b"which is not in GnuPG's keyring: it was not checked" in done.stderr
    done = run("decrypt", "--signed-by", gpghome.fingerprint("bob"), data=message, env=other)
    assert done.returncode == 3
    assert_one_error(done.stderr, "decrypt", "not in GnuPG's keyring")


# --- damage, and what was never encrypted


@pytest.mark.parametrize("name", ["small", "large"])
def test_every_kind_of_cut_is_found(name: str) -> None:
    data = NOISE[:200] if name == "small" else NOISE[:300_000]
    message = gpghome.encrypted(data)
    for size in sorted({0, 1, 2, 50, 100, 200, 300, len(message) // 2, len(message) - 21, len(message) - 1}):
        done = run("decrypt", data=message[:size])
        assert done.returncode == 3, (size, done.stderr)
        assert data != done.stdout and data.startswith(done.stdout)


def test_flips_are_found() -> None:
    """Status 3: only in the packet for the recipient it may be 4, as nobody can tell a damaged one from another's."""
    data = NOISE[:100_000]
    message = gpghome.encrypted(data)
    dice = random.Random(1)
    for at in [*dice.sample(range(100), 8), *dice.sample(range(100, len(message)), 8), len(message) - 1]:
        flipped = bytearray(message)
        flipped[at] ^= 1 << dice.randrange(8)
        done = run("decrypt", data=bytes(flipped))
        assert done.returncode == 3 or (done.returncode in (1, 4) and at < 100), (at, done.stderr)
        assert done.stdout != data
        assert len(done.stderr.splitlines()) <= 2


def test_what_gpg_passes_with_status_0_though_it_was_not_encrypted() -> None:
    for message in (
        gpghome.gpg("--store", data=NOISE),
        gpghome.gpg("--sign", "--local-user", "bob", data=NOISE),
        gpghome.gpg("--store", "--armor", data=NOISE),
    ):
        assert gpghome.decrypted(message) == NOISE
        done = run("decrypt", data=message)
        assert (done.returncode, done.stdout) == (3, b"")
        assert_one_error(done.stderr, "decrypt", "the message is not encrypted")


def test_plaintext_beside_the_encrypted() -> None:
    """A literal packet before or behind a message is not of the message."""
    literal = gpghome.gpg("--store", "-z", "0", data=b"planted")
    marker = bytes([0xCA, 3]) + b"PGP"
    for message in (marker + literal, gpghome.encrypted(NOISE[:1000]) + literal):
        done = run("decrypt", data=message)
        assert done.returncode == 3, done.stderr
        assert b"planted" not in done.stdout


def test_a_message_without_a_proof_is_refused(passphrase: Path) -> None:
    """As before 2003, without MDC; and gpg shows it, if it is told to ignore that."""
    message = gpghome.unproved(NOISE, gpghome.PASSPHRASE)
    ways = ["--pinentry-mode", "loopback", "--passphrase", gpghome.PASSPHRASE, "--ignore-mdc-error"]
    assert gpghome.gpg(*ways, "--decrypt", data=message) == NOISE
    done = run("decrypt", "--passphrase-file", str(passphrase), data=message)
    assert done.returncode == 3
    assert len(done.stdout) < len(NOISE)
    assert_one_error(done.stderr, "decrypt", "the message has no integrity protection")


@pytest.mark.parametrize("size", [0, 1, 500, 300_000])
def test_ocb_is_read(size: int, passphrase: Path) -> None:
    """What GnuPG makes from 2.3 on. Damage to a chunk, and a cut between two of them, are found."""
    message = gpghome.by_ocb(NOISE[:size], gpghome.PASSPHRASE)
    done = run("decrypt", "--passphrase-file", str(passphrase), data=message)
    assert (done.returncode, done.stdout, done.stderr) == (0, NOISE[:size], b"")
    flips = [bytearray(message) for _ in range(3)]
    for flipped, at in zip(flips, (-1, -17, len(message) // 2), strict=True):
        flipped[at] ^= 1
    for damaged in (message[:-1], message[:-16], *flips):
        done = run("decrypt", "--passphrase-file", str(passphrase), data=bytes(damaged))
        assert done.returncode == 3, done.stderr
        assert done.stdout != NOISE[:size] or not size


def test_a_strangers_signature_does_not_cover_up_damage(passphrase: Path) -> None:
    """gpg ends with 2 for either, and calls both messages good in its status lines."""
    signed = gpghome.gpg("-z", "0", "--sign", "--local-user", "bob", data=NOISE[:1000])
    message = gpghome.packets_by_ocb(signed, gpghome.PASSPHRASE)
    options = ["decrypt", "--passphrase-file", str(passphrase)]
    assert run(*options, data=message).stdout == NOISE[:1000]
    elsewhere = os.environ | {"GNUPGHOME": str(gpghome.elsewhere())}
    for received in (message, message[:-1] + bytes([message[-1] ^ 1])):
        done = run(*options, data=received, env=elsewhere)
        assert (done.returncode, done.stdout) == (3, b""), done.stderr


@pytest.mark.parametrize("at", [30, 60, 90])
def test_a_damaged_key_of_ours_is_damage(at: int) -> None:
    """Within the session key's packet, behind the recipient's id."""
    message = bytearray(gpghome.encrypted(NOISE[:1000]))
    message[at] ^= 1
    done = run("decrypt", data=bytes(message))
    assert (done.returncode, done.stdout) == (3, b"")


def test_a_name_on_several_keys_is_refused() -> None:
    """gpg itself takes one of them."""
    done = run("encrypt", "gpg:example.org", data=NOISE)
    assert (done.returncode, done.stdout) == (2, b"")
    assert_one_error(done.stderr, "encrypt", "'example.org' matches ")
    for name in ("alice", gpghome.fingerprint("alice"), "alice@example.org"):
        assert run("encrypt", f"gpg:{name}", data=b"data").returncode == 0


def test_no_openpgp_behind_its_first_line() -> None:
    done = run("decrypt", data=b"-----BEGIN PGP MESSAGE-----\n\nhQEMA0000000\n-----END PGP MESSAGE-----\n")
    assert (done.returncode, done.stdout) == (3, b"")


# --- keys


def test_no_key_for_it() -> None:
    message = gpghome.encrypted(NOISE, to="dave")
    done = run("decrypt", data=message)
    assert (done.returncode, done.stdout) == (4, b"")
    assert_one_error(done.stderr, "decrypt", "no secret key here opens this message; it is for ")


REFUSED = {
    "gpg:nobody": "the recipient nobody is not in GnuPG's keyring",
    "gpg:old": "has expired",
    "gpg:stranger": "is not trusted",
}


@pytest.mark.parametrize("recipient", REFUSED)
def test_a_recipient_that_cannot_be_used(recipient: str) -> None:
    done = run("encrypt", recipient, data=NOISE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "encrypt", REFUSED[recipient])
    assert b"hint: " in done.stderr


@pytest.mark.parametrize(
    ("signer", "words"),
    [
        ("nobody", "signing key nobody is not in GnuPG's keyring"),
        ("dave", "signing key dave has no secret key here"),
        ("old", "signing key old has expired"),
    ],
)
def test_a_signer_that_cannot_be_used(signer: str, words: str) -> None:
    done = run("encrypt", "gpg:alice", "--sign", signer, data=NOISE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "encrypt", words)


def test_a_wrong_passphrase(passphrase: Path) -> None:
    gpghome.forget()
    passphrase.write_text("wrong\n")
    passphrase.chmod(0o600)
    done = run("encrypt", "gpg:alice", "--sign", "carol", "--passphrase-file", str(passphrase), data=NOISE)
    assert done.returncode == 4
    assert_one_error(done.stderr, "encrypt", "the passphrase is wrong")


def test_nobody_at_a_terminal_to_ask() -> None:
    gpghome.forget()
    done = run("decrypt", data=gpghome.encrypted(NOISE, to="carol"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "decrypt", "GnuPG's agent")
    assert b"--passphrase-file" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["encrypt", "gpg:alice", agefiles.RECIPIENT],
        ["encrypt", "gpg:"],
        ["encrypt", "--sign", "bob", agefiles.RECIPIENT],
        ["encrypt", "--sign", "bob"],
        ["decrypt", "--signed-by", "bob"],
        ["decrypt", "--signed-by", "3624F0A41F4EC3E5"],
    ],
)
def test_slips(arguments: list[str]) -> None:
    done = run(*arguments, data=b"")
    assert (done.returncode, done.stdout) == (2, b""), done.stderr


def test_a_demand_for_a_signature_is_not_met_by_age() -> None:
    ways = ["decrypt", "-i", str(agefiles.KEY_FILE), "--signed-by", "0" * 40]
    done = run(*ways, data=agefiles.sealed(NOISE))
    assert (done.returncode, done.stdout) == (3, b"")


def test_where_there_is_no_gpg(tmp_path: Path) -> None:
    for arguments, data in ((["encrypt", "gpg:alice"], NOISE), (["decrypt"], gpghome.encrypted(NOISE))):
        done = run(*arguments, data=data, env=os.environ | {"PATH": str(tmp_path)})
        assert (done.returncode, done.stdout) == (1, b"")
        assert_one_error(done.stderr, arguments[0], "OpenPGP needs gpg, which is not installed")


# --- what others can see, and what stays


def test_a_passphrase_is_in_no_argument_and_no_environment(passphrase: Path) -> None:
    message = gpghome.encrypted(NOISE, to="carol")
    command = [*STATEPIPE, "decrypt", "--passphrase-file", str(passphrase)]
    with started(command, env=gpghome.environment(), stdout=subprocess.DEVNULL, fresh=True) as process:
        assert process.stdin
        process.stdin.write(message[:1000])
        wait_until_read(process)
        running.wait(process, lambda: running.children(process.pid))
        for pid in (str(process.pid), *running.children(process.pid)):
            for name in ("cmdline", "environ"):
                assert gpghome.PASSPHRASE.encode() not in Path("/proc", pid, name).read_bytes()
        assert stop(process, signal.SIGTERM)[0] == 143
    assert_none_left(f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}")
