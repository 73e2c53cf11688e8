"""What an earlier statepipe wrote is read by today's: states, streams, checksums, and the keys of paired hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.agefiles import KEY_FILE
from tests.conformance.running import PATIENCE, STATEPIPE, run, started

KEPT = Path(__file__).parents[1] / "samples" / "kept"
CHECKSUM = (KEPT / "stream.b3").read_text().split()[0].encode()
CODECS = ("zstd", "zstd-one-frame", "gzip", "xz", "bzip2", "lz4")


def checksum(stream: bytes) -> bytes:
    return run("checksum", "blake3", "--to", "/dev/stderr", data=stream).stderr.split()[0]


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = Path(shutil.copy(KEY_FILE, tmp_path / "key"))
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("name", ["plain.state", "sealed.state"])
def test_a_state_is_whole_and_gives_its_stream_back(name: str, key: str) -> None:
    state = str(KEPT / name)
    assert run("verify-state", "-i", key, state).returncode == 0
    loaded = run("load", "-i", key, state)
    assert (loaded.returncode, checksum(loaded.stdout)) == (0, CHECKSUM)


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_is_decompressed(codec: str) -> None:
    done = run("decompress", data=(KEPT / f"stream.{codec}").read_bytes())
    assert (done.returncode, checksum(done.stdout)) == (0, CHECKSUM)


def test_a_checksum_file_is_verified() -> None:
    stream = run("decompress", data=(KEPT / "stream.xz").read_bytes()).stdout
    assert run("verify", "--algorithm", "blake3", "--from", str(KEPT / "stream.b3"), data=stream).returncode == 0
    assert (
        run("verify", "--algorithm", "blake3", "--from", str(KEPT / "stream.b3"), data=stream + b"\0").returncode == 3
    )


def test_an_armored_stream_is_decrypted(key: str) -> None:
    done = run("decrypt", "-i", key, data=(KEPT / "stream.xz.age").read_bytes())
    assert (done.returncode, done.stdout) == (0, (KEPT / "stream.xz").read_bytes())


def home(base: Path, name: str, peer: str) -> dict[str, str]:
    """The environment of one of the paired hosts."""
    folder = base / name / "statepipe"
    (folder / "peers").mkdir(parents=True)
    for file in ("own-cert.pem", "own-key.pem"):
        shutil.copy(KEPT / name / file, folder)
        (folder / file).chmod(0o600)
    shutil.copy(KEPT / name / f"{peer}.pem", folder / "peers")
    return {**os.environ, "XDG_CONFIG_HOME": str(base / name)}


def test_hosts_that_were_paired_know_each_other_still(tmp_path: Path) -> None:
    stream = (KEPT / "stream.xz").read_bytes()
    alpha, beta = home(tmp_path, "alpha", "beta"), home(tmp_path, "beta", "alpha")
    command = [*STATEPIPE, "recv", "--peer", "alpha", "tls://127.0.0.1:0", "--timeout", str(PATIENCE)]
    with started(command, stdin=subprocess.DEVNULL, env=beta) as receiver:
        port = int(receiver.stderr.readline().split()[-1])
        sent = run("send", "--peer", "beta", f"tls://127.0.0.1:{port}", data=stream, env=alpha)
        assert sent.returncode == 0, sent.stderr
        assert receiver.communicate(timeout=PATIENCE)[0] == stream
        assert receiver.returncode == 0
