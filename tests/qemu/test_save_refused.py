"""save to a place that no file can be made in, and what lies about there."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.harness import EXEC, Guest, assert_runs_on, statepipe_command, wait_for
from tests.qemu.saving import EXEC_MODE, QMP_MODE, STREAM, Save, assert_whole, child_of, reach, slow_down
from tests.statefiles import cut, noisy_stream, state_file

Start = Callable[..., Save]

MODES = [EXEC_MODE, QMP_MODE]


def make_folder(path: Path) -> Path:
    """A folder in the file's place."""
    path.mkdir()
    return path


def make_pipe(path: Path) -> Path:
    """A named pipe in the file's place."""
    os.mkfifo(path)
    return path


def make_dangling_link(path: Path) -> Path:
    """A link into a folder that is not there."""
    path.symlink_to(path.parent / "absent" / "s")
    return path


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing folder": (lambda path: path / "s", "No such file or directory"),
    "a folder": (make_folder, "is not a regular file"),
    "a device": (lambda _: Path("/dev/null"), "is not a regular file"),
    "a pipe": (make_pipe, "is not a regular file"),
    "a file as folder": (lambda path: Path("/etc/passwd/s"), "Not a directory"),
    "a dangling link": (make_dangling_link, "No such file or directory"),
    "a name too long": (lambda path: path.with_name("s" * 300), "File name too long"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make", "reason"), PLACES.values(), ids=PLACES.keys())
def test_a_place_for_no_file_is_refused_and_the_guest_runs_on(
    guest: Guest, states: Path, start_save: Start, make: Callable[[Path], Path], reason: str, mode: str
) -> None:
    guest.capabilities(return_path=True)
    path = make(states / "s")
    assert_refused(start_save(guest, path, mode), reason)


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_a_qemu_has_open_is_not_replaced(guest: Guest, start_save: Start, mode: str) -> None:
    """The guest's own, or another's."""
    guest.capabilities(return_path=True)
    before = guest.image.read_bytes()
    assert_refused(start_save(guest, guest.image, mode), "is a disk image that a QEMU has open")
    assert guest.image.read_bytes() == before


@pytest.mark.parametrize("mode", MODES)
def test_the_state_of_another_guest_is_not_replaced(
    qemu72: str, tmp_path: Path, states: Path, start_save: Start, mode: str
) -> None:
    """Unless told: --overwrite. The guest's own older state is."""
    (states / "s").write_bytes(before := state_file(cut(noisy_stream(), 2), header={"name": "web"}))
    with Guest(tmp_path, qemu=qemu72, args=["-name", "debug-threads=on,guest=vm1"]) as guest:
        guest.wait_ticks(1)
        guest.capabilities(return_path=True)
        save = start_save(guest, states / "s", mode)
        assert save.status() == 2
        assert "s exists already, and it is the state of another guest, web, and this one is vm1" in save.stderr()
        assert (states / "s").read_bytes() == before
        guest.wait_status("failed", "none")
        assert_runs_on(guest)
        assert start_save(guest, states / "s", mode, "--overwrite").status() == 0
        guest.wait_status("completed")
        guest.qmp("cont")
        assert start_save(guest, states / "s", mode).status() == 0
    assert_whole(states / "s")


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_that_is_not_writable_is_refused(guest: Guest, states: Path, start_save: Start, mode: str) -> None:
    guest.capabilities(return_path=True)
    states.chmod(0o500)
    drop = "setpriv --bounding-set=-dac_override,-dac_read_search" if os.geteuid() == 0 else ""
    assert_refused(start_save(guest, states / "s", mode, wrapper=drop), "Permission denied")


def test_a_file_system_mounted_read_only_is_refused(
    guest: Guest, small_disk: Callable[[int], Path], start_save: Start
) -> None:
    guest.capabilities(return_path=True)
    folder = small_disk(1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    assert_refused(start_save(guest, folder / "s", EXEC_MODE), "Read-only file system")


def assert_refused(save: Save, reason: str) -> None:
    """It says why, and QEMU's guest runs on."""
    assert save.status() == 1, save.stderr()
    lines = save.stderr().splitlines()
    assert lines[0].startswith("statepipe: save: error: ")
    assert reason in lines[0]
    assert all(line.startswith("statepipe: ") for line in lines), save.stderr()
    save.guest.wait_status("failed", "none")  # the latter where QEMU was told nothing
    assert_runs_on(save.guest)


def test_what_a_killed_save_left_is_swept(guest: Guest, states: Path, start_save: Start) -> None:
    (states / ".s.123.part").write_bytes(b"of one that was killed")
    (states / ".s.124.older.part").write_bytes(b"of another")
    assert start_save(guest, states / "s", EXEC_MODE).status() == 0
    assert_whole(states / "s")


def test_what_another_save_still_writes_is_left_alone(guest: Guest, states: Path, start_save: Start) -> None:
    with (states / ".s.123.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert start_save(guest, states / "s", EXEC_MODE).status() == 0
    assert {path.name for path in states.iterdir()} == {"s", ".s.123.part"}


def test_what_cannot_be_swept_is_no_obstacle(guest: Guest, states: Path, start_save: Start) -> None:
    """In a shared folder another user may put anything there."""
    os.mkfifo(states / ".s.1.part")
    (states / ".s.2.part").mkdir()
    (states / ".s.3.part").symlink_to("/etc/passwd")
    assert start_save(guest, states / "s", EXEC_MODE).status() == 0
    assert (states / "s").is_file()


def without_nameless_files(folder: Path) -> str:
    """strace that refuses O_TMPFILE in the folder, as NFS and FAT do. The looks before are at name and folder."""
    return f"strace -f -qq -o /dev/null -P {folder} -e inject=openat:error=EOPNOTSUPP:when=4"


@pytest.mark.parametrize("mode", MODES)
def test_a_file_system_without_nameless_files_serves(guest: Guest, states: Path, start_save: Start, mode: str) -> None:
    guest.capabilities(return_path=True)
    save = start_save(guest, states / "s", mode, wrapper=without_nameless_files(states))
    wait_for("the temporary name", lambda: save.ended() or list(states.glob(".s.*.part")))
    assert save.status() == 0, save.stderr()
    assert_whole(states / "s")


def test_a_save_killed_on_such_a_file_system_is_swept_by_the_next(
    calm_guest: Guest, states: Path, start_save: Start
) -> None:
    calm_guest.capabilities(return_path=True)
    slow_down(calm_guest)
    save = start_save(calm_guest, states / "s", EXEC_MODE, wrapper=without_nameless_files(states))
    reach(calm_guest, save, 0.3)
    (left,) = states.iterdir()
    os.kill(child_of(save.pid), signal.SIGKILL)
    assert save.status() != 0
    assert calm_guest.wait_status()["status"] == "failed"
    assert list(states.iterdir()) == [left]
    calm_guest.qmp("migrate-set-parameters", max_bandwidth=STREAM * 10, downtime_limit=300)
    calm_guest.wait_run_state("running")
    assert start_save(calm_guest, states / "s", EXEC_MODE).status() == 0
    assert_whole(states / "s")


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "</dev/null", "<&-"])
def test_a_shell_that_takes_qemus_pipe_away_is_no_success(
    guest: Guest, states: Path, start_save: Start, redirection: str
) -> None:
    """Without its pipe back, QEMU's return path cannot be answered; without the one to us there is no stream."""
    guest.capabilities(return_path=True)
    save = start_save(guest, states / "s", EXEC_MODE, before=f"exec {redirection}")
    assert save.status() != 0
    assert "Traceback" not in save.stderr()
    assert ": error: " in save.stderr()
    assert guest.wait_status()["status"] == "failed"
    assert_runs_on(guest)
    assert list(states.iterdir()) == []


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_nobody_to_tell_is_no_failure(guest: Guest, states: Path, start_save: Start, redirection: str) -> None:
    guest.capabilities(return_path=True)
    save = start_save(guest, states / "s", EXEC_MODE, before=f"exec {redirection}")
    assert save.status() == 0
    assert guest.wait_status()["status"] == "completed"
    assert_whole(states / "s")


def test_a_terminal_is_refused(states: Path) -> None:
    """Somebody tries it by hand."""
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [*statepipe_command(), "save", states / "s"], stdin=theirs, capture_output=True, text=True, timeout=30
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert "standard input is a terminal" in done.stderr
    assert list(states.iterdir()) == []


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_state_does_not_go_back_to_its_qemu(guest: Guest, name: str) -> None:
    """It reads nothing there, and the save would wait for ever."""
    guest.qmp("migrate", uri=f"exec:exec {EXEC} save {name}")
    assert guest.wait_status()["status"] == "failed"
    assert_runs_on(guest)
    assert "standard output is connected to QEMU" in guest.stderr()
