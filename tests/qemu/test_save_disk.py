"""save onto disks that are full, fail, or are slow: no file, QEMU says `failed`, and its guest runs on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_runs_on
from tests.qemu.saving import EXEC_MODE, QMP_MODE, Save, assert_failed, assert_whole, child_of, inject, reach, slow_down

Start = Callable[..., Save]
SmallDisk = Callable[[int], Path]

MODES = [EXEC_MODE, QMP_MODE]

SECTOR = 512
"""What `ulimit -f` counts in."""


def assert_disk_failure(save: Save, *words: str, kept: bytes | None = None) -> None:
    """The reason is said, no file is there, and QEMU and its guest know of it."""
    said = assert_failed(save, 1, kept=kept)
    assert all(word in said for word in words), said
    assert save.guest.wait_status()["status"] == "failed"
    assert_runs_on(save.guest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [4096, 4 << 20], ids=["at the first write", "midway"])
def test_a_full_disk(guest: Guest, small_disk: SmallDisk, start_save: Start, mode: str, size: int) -> None:
    guest.capabilities(return_path=True)
    save = start_save(guest, small_disk(size) / "s", mode)
    assert_disk_failure(save, "cannot write", "No space left on device", "hint: ")


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_full_in_the_last_64_kib(
    calm_guest: Guest, states: Path, small_disk: SmallDisk, start_save: Start, mode: str
) -> None:
    """QEMU has sent all it has, and without a return path would call it completed."""
    calm_guest.capabilities(return_path=True)
    assert start_save(calm_guest, states / "s", EXEC_MODE).status() == 0
    size = (states / "s").stat().st_size
    calm_guest.wait_status()
    calm_guest.qmp("cont")
    save = start_save(calm_guest, small_disk(size - (32 << 10)) / "s", mode)
    assert_disk_failure(save, "cannot write", "No space left on device")


def test_a_full_disk_without_a_return_path(guest: Guest, small_disk: SmallDisk, start_save: Start) -> None:
    """QEMU sees a closed pipe, if it still writes."""
    save = start_save(guest, small_disk(4 << 20) / "s", EXEC_MODE)
    assert_disk_failure(save, "No space left on device")


def test_a_file_that_fails_at_last_is_not_there_whatever_qemu_says(
    guest: Guest, states: Path, start_save: Start
) -> None:
    """Without a return path QEMU has completed by then: the absent file is the truth, and `cont` brings it back."""
    save = start_save(guest, states / "s", EXEC_MODE, wrapper=inject("fsync:error=EIO"))
    assert "cannot complete" in assert_failed(save, 1)
    assert guest.wait_status()["status"] == "completed"
    guest.qmp("cont")
    assert_runs_on(guest)


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_is_full_only_at_fsync(guest: Guest, loop_disk: Path, start_save: Start, mode: str) -> None:
    """ext4 promises blocks that the device below it does not have: each write succeeds, fsync says so."""
    guest.capabilities(return_path=True)
    (loop_disk / "lost+found").rmdir()
    save = start_save(guest, loop_disk / "s", mode)
    said = assert_failed(save, 1)
    assert "cannot complete" in said
    assert guest.wait_status()["status"] == "failed"
    assert_runs_on(guest)


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_on_the_files_size(guest: Guest, states: Path, start_save: Start, mode: str) -> None:
    guest.capabilities(return_path=True)
    save = start_save(guest, states / "s", mode, before=f"ulimit -f {(4 << 20) // SECTOR}")
    assert_disk_failure(save, "cannot write", "File too large", "ulimit -f")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "call",
    [
        "fsync:error=ENOSPC:when=1",
        "fsync:error=EIO:when=1",
        "linkat:error=EIO:when=3",
        "renameat2:error=EIO",
        "fsync:error=EIO:when=3",
    ],
    ids=["space at fsync", "fsync", "link", "rename", "fsync of the folder"],
)
def test_an_error_while_completing(guest: Guest, states: Path, start_save: Start, mode: str, call: str) -> None:
    """The older file stays, whichever step it is that fails."""
    (states / "s").write_bytes(b"QEVM, older")
    guest.capabilities(return_path=True)
    save = start_save(guest, states / "s", mode, wrapper=inject(call))
    assert_disk_failure(save, "cannot complete", kept=b"QEVM, older")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", ["read", "write"])
def test_an_error_midway(calm_guest: Guest, states: Path, start_save: Start, mode: str, call: str) -> None:
    calm_guest.capabilities(return_path=True)
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", mode)
    reach(calm_guest, save, 0.2)
    # Of writes, those to the file: a kernel's event counter, which threads ring, knows no such error.
    with interference(save, f"{call}:error=EIO:when=3", path=nameless(save, states) if call == "write" else None):
        assert_disk_failure(save, f"cannot {call} ", "Input/output error")


@pytest.mark.parametrize("mode", MODES)
def test_interrupted_calls_are_made_again(calm_guest: Guest, states: Path, start_save: Start, mode: str) -> None:
    calm_guest.capabilities(return_path=True)
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", mode)
    reach(calm_guest, save, 0.2)
    with interference(save, "read:error=EINTR:when=1+2", "poll:error=EINTR:when=1+5", "fsync:error=EINTR:when=1"):
        assert save.status() == 0, save.stderr()
    assert calm_guest.wait_status()["status"] == "completed"
    assert_whole(states / "s")


def test_a_slow_disk_is_waited_for_in_little_memory(
    tmp_path: Path, states: Path, qemu72: str, start_save: Start
) -> None:
    """96 MB that do not compress come far faster than the disk takes them."""
    with Guest(tmp_path, qemu=qemu72, memory=192, fill=96, dirty=0) as guest:
        guest.wait_ticks(1)
        guest.capabilities(return_path=True)
        guest.qmp("migrate-set-parameters", max_bandwidth=0)
        save = start_save(guest, states / "s", EXEC_MODE, wrapper=inject("write:delay_enter=40ms"))
        largest = 0
        while not save.ended():
            largest = max(largest, peak_memory(child_of(save.pid)))
        assert save.status() == 0, save.stderr()
        assert guest.wait_status()["status"] == "completed"
    assert_whole(states / "s")
    assert 0 < largest < 150 << 20


@contextmanager
def interference(save: Save, *calls: str, path: str | None = None) -> Iterator[None]:
    """The same for a save that is on its way; with `path`, for calls on that file alone."""
    words = ["strace", "-f", "-o", "/dev/null", *(word for call in calls for word in ("-e", f"inject={call}"))]
    words += ["-P", path] if path else []
    with subprocess.Popen([*words, "-p", str(save.pid)], stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        try:
            yield
        finally:
            tracer.terminate()
            tracer.communicate()


def nameless(save: Save, folder: Path) -> str:
    """The path, as strace knows it, of the file that the save writes, which has no name yet."""
    links = []
    for entry in Path(f"/proc/{save.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            links.append(os.readlink(entry))
    [found] = (link for link in links if link.startswith(f"{folder}/") and link.endswith(" (deleted)"))
    return found.removesuffix(" (deleted)")


def peak_memory(pid: int) -> int:
    """The most memory that the process has had resident, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
