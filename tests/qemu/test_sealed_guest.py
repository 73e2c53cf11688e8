"""A guest that is saved encrypted: it comes back for whoever has the key, in every way to load, and for nobody else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.agefiles import KEY_FILE, RECIPIENT
from tests.qemu.harness import Guest, assert_continues, run_statepipe
from tests.qemu.loading import MEMORY, Saved, assert_never_ran, load_uri, loaded, run_load, run_qemu
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save

MAGIC = b"age-encryption.org/v1\n"


@pytest.fixture(params=[EXEC_MODE, QMP_MODE])
def sealed(request: pytest.FixtureRequest, tmp_path: Path, qemu72: str) -> Saved:
    """A guest saved for RECIPIENT, with QEMU's own word that it is saved."""
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=8, dirty=2) as guest:
        guest.wait_ticks(3)
        guest.capabilities(**{"return-path": True})
        save = Save(guest, tmp_path / "state", request.param, "-r", RECIPIENT)
        assert save.status() == 0, save.stderr()
        guest.wait_run_state("postmigrate")
        state = Saved(tmp_path / "state", guest.image, guest.serial(), qemu72)
    assert state.file.read_bytes().startswith(MAGIC)
    return state


def test_it_comes_back_for_whoever_has_the_key(tmp_path: Path, sealed: Saved) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    with loaded(folder, sealed, "-i", str(KEY_FILE)) as guest:
        guest.wait_ticks(3)
        assert_continues(sealed.before, guest.serial())
    with Guest(
        folder, qemu=sealed.qemu, memory=MEMORY, image=sealed.image, incoming=load_uri(sealed, "-i", str(KEY_FILE))
    ) as guest:
        guest.wait_ticks(3)
        assert_continues(sealed.before, guest.serial())
    assert run_statepipe("verify-state", "-i", KEY_FILE, sealed.file).returncode == 0


def test_a_stranger_runs_no_guest(tmp_path: Path, sealed: Saved) -> None:
    key = tmp_path / "stranger.key"
    assert run_statepipe("keygen", "-o", key).returncode == 0
    done = run_load(tmp_path, sealed, "-i", key)
    assert (done.returncode, "no identity opens this stream" in done.stderr) == (4, True), done.stderr
    assert_never_ran(tmp_path)
    done = run_qemu(tmp_path, sealed, load_uri(sealed, "-i", str(key)))
    assert done.returncode == 1 and "no identity opens this stream" in done.stderr
    assert_never_ran(tmp_path)


def test_a_flipped_bit_runs_no_guest(tmp_path: Path, sealed: Saved) -> None:
    data = bytearray(sealed.file.read_bytes())
    data[len(data) // 2] ^= 4
    damaged = sealed.damaged(tmp_path, bytes(data))
    assert run_load(tmp_path, damaged, "-i", KEY_FILE).returncode == 3
    assert_never_ran(tmp_path)


def test_age_and_zstd_give_the_stream_back(tmp_path: Path, sealed: Saved) -> None:
    pipe = f"age -d -i {KEY_FILE} {sealed.file} | zstd -dc"
    raw = subprocess.run(["/bin/sh", "-c", pipe], capture_output=True, check=True).stdout
    assert raw.startswith(b"QEVM")
    with loaded(tmp_path, sealed.damaged(tmp_path, raw)) as guest:
        guest.wait_ticks(2)
        assert_continues(sealed.before, guest.serial())
