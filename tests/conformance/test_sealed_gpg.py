"""States that GnuPG has sealed: for the owner of a key, signed or not; nothing leaves before all of it is proved."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import gpghome, warm
from tests.conformance.running import PATIENCE, STATEPIPE
from tests.statefiles import noisy_stream

STREAM = noisy_stream()
VERBS = ["load", "inspect", "verify-state"]


def statepipe(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = gpghome.environment()
    return warm.run([*STATEPIPE, *words], input=data, capture_output=True, timeout=PATIENCE, env=environment)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    done = statepipe("save", "-r", f"gpg:{gpghome.fingerprint('alice')}", str(path), data=STREAM)
    assert done.returncode == 0, done.stderr
    return path


def test_its_owner_loads_it(state: Path) -> None:
    done = statepipe("load", str(state))
    assert (done.returncode, done.stdout) == (0, STREAM), done.stderr
    assert b"encrypted (OpenPGP)" in statepipe("inspect", str(state)).stdout
    assert statepipe("verify-state", str(state)).returncode == 0
    assert state.stat().st_mode & 0o777 == 0o600


def test_gpg_and_zstd_give_the_stream_back(state: Path) -> None:
    plain = gpghome.decrypted(state.read_bytes())
    assert subprocess.run(["zstd", "-dc"], input=plain, capture_output=True).stdout == STREAM


@pytest.mark.parametrize("verb", VERBS)
def test_a_signature_that_is_demanded(tmp_path: Path, state: Path, verb: str) -> None:
    key, alice = f"gpg:{gpghome.fingerprint('alice')}", gpghome.fingerprint("alice")
    signed = tmp_path / "signed"
    assert statepipe("save", "-r", key, "--sign", alice, str(signed), data=STREAM).returncode == 0
    assert statepipe(verb, "--signed-by", alice, str(signed)).returncode == 0
    refused = statepipe(verb, "--signed-by", alice, str(state))
    assert (refused.returncode, refused.stdout.strip(b"!")) == (3, b""), refused.stderr


@pytest.mark.parametrize("share", [0.2, 0.5, 0.999])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_lets_nothing_out(tmp_path: Path, state: Path, share: float, damage: str) -> None:
    """Where gpg itself puts plaintext out before it sees the damage."""
    data = bytearray(state.read_bytes())
    at = int(len(data) * share)
    if damage == "flip":
        data[at] ^= 8
    bad = tmp_path / "bad"
    bad.write_bytes(data if damage == "flip" else data[:at])
    for verb in VERBS:
        done = statepipe(verb, str(bad))
        assert (done.returncode, done.stdout.strip(b"!")) == (3, b""), (verb, done.stderr)


def test_armor_is_refused(tmp_path: Path) -> None:
    done = statepipe("save", f"encrypt:armor,gpg:{gpghome.fingerprint('alice')}", str(tmp_path / "s"), data=STREAM)
    assert done.returncode == 2 and b"cannot be armored" in done.stderr
