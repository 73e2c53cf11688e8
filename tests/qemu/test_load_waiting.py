"""load --qmp: into a QEMU that waits with -incoming defer, and into no other."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, assert_continues, assert_runs_on, run_statepipe, wait_for
from tests.qemu.loading import MEMORY, Load, Saved

NOT_STARTED = "inmigrate"


def waiting(folder: Path, saved: Saved, *args: str, incoming: str = "defer", memory: int = MEMORY) -> Guest:
    return Guest(folder, qemu=saved.qemu, memory=memory, image=saved.image, incoming=incoming, args=args)


@pytest.mark.parametrize("args", [(), ("-S",)], ids=["", "-S"])
def test_the_guest_goes_on_where_it_was(tmp_path: Path, state: Saved, args: tuple[str, ...]) -> None:
    with waiting(tmp_path, state, *args) as guest:
        done = run_statepipe("load", "--qmp", guest.socket, state.file)
        assert done.returncode == 0, done.stderr
        assert done.stderr == f"statepipe: load: {state.file} is loaded and verified; the guest is running\n"
        guest.wait_ticks(3)
        assert_continues(state.before, guest.serial())


@pytest.mark.parametrize("way", [(), ("--lazy",)], ids=["", "lazy"])
@pytest.mark.parametrize("args", [(), ("-S",)], ids=["", "-S"])
def test_a_disk_that_another_qemu_has_is_told_and_the_guest_never_runs(
    tmp_path: Path, state: Saved, args: tuple[str, ...], way: tuple[str, ...]
) -> None:
    """QEMU 10 and 11 call the load complete all the same, and without -S they answer `cont` and never run it."""
    with Guest(tmp_path, qemu=state.qemu, image=state.image, args=["-S"]), waiting(tmp_path, state, *args) as guest:
        done = run_statepipe("load", *way, "--qmp", guest.socket, state.file)
        assert done.returncode == 6 and 'QEMU refused cont: Failed to get "write" lock' in done.stderr, done.stderr
        assert f"{state.image} is open in " in done.stderr
        guest.wait()
        assert guest.serial() == ""


@pytest.mark.parametrize("args", [(), ("-S",)], ids=["", "-S"])
def test_a_paused_guest_stays_paused_and_can_go_on(tmp_path: Path, paused72: Saved, args: tuple[str, ...]) -> None:
    with waiting(tmp_path, paused72, *args) as guest:
        done = run_statepipe("load", "--qmp", guest.socket, paused72.file)
        assert done.returncode == 0, done.stderr
        assert "the guest is paused" in done.stderr
        assert guest.run_state() == "paused" and guest.serial() == ""
        guest.qmp("cont")
        guest.wait_ticks(3)
        assert_continues(paused72.before, guest.serial())


def test_a_raw_stream_is_loaded_with_a_warning(tmp_path: Path, state72: Saved) -> None:
    raw = state72.damaged(tmp_path, state72.stream())
    with waiting(tmp_path, state72) as guest:
        done = run_statepipe("load", "--qmp", guest.socket, raw.file)
        assert done.returncode == 0 and "warning: " in done.stderr
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_state_that_is_refused_at_once_leaves_qemu_waiting(tmp_path: Path, state: Saved, damage: str) -> None:
    data = state.file.read_bytes()
    bad = state.damaged(tmp_path, data[:-1] if damage == "cut" else bytes(8) + data[8:])
    if damage == "missing":
        bad.file.unlink()
    with waiting(tmp_path, state) as guest:
        done = run_statepipe("load", "--qmp", guest.socket, bad.file)
        assert done.returncode == (1 if damage == "missing" else 3)
        assert guest.run_state() == NOT_STARTED
        assert run_statepipe("load", "--qmp", guest.socket, state.file).returncode == 0
        guest.wait_ticks(2)
        assert_continues(state.before, guest.serial())


@pytest.mark.parametrize("share", [0.3, 0.95])
@pytest.mark.parametrize("args", [(), ("-S",)], ids=["", "-S"])
def test_a_damaged_state_never_runs_and_ends_qemu(
    tmp_path: Path, state: Saved, share: float, args: tuple[str, ...]
) -> None:
    data = bytearray(state.file.read_bytes())
    data[int(len(data) * share)] ^= 4
    bad = state.damaged(tmp_path, bytes(data))
    with waiting(tmp_path, state, *args) as guest:
        done = run_statepipe("load", "--qmp", guest.socket, bad.file)
        assert done.returncode == 3, done.stderr
        assert "byte " in done.stderr
        guest.wait(10)
        assert guest.serial() == ""


def test_a_disk_that_was_replaced_under_a_waiting_qemu_is_refused(tmp_path: Path, state72: Saved) -> None:
    """A copy with the right content now has the name of the disk, but QEMU would write to the file that it opened."""
    opened = state72.image.with_suffix(".opened")
    with waiting(tmp_path, state72) as guest:
        os.replace(state72.image, opened)
        try:
            shutil.copy2(opened, state72.image)
            done = run_statepipe("load", "--qmp", guest.socket, state72.file)
        finally:
            os.replace(opened, state72.image)
        assert done.returncode == 1 and f"these names now: {state72.image}" in done.stderr, done.stderr
        assert "start it again" in done.stderr
        assert guest.run_state() == NOT_STARTED
        assert run_statepipe("load", "--qmp", guest.socket, state72.file).returncode == 0


def test_another_machine_never_runs(tmp_path: Path, state: Saved) -> None:
    with waiting(tmp_path, state, memory=MEMORY * 2) as guest:
        done = run_statepipe("load", "--qmp", guest.socket, state.file)
        assert done.returncode == 6, done.stderr
        assert "Traceback" not in done.stderr
        guest.wait(10)
        assert guest.serial() == ""


def test_a_qemu_that_runs_a_guest_is_refused_and_unharmed(tmp_path: Path, state72: Saved) -> None:
    with Guest(tmp_path, qemu=state72.qemu, memory=MEMORY, fill=8, dirty=2) as guest:
        guest.wait_ticks(2)
        before = guest.settings()
        done = run_statepipe("load", "--qmp", guest.socket, state72.file)
        assert done.returncode == 6
        assert "QEMU is not waiting for an incoming migration (its guest is running)" in done.stderr
        assert "-incoming defer" in done.stderr
        assert guest.settings() == before
        assert_runs_on(guest)


def test_a_qemu_whose_guest_is_paused_is_refused_and_unharmed(tmp_path: Path, state72: Saved) -> None:
    with Guest(tmp_path, qemu=state72.qemu, memory=MEMORY, fill=8, dirty=2) as guest:
        guest.wait_ticks(2)
        guest.qmp("stop")
        assert run_statepipe("load", "--qmp", guest.socket, state72.file).returncode == 6
        assert guest.run_state() == "paused"
        guest.qmp("cont")
        assert_runs_on(guest)


def test_a_qemu_that_waits_for_another_is_refused_and_unharmed(tmp_path: Path, state: Saved) -> None:
    """With -incoming ADDRESS it may be receiving a guest from another host already."""
    folder = Path(tempfile.mkdtemp(prefix="incoming-"))
    address = folder / "socket"
    try:
        with waiting(tmp_path, state, incoming=f"unix:{address}") as guest:
            done = run_statepipe("load", "--qmp", guest.socket, state.file)
            assert done.returncode == 6, done.stderr
            assert "QEMU refused migrate-incoming" in done.stderr
            assert guest.run_state() == NOT_STARTED
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(address))
                other.sendall(state.stream())
            guest.wait_ticks(2)
            assert_continues(state.before, guest.serial())
    finally:
        address.unlink(missing_ok=True)
        folder.rmdir()


def test_a_second_load_is_refused_and_the_first_unharmed(tmp_path: Path, state72: Saved) -> None:
    extra = Path(tempfile.mkdtemp(prefix="monitor-"))
    try:
        second = f"unix:{extra}/qmp,server=on,wait=off"
        with (
            waiting(tmp_path, state72, "-qmp", second) as guest,
            Load(tmp_path, state72, "--qmp", guest.socket, state72.file) as load,
        ):
            load.reach(0.4)
            done = run_statepipe("load", "--qmp", extra / "qmp", state72.file)
            assert done.returncode == 6, done.stderr
            assert load.status() == 0, load.stderr()
            guest.wait_ticks(2)
            assert_continues(state72.before, guest.serial())
    finally:
        (extra / "qmp").unlink(missing_ok=True)
        extra.rmdir()


def test_no_monitor_is_told(tmp_path: Path, state72: Saved) -> None:
    done = run_statepipe("load", "--qmp", tmp_path / "none", state72.file)
    assert done.returncode == 6
    assert "no QMP monitor answers" in done.stderr and "Traceback" not in done.stderr


def test_a_qemu_that_is_killed_while_loading_is_told(tmp_path: Path, state72: Saved) -> None:
    with (
        waiting(tmp_path, state72) as guest,
        Load(tmp_path, state72, "--qmp", guest.socket, state72.file) as load,
    ):
        load.reach(0.4)
        guest.kill()
        assert load.status() == 6, load.stderr()
        assert "QEMU went away" in load.stderr()
        wait_for("end of QEMU", guest.ended)
