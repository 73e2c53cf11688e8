"""OpenPGP beside Sequoia's sq, which shares no code with GnuPG: it reads what we write, and we what it writes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import gpghome
from tests.conformance import running

pytestmark = [
    pytest.mark.skipif(not gpghome.PRESENT, reason="gpg is not installed: tools/setup test"),
    pytest.mark.skipif(shutil.which("sq") is None, reason="sq is not installed: tools/setup test"),
]

NOISE = hashlib.shake_128(b"sq").digest(1 << 20)


def sq(*words: object, data: bytes) -> bytes:
    return subprocess.run(["sq", *map(str, words)], input=data, capture_output=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice's key, and her certificate."""
    folder = tmp_path_factory.mktemp("sq")
    (folder / "alice.key").write_bytes(gpghome.gpg("--export-secret-keys", "alice"))
    (folder / "alice.cert").write_bytes(gpghome.gpg("--export", "alice"))
    return folder


@pytest.mark.parametrize("size", [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, len(NOISE)])
@pytest.mark.parametrize("armor", [[], ["--armor"]], ids=["binary", "armored"])
def test_sq_and_we_read_each_other(keys: Path, size: int, armor: list[str]) -> None:
    ours = running.run("encrypt", "gpg:alice", *armor, data=NOISE[:size], env=gpghome.environment())
    assert ours.returncode == 0, ours.stderr
    assert sq("decrypt", "--recipient-key", keys / "alice.key", data=ours.stdout) == NOISE[:size]
    plain = ("--compression", "none")  # with its own padding gpg itself calls the message manipulated (2.2.40, 0.27)
    theirs = sq(
        "encrypt", *plain, *([] if armor else ["-B"]), "--recipient-cert", keys / "alice.cert", data=NOISE[:size]
    )
    back = running.run("decrypt", data=theirs, env=gpghome.environment())
    assert (back.returncode, back.stdout == NOISE[:size], back.stderr) == (0, True, b"")


def test_sq_knows_who_signed(keys: Path) -> None:
    ours = running.run("encrypt", "gpg:alice", "--sign", "alice", data=NOISE, env=gpghome.environment())
    signer = ("--signer-cert", keys / "alice.cert", "--signatures", "1")
    assert sq("decrypt", "--recipient-key", keys / "alice.key", *signer, data=ours.stdout) == NOISE
