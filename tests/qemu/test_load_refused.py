"""load FILE -- QEMU… of what must never run: damage, changed disks, other machines, programs that are no QEMU."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.harness import assert_continues, run_statepipe, statepipe_command
from tests.qemu.loading import (
    MEMORY,
    Load,
    Saved,
    assert_never_ran,
    end_qemu,
    loaded,
    qemu_command,
    run_load,
)
from tests.statefiles import layout, seal


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_early(data: bytes) -> bytes:
    return data[:40_000]


def flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def flip_last(data: bytes) -> bytes:
    at = layout(data)[-3].end - 9
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def nothing(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, cut_early, flip, flip_last, nothing])
def test_a_damaged_file_never_runs(tmp_path: Path, state72: Saved, damage: Callable[[bytes], bytes]) -> None:
    assert_damage_is_told(tmp_path, state72.damaged(tmp_path, damage(state72.file.read_bytes())))


@pytest.mark.parametrize("damage", [cut, flip_last])
def test_a_damaged_file_never_runs_in_10(tmp_path: Path, state10: Saved, damage: Callable[[bytes], bytes]) -> None:
    assert_damage_is_told(tmp_path, state10.damaged(tmp_path, damage(state10.file.read_bytes())))


@pytest.mark.parametrize("share", [0.3, 0.9999])
def test_a_cut_raw_stream_never_runs(tmp_path: Path, state72: Saved, share: float) -> None:
    stream = state72.stream()
    assert_damage_is_told(tmp_path, state72.damaged(tmp_path, stream[: int(len(stream) * share)]))


def assert_damage_is_told(folder: Path, saved: Saved) -> None:
    done = run_load(folder, saved)
    assert done.returncode == 3, done.stderr
    assert "error: " in done.stderr and "byte " in done.stderr and "Traceback" not in done.stderr
    assert_never_ran(folder)


def test_a_changed_disk_is_refused_before_qemu_starts_unless_forced(tmp_path: Path, state72: Saved) -> None:
    image = state72.image.read_bytes()
    status = state72.image.stat()
    try:
        state72.image.write_bytes(image[:-4096] + b"changed".ljust(4096, b"\0"))
        done = run_load(tmp_path, state72)
        assert done.returncode == 1
        assert str(state72.image) in done.stderr and "its content" in done.stderr and "--force" in done.stderr
        assert not (tmp_path / "serial").exists()
        with loaded(tmp_path, state72, "--force", str(state72.image)) as guest:
            guest.wait_ticks(2)
            assert_continues(state72.before, guest.serial())
    finally:
        state72.image.write_bytes(image)
        os.utime(state72.image, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_another_disk_than_the_guests_is_refused(tmp_path: Path, state72: Saved) -> None:
    """Its own is unchanged, but this QEMU has a copy of it, which may be older or newer than the memory."""
    other = tmp_path / "other"
    other.write_bytes(state72.image.read_bytes())
    done = run_load(tmp_path, replace(state72, image=other))
    assert done.returncode == 1, done.stderr
    assert f"lacks disks that the guest had: {state72.image}" in done.stderr and "--force" in done.stderr
    assert_never_ran(tmp_path)


def test_a_fifo_that_a_state_names_as_a_disk_is_never_opened(tmp_path: Path, state72: Saved) -> None:
    """Its writer would be let go on by any reader, and a reader would wait for it for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    disk = {"path": str(fifo), "format": "raw", "size": 0, "mtime_ns": None, "samples_blake3": "0" * 64}
    crafted = state72.damaged(tmp_path, renamed(state72.file.read_bytes(), [disk]))
    waiting = subprocess.Popen(["sh", "-c", ': >"$0"', fifo])
    try:
        done = run_load(tmp_path, crafted)
        assert done.returncode == 1, done.stderr
        assert str(fifo) in done.stderr
        assert waiting.poll() is None
    finally:
        waiting.kill()
        waiting.wait()
    assert_never_ran(tmp_path)


def renamed(data: bytes, disks: list[dict[str, Any]]) -> bytes:
    """The state file with other disks in its trailer."""
    pieces = layout(data)
    trailer = pieces[-2]
    facts = json.loads(data[trailer.start + 8 + 26 : trailer.end]) | {"disks": disks}
    return seal([(data[piece.start : piece.end], piece.content) for piece in pieces[:-2]], facts)


@pytest.mark.parametrize(("args", "part"), [(["-cpu", "max"], "cpu"), (["-smp", "2"], "smp")])
def test_another_processor_is_refused_by_the_command_lines(
    tmp_path: Path, state72: Saved, args: list[str], part: str
) -> None:
    """QEMU itself would run the guest on it, and the state says nothing of it but QEMU's command line."""
    done = run_load(tmp_path, state72, args=args)
    assert done.returncode == 1, done.stderr
    assert "this QEMU's machine is not the guest's: " in done.stderr and f"--force {part}" in done.stderr
    assert_never_ran(tmp_path)
    with loaded(tmp_path, state72, "--force", part, args=args) as guest:
        guest.wait_ticks(1)
        assert "loaded all the same, because of --force" in guest.stderr()


def test_another_amount_of_memory_never_runs(tmp_path: Path, state: Saved) -> None:
    done = run_load(tmp_path, state, memory=MEMORY * 2)
    assert done.returncode == 6, done.stderr
    assert "statepipe: load: error: QEMU ended with status 1 while loading" in done.stderr
    assert "Traceback" not in done.stderr
    assert_never_ran(tmp_path)


def test_another_machine_type_is_told_by_the_stream_s_own_word(tmp_path: Path, state: Saved) -> None:
    done = run_load(tmp_path, state, args=["-machine", "q35"])
    assert done.returncode == 1, done.stderr
    assert "statepipe: load: error: this QEMU's machine is pc-q35-" in done.stderr
    assert "the guest's was pc-i440fx-" in done.stderr
    assert_never_ran(tmp_path)


def test_a_disk_that_another_qemu_writes_is_refused(tmp_path: Path, state72: Saved) -> None:
    """QEMU takes the image's lock as its guest is to run, and says no, but not of which image."""
    with loaded(tmp_path, state72) as guest:
        guest.wait_ticks(1)
        second = tmp_path / "second"
        second.mkdir()
        done = run_load(second, state72)
        assert done.returncode == 6, done.stderr
        assert "lock" in done.stderr and "is open in qemu-system-" in done.stderr
        assert_never_ran(second)
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("/nonexistent/qemu", "cannot start /nonexistent/qemu: No such file or directory"),
        ("/etc/passwd", "cannot start /etc/passwd: Permission denied"),
        ("/bin/true", "QEMU ended with status 0 while loading"),
        ("/bin/true", "a QEMU that becomes a daemon (-daemonize) ends like this"),
        ("/bin/cat", "QEMU ended with status 1 while loading"),
    ],
)
def test_a_program_that_is_no_qemu_is_told(tmp_path: Path, state72: Saved, program: str, says: str) -> None:
    done = run_load(tmp_path, state72, qemu=program)
    assert done.returncode == 6
    assert says in done.stderr and "Traceback" not in done.stderr


def test_an_option_that_qemu_refuses_is_told(tmp_path: Path, state72: Saved) -> None:
    done = run_load(tmp_path, state72, args=["-nonsense"])
    assert done.returncode == 6
    assert "-nonsense" in done.stderr and "QEMU ended with status 1 while loading" in done.stderr


@pytest.mark.parametrize("flag", ["-incoming", "--incoming"])
def test_a_command_with_an_incoming_of_its_own_is_refused(tmp_path: Path, state72: Saved, flag: str) -> None:
    done = run_load(tmp_path, state72, args=[flag, "defer"])
    assert done.returncode == 2
    assert "its own -incoming" in done.stderr
    assert not (tmp_path / "serial").exists()


def test_a_qemu_that_is_killed_while_loading_is_told(tmp_path: Path, state72: Saved) -> None:
    with Load(tmp_path, state72, state72.file, "--", *qemu_command(tmp_path, state72)) as load:
        load.reach(0.5)
        end_qemu(tmp_path)
        assert load.status() == 6, load.stderr()
        assert "QEMU ended with status -9 while loading" in load.stderr()
    assert_never_ran(tmp_path)


def test_a_signal_as_qemu_starts_leaves_no_qemu_behind(tmp_path: Path, state72: Saved) -> None:
    """The first thing this QEMU does is to tell its parent to end."""
    wrapper = tmp_path / "qemu"
    wrapper.write_text(f'#!/bin/sh\necho $$ >{tmp_path}/pid\nkill -TERM $PPID\nexec "{state72.qemu}" "$@"\n')
    wrapper.chmod(0o755)
    command = [*statepipe_command(), "load", state72.file, "--", *qemu_command(tmp_path, state72, qemu=str(wrapper))]
    try:
        assert subprocess.run(command, capture_output=True, timeout=30).returncode == 143
        assert_never_ran(tmp_path)
    finally:
        end_qemu(tmp_path)


@pytest.mark.parametrize("words", [["--detach"], ["--qmp", "/none", "--detach"]])
def test_detach_without_a_command_is_a_usage_error(state72: Saved, words: list[str]) -> None:
    assert run_statepipe("load", *words, state72.file).returncode == 2


def test_a_command_and_a_monitor_is_a_usage_error(state72: Saved) -> None:
    assert run_statepipe("load", "--qmp", "/none", state72.file, "--", "qemu").returncode == 2
