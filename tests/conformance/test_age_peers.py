"""encrypt and decrypt against age itself, both ways, for every kind of key that both know."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import agefiles
from tests.conformance.adapters import filtered
from tests.conformance.running import PATIENCE, STATEPIPE, run
from tests.terminal import at_terminal

pytestmark = pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")

CHUNK = 64 << 10
NOISE = hashlib.shake_128(b"age").digest(CHUNK + 1)
TEXT = (b"the same line again\r\n" * 4000)[: CHUNK + 1]
INPUTS = {f"{size} bytes": NOISE[:size] for size in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1)} | {"text": TEXT}

inputs = pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
armored = pytest.mark.parametrize("armor", [[], ["-a"]], ids=["binary", "armored"])

KEY = str(agefiles.KEY_FILE)


def age(*arguments: str, data: bytes) -> bytes:
    done = subprocess.run(["age", *arguments], input=data, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@inputs
@armored
def test_age_opens_ours(data: bytes, armor: list[str]) -> None:
    assert age("-d", "-i", KEY, data=filtered(data, "encrypt", "-r", agefiles.RECIPIENT, *armor)[0]) == data


@inputs
@armored
def test_we_open_ages(data: bytes, armor: list[str]) -> None:
    assert filtered(age("-r", agefiles.RECIPIENT, *armor, data=data), "decrypt", "-i", KEY) == (data, "")


def test_many_recipients_each_open_it(tmp_path: Path) -> None:
    recipients = []
    for name in ("a", "b", "c"):
        subprocess.run(["age-keygen", "-o", tmp_path / name], check=True, capture_output=True)
        recipients.append(run("keygen", "-y", str(tmp_path / name)).stdout.decode().strip())
    (tmp_path / "list").write_text(f"# two of them\n\n{recipients[0]}\n  {recipients[1]}\n")
    sealed, _ = filtered(NOISE, "encrypt", recipients[2], "-R", str(tmp_path / "list"))
    for name in ("a", "b", "c"):
        assert age("-d", "-i", str(tmp_path / name), data=sealed) == NOISE
        assert filtered(sealed, "decrypt", "-i", KEY, "-i", str(tmp_path / name))[0] == NOISE


SSH = {
    "ed25519": ["-t", "ed25519"],
    "rsa": ["-t", "rsa", "-b", "2048"],
    "rsa in PEM": ["-t", "rsa", "-b", "2048", "-m", "PEM"],
}


def ssh_key(folder: Path, kind: str, passphrase: str) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", "-q", *SSH[kind], "-N", passphrase, "-f", folder / "id"], check=True)
    return folder / "id"


@pytest.mark.parametrize("kind", SSH)
def test_ssh_keys(kind: str, tmp_path: Path) -> None:
    key = ssh_key(tmp_path, kind, "")
    line = (tmp_path / "id.pub").read_text().strip()
    assert age("-d", "-i", str(key), data=filtered(NOISE, "encrypt", "-r", line)[0]) == NOISE
    assert filtered(age("-R", f"{key}.pub", data=NOISE), "decrypt", "-i", str(key))[0] == NOISE
    sealed, _ = filtered(NOISE, "encrypt", "-R", f"{key}.pub", agefiles.RECIPIENT)
    assert filtered(sealed, "decrypt", "-i", str(key))[0] == NOISE


@pytest.mark.parametrize("kind", SSH)
def test_an_ssh_key_under_a_passphrase_is_asked_for(kind: str, tmp_path: Path) -> None:
    key = ssh_key(tmp_path, kind, "open sesame")
    (tmp_path / "in").write_bytes(age("-R", f"{key}.pub", data=NOISE))
    ours = " ".join([*STATEPIPE, "decrypt -i id <in >out"])
    status, seen = at_terminal(ours, [("passphrase of id: ", "open sesame")], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (0, NOISE), seen
    assert "sesame" not in seen
    status, seen = at_terminal(ours, [("passphrase of id: ", "wrong")], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (4, b"")
    assert "cannot use id: the key cannot be opened: the passphrase is wrong" in seen


TYPED = [("assphrase", "correct horse"), (":", "correct horse")]


def test_age_opens_with_the_passphrase_that_we_were_given(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\nanother line\n")
    (tmp_path / "pass").chmod(0o600)
    (tmp_path / "in").write_bytes(filtered(TEXT, "encrypt", "--passphrase-file", str(tmp_path / "pass"))[0])
    status, seen = at_terminal("age -d -o out in", TYPED[:1], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (0, TEXT), seen


def test_we_open_with_the_passphrase_that_age_was_given(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(TEXT)
    status, seen = at_terminal("age -p -o sealed in", TYPED, tmp_path)
    assert status == 0, seen
    (tmp_path / "pass").write_text("correct horse")
    (tmp_path / "pass").chmod(0o600)
    sealed = (tmp_path / "sealed").read_bytes()
    assert filtered(sealed, "decrypt", "--passphrase-file", str(tmp_path / "pass"))[0] == TEXT
    status, seen = at_terminal(" ".join([*STATEPIPE, "decrypt -p <sealed >out"]), TYPED[:1], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (0, TEXT), seen


def test_a_new_passphrase_is_asked_for_twice(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(TEXT)
    ours = " ".join([*STATEPIPE, "encrypt -p <in >sealed"])
    status, seen = at_terminal(ours, [("new passphrase: ", "correct horse"), ("again: ", "correct hoarse")], tmp_path)
    assert status == 1 and "the two passphrases differ" in seen and "hoarse" not in seen
    assert (tmp_path / "sealed").read_bytes() == b""
    status, seen = at_terminal(ours, [("new passphrase: ", "correct horse"), ("again: ", "correct horse")], tmp_path)
    assert status == 0 and "correct" not in seen
    status, seen = at_terminal("age -d -o out sealed", TYPED[:1], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (0, TEXT), seen


@pytest.mark.parametrize("armor", ["", "-a"], ids=["binary", "armored"])
def test_an_identity_file_that_age_has_encrypted(armor: str, tmp_path: Path) -> None:
    status, seen = at_terminal(f"age -p {armor} -o key.age {KEY}", TYPED, tmp_path)
    assert status == 0, seen
    (tmp_path / "in").write_bytes(age("-r", agefiles.RECIPIENT, data=NOISE))
    ours = " ".join([*STATEPIPE, "decrypt -i key.age <in >out"])
    status, seen = at_terminal(ours, [("passphrase of key.age: ", "correct horse")], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (0, NOISE), seen
    status, seen = at_terminal(ours, [("passphrase of key.age: ", "wrong")], tmp_path)
    assert (status, (tmp_path / "out").read_bytes()) == (4, b"")
    assert "the passphrase does not open key.age" in seen


def test_keygen_and_age_keygen_read_each_other(tmp_path: Path) -> None:
    done = run("keygen", "-o", str(tmp_path / "ours"))
    assert done.returncode == 0 and done.stdout == b""
    public = done.stderr.decode().removeprefix("Public key: ")
    told = subprocess.run(["age-keygen", "-y", tmp_path / "ours"], capture_output=True, text=True, check=True)
    assert told.stdout == public
    subprocess.run(["age-keygen", "-o", tmp_path / "theirs"], capture_output=True, check=True)
    told = subprocess.run(["age-keygen", "-y", tmp_path / "theirs"], capture_output=True, text=True, check=True)
    assert run("keygen", "-y", str(tmp_path / "theirs")).stdout.decode() == told.stdout


@inputs
def test_rage_and_we_open_each_others(data: bytes) -> None:
    pyrage = pytest.importorskip("pyrage", reason="pyrage (rage's library) is not installed")
    identity = pyrage.x25519.Identity.from_str(agefiles.KEY_FILE.read_text().splitlines()[-1])
    assert pyrage.decrypt(filtered(data, "encrypt", agefiles.RECIPIENT)[0], [identity]) == data
    assert filtered(pyrage.encrypt(data, [identity.to_public()]), "decrypt", "-i", KEY)[0] == data
