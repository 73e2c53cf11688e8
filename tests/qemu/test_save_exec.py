"""save at QEMU's monitor: `migrate "exec:exec statepipe save FILE"`."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import EXEC, Guest, run_statepipe
from tests.qemu.saving import EXEC_MODE, Save, assert_resumes, assert_whole

Start = Callable[..., Save]


@pytest.mark.parametrize("return_path", [True, False], ids=["return path", "one way"])
def test_a_saved_guest_goes_on_elsewhere(tmp_path: Path, states: Path, qemu: str, return_path: bool) -> None:
    file = states / "guest.state"
    with Guest(tmp_path, qemu=qemu) as guest:
        guest.wait_ticks(2)
        guest.capabilities(return_path=return_path)
        guest.qmp("migrate", uri=f"exec:exec {EXEC} save {file}")
        assert guest.wait_status()["status"] == "completed"
        assert guest.run_state() == "postmigrate"
        assert guest.stderr() == ""
        assert_whole(file)
        assert_resumes(guest, file, qemu)


def test_the_file_holds_the_very_stream(guest: Guest, states: Path, start_save: Start) -> None:
    """As the digest of the plain stream, taken on its way past, says."""
    file, digest = states / "guest.state", guest.folder / "digest"
    save = start_save(guest, file, EXEC_MODE, f"checksum:sha256,to={digest}", "compress:zstd:3")
    assert save.status() == 0
    assert_whole(file)
    plain = subprocess.run(["zstd", "-dcq", file], check=True, capture_output=True).stdout
    assert digest.read_text().split()[0] == hashlib.sha256(plain).hexdigest()


def test_a_higher_level_makes_a_smaller_file(guest: Guest, states: Path, start_save: Start) -> None:
    guest.qmp("stop")
    for level in (1, 9):
        assert start_save(guest, states / str(level), EXEC_MODE, f"compress:zstd:{level}").status() == 0
        guest.wait_status()
        guest.qmp("cont")
        guest.qmp("stop")
    assert (states / "9").stat().st_size < (states / "1").stat().st_size


@pytest.mark.parametrize("return_path", [True, False], ids=["return path", "one way"])
def test_a_paused_guest_is_saved_and_stays_paused(guest: Guest, states: Path, qemu72: str, return_path: bool) -> None:
    file = states / "guest.state"
    guest.qmp("stop")
    guest.capabilities(return_path=return_path)
    guest.qmp("migrate", uri=f"exec:exec {EXEC} save {file}")
    assert guest.wait_status()["status"] == "completed"
    assert guest.run_state() == "postmigrate"
    assert_whole(file)
    uri = f"exec:exec zstd -dcq {file}"
    with Guest(guest.folder, qemu=qemu72, image=guest.image, incoming=uri) as other:
        assert other.wait_run_state("paused", "running") == "paused"
        assert other.serial() == ""


def test_the_header_tells_who_was_saved(tmp_path: Path, states: Path, qemu72: str, start_save: Start) -> None:
    uuid = "6e1ba2c5-1f5c-4a0f-9f4f-6f1f1e0c1a2b"
    with Guest(tmp_path, qemu=qemu72, args=["-name", "guest=alma", "-uuid", uuid]) as guest:
        guest.wait_ticks(1)
        assert start_save(guest, states / "s", EXEC_MODE).status() == 0
    facts = json.loads(run_statepipe("inspect", "--json", states / "s").stdout)
    assert (facts["header"]["name"], facts["header"]["uuid"]) == ("alma", uuid)
    assert [disk["path"] for disk in facts["trailer"]["disks"]] == [str(guest.image)]


def test_an_older_file_is_replaced(guest: Guest, states: Path, start_save: Start) -> None:
    file = states / "guest.state"
    file.write_bytes(b"QEVM, older")
    with file.open("rb") as older:
        assert start_save(guest, file, EXEC_MODE).status() == 0
        assert older.read() == b"QEVM, older", "it was written into, not replaced"
    assert_whole(file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_and_its_target_is_replaced(guest: Guest, states: Path, start_save: Start) -> None:
    link, file = guest.folder / "link", states / "guest.state"
    link.symlink_to(file)
    assert start_save(guest, link, EXEC_MODE).status() == 0
    assert link.is_symlink()
    assert_whole(file)


def test_a_stream_saved_through_the_monitor_is_saved_again(guest: Guest, states: Path, qemu72: str) -> None:
    """Its return path is long over, and nobody waits for an answer."""
    first, second = guest.folder / "first", states / "second"
    done = run_statepipe("save", "--qmp", guest.socket, "--then", "quit", first)
    assert done.returncode == 0, done.stderr
    guest.wait()
    done = subprocess.run(
        ["sh", "-c", f"zstd -dcq {first} | {EXEC} save {second} >/dev/null"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_whole(second)
    assert_resumes(guest, second, qemu72)


def test_a_qemu_whose_answer_goes_elsewhere_keeps_its_guest(guest: Guest, states: Path) -> None:
    """It waits for a word on standard output, which the shell holds open, and sends into a file."""
    guest.capabilities(return_path=True)
    log, said = guest.folder / "log", guest.folder / "said"
    guest.qmp("migrate", uri=f"exec:exec 3>&1; {EXEC} save {states}/state >{log} 2>{said}")
    assert guest.wait_status()["status"] == "failed"
    assert "QEMU waits for an answer" in said.read_text()
    assert list(states.iterdir()) == []
    assert log.read_bytes() == b""
    guest.wait_ticks(2)
