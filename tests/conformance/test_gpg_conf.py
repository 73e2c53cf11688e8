"""encrypt and decrypt under any gpg.conf: the bytes come back, or it is an error that names the line."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gpghome
from tests.conformance.running import assert_one_error, run

pytestmark = pytest.mark.skipif(not gpghome.PRESENT, reason="gpg is not installed: tools/setup test")

DATA = b"a\r\nb \nc\0\xff\n\n\r" * 1000
"""Whatever is done to text changes it."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """alice's keys, and room for another gpg.conf."""
    folder = tmp_path / "home"
    folder.mkdir(0o700)
    for name in ("pubring.kbx", "trustdb.gpg"):
        (folder / name).symlink_to(gpghome.home() / name)
    yield folder
    subprocess.run(["gpgconf", "--kill", "all"], env=within(folder), check=True)


def within(folder: Path) -> dict[str, str]:
    return os.environ | {"GNUPGHOME": str(folder)}


@pytest.mark.parametrize(
    "line", ["textmode", "mimemode", "output FOLDER/elsewhere", "set-filesize 5", "armor", "compress-level 9", "pgp6"]
)
def test_options_of_the_data_do_not_count_for_encrypt(line: str, home: Path) -> None:
    (home / "gpg.conf").write_text(line.replace("FOLDER", str(home)) + "\n")
    done = run("encrypt", "gpg:alice", data=DATA, env=within(home))
    assert (done.returncode, done.stderr) == (0, b"")
    assert not done.stdout.startswith(b"-----")
    assert run("decrypt", data=done.stdout, env=gpghome.environment()).stdout == DATA


LOUD = "verbose\nlog-file /dev/stdout"


@pytest.mark.parametrize("line", ["textmode", "output FOLDER/elsewhere", "max-output 5", "use-embedded-filename", LOUD])
def test_options_of_the_data_do_not_count_for_decrypt(line: str, home: Path, tmp_path: Path) -> None:
    (home / "gpg.conf").write_text(line.replace("FOLDER", str(home)) + "\n")
    done = run("decrypt", "--passphrase-file", str(passphrase_in(tmp_path)), data=under_passphrase(), env=within(home))
    assert (done.returncode, done.stdout) == (0, DATA)
    assert not (home / "elsewhere").exists()


def passphrase_in(folder: Path) -> Path:
    (folder / "passphrase").write_text(gpghome.PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    return folder / "passphrase"


def under_passphrase(*options: str) -> bytes:
    ways = ["--pinentry-mode", "loopback", "--passphrase", gpghome.PASSPHRASE, "--symmetric", *options]
    return gpghome.gpg(*ways, data=DATA)


@pytest.mark.parametrize("lines", ["attribute-fd 1", 'verify-options show-photos\nphoto-viewer "echo A PICTURE"'])
def test_a_signers_picture_is_no_part_of_the_data(lines: str, home: Path) -> None:
    """It came out behind them, with status 0."""
    sealed = pictured_and_sealed(home)
    (home / "gpg.conf").write_text(lines)
    done = run("decrypt", data=sealed, env=within(home))
    assert (done.returncode, done.stdout) == (0, DATA), done.stderr


def pictured_and_sealed(folder: Path) -> bytes:
    """A message signed by, and for, somebody whose key has a photo."""
    for name in ("pubring.kbx", "trustdb.gpg"):
        (folder / name).unlink()
    (folder / "me.jpg").write_bytes(bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9"))
    ways = ["gpg", "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""]
    make = f"Key-Type: eddsa\nKey-Curve: ed25519\nKey-Usage: sign\nSubkey-Type: ecdh\nSubkey-Curve: cv25519\n{WHOSE}"
    photo = f"addphoto\n{folder}/me.jpg\ny\nsave\n"

    def gpg(*words: str, data: bytes) -> bytes:
        return subprocess.run([*ways, *words], input=data, env=within(folder), capture_output=True, check=True).stdout

    gpg("--generate-key", data=make.encode())
    gpg("--command-fd", "0", "--edit-key", "eve", data=photo.encode())
    return gpg("--sign", "--encrypt", "--recipient", "eve", data=DATA)


WHOSE = "Name-Real: eve\nExpire-Date: 0\n%no-protection\n%commit\n"


STEALING = ["dry-run", "logger-fd 1", "logger-fd 3", "multifile", "passphrase-fd 0", "override-session-key-fd 0"]


COMMANDS = ["sign", "symmetric", "list-packets", "verify", "store", "dearmor", "import"]


@pytest.mark.parametrize("line", ["no-literal", "rfc2440", "compliance rfc2440", "--no-literal", *STEALING, *COMMANDS])
def test_an_option_that_has_no_opposite_is_named_and_nothing_encrypted(line: str, home: Path) -> None:
    (home / "gpg.conf").write_text(f"# mine\n\n {line}\n")
    done = run("encrypt", "gpg:alice", data=DATA, env=within(home))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "encrypt", f"'{line.removeprefix('--')}' in {home}/gpg.conf")


@pytest.mark.parametrize("line", ["list-only", "unwrap", *STEALING, *COMMANDS])
def test_an_option_that_has_no_opposite_is_named_and_nothing_decrypted(line: str, home: Path, tmp_path: Path) -> None:
    (home / "gpg.conf").write_text(line)
    done = run("decrypt", "--passphrase-file", str(passphrase_in(tmp_path)), data=under_passphrase(), env=within(home))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "decrypt", f"'{line}' in {home}/gpg.conf")


@pytest.mark.parametrize("line", ["display-charset none", "trusted-key none"])
def test_settings_that_gpg_does_not_take_are_no_word_on_the_message(line: str, home: Path, tmp_path: Path) -> None:
    """It was called one that is not encrypted."""
    (home / "gpg.conf").write_text(line)
    done = run("decrypt", "--passphrase-file", str(passphrase_in(tmp_path)), data=under_passphrase(), env=within(home))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "decrypt", "gpg failed before it read the message, with exit status 2: gpg: ")


def test_a_cipher_that_gpg_may_not_use_is_no_damage(home: Path) -> None:
    message = run("encrypt", "gpg:alice", data=DATA, env=gpghome.environment()).stdout
    (home / "private-keys-v1.d").symlink_to(gpghome.home() / "private-keys-v1.d")
    (home / "gpg.conf").write_text("disable-cipher-algo AES256\ndisable-cipher-algo AES")
    done = run("decrypt", data=message, env=within(home))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "decrypt", "does not support the cipher of the message, or its settings disable it")


@pytest.mark.parametrize(
    ("option", "words"),
    [("--no-literal", "gpg changes the data"), ("--rfc2440", "without integrity protection")],
)
def test_what_gpg_was_told_elsewhere_is_seen_before_the_first_byte(option: str, words: str, tmp_path: Path) -> None:
    """As by a file for all users of the host."""
    program = tmp_path / "gpg"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("gpg")} {option} "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("encrypt", "gpg:alice", data=DATA, env=gpghome.environment() | {"PATH": path})
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "encrypt", words)


def test_a_message_that_is_text_by_its_own_word_is_told(tmp_path: Path) -> None:
    """Who wrote it changed the line ends, and gpg changes them again."""
    passphrase = str(passphrase_in(tmp_path))
    message = under_passphrase("--textmode")
    done = run("decrypt", "--passphrase-file", passphrase, data=message, env=gpghome.environment())
    assert done.returncode == 0
    assert b"warning: decrypt: the message is marked as text" in done.stderr
