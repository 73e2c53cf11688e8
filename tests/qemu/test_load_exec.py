"""load as QEMU's own filter: -incoming "exec:exec statepipe load FILE"."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, QmpError, assert_continues
from tests.qemu.loading import MEMORY, Saved, assert_never_ran, load_uri, run_qemu, save_guest
from tests.statefiles import layout, seal, state_file


def destination(folder: Path, saved: Saved, *options: str, qemu: str = "", args: tuple[str, ...] = ()) -> Guest:
    uri = load_uri(saved, *options)
    return Guest(folder, qemu=qemu or saved.qemu, memory=MEMORY, image=saved.image, incoming=uri, args=args)


def test_the_guest_goes_on_where_it_was(tmp_path: Path, state: Saved) -> None:
    with destination(tmp_path, state) as guest:
        guest.wait_ticks(3)
        assert guest.run_state() == "running"
        assert_continues(state.before, guest.serial())
        assert guest.stderr() == ""


def test_a_paused_guest_stays_paused_and_can_go_on(tmp_path: Path, paused72: Saved) -> None:
    with destination(tmp_path, paused72) as guest:
        assert guest.wait_run_state("paused") == "paused"
        assert guest.serial() == ""
        guest.qmp("cont")
        guest.wait_ticks(3)
        assert_continues(paused72.before, guest.serial())


@pytest.mark.parametrize("form", ["raw", "zst", "gz"])
def test_a_stream_of_other_making_is_loaded_with_a_warning(tmp_path: Path, state72: Saved, form: str) -> None:
    stream = state72.stream()
    data = {"raw": stream, "zst": zstd(stream), "gz": gzip.compress(stream, 1)}[form]
    with destination(tmp_path, state72.damaged(tmp_path, data)) as guest:
        guest.wait_ticks(2)
        assert_continues(state72.before, guest.serial())
        assert "warning: " in guest.stderr() and "not a state file" in guest.stderr()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-1cq"], input=data, capture_output=True, check=True).stdout


def test_a_state_of_7_2_goes_on_in_a_newer_one_with_its_machine_type(tmp_path: Path, qemu72: str, newer: str) -> None:
    machine = ("-machine", "pc-i440fx-7.2")
    saved = save_guest(tmp_path, qemu72, args=machine)
    with destination(tmp_path, saved, qemu=newer, args=machine) as guest:
        guest.wait_ticks(3)
        assert_continues(saved.before, guest.serial())


def test_with_s_a_guest_whose_disk_is_locked_can_go_on_later(tmp_path: Path, newer: str) -> None:
    """As the manual says. Without -S, QEMU 10 and 11 answer `cont`, and never run it. 7.2 locks disks earlier."""
    state = save_guest(tmp_path, newer)
    with destination(tmp_path, state, args=("-S",)) as guest:
        with Guest(tmp_path, qemu=state.qemu, image=state.image, args=["-S"]):
            assert guest.wait_status()["status"] == "completed" and guest.wait_run_state("paused")
            with pytest.raises(QmpError, match="lock"):
                guest.qmp("cont")
        guest.qmp("cont")
        guest.wait_ticks(2)
        assert_continues(state.before, guest.serial())


# --- what must never run


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flip(data: bytes, share: float) -> bytes:
    at = int(len(data) * share)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


DAMAGES = {
    "cut in the first frame": lambda data: cut(data, 0.01),
    "cut in the midst": lambda data: cut(data, 0.5),
    "without its last byte": lambda data: data[:-1],
    "without its trailer": lambda data: data[: layout(data)[-2].start],
    "a bit flipped early": lambda data: flip(data, 0.02),
    "a bit flipped in the midst": lambda data: flip(data, 0.5),
    "a bit flipped in the last frame": lambda data: flip(data, (layout(data)[-3].start + 50) / len(data)),
    "frames swapped": lambda data: swap(data, 2, 3),
    "the last frame too early": lambda data: swap(data, 3, len(layout(data)) - 3),
    "empty": lambda data: b"",
    "random": lambda data: bytes(range(256)) * 100,
    "libvirt's": lambda data: b"LibvirtQemudSave" + bytes(5000),
}


def swap(data: bytes, a: int, b: int) -> bytes:
    first, second = layout(data)[a], layout(data)[b]
    middle = data[first.end : second.start]
    swapped = data[second.start : second.end] + middle + data[first.start : first.end]
    return data[: first.start] + swapped + data[second.end :]


@pytest.mark.parametrize("damage", DAMAGES.keys())
def test_a_damaged_file_never_runs_and_ends_qemu(tmp_path: Path, state72: Saved, damage: str) -> None:
    assert_refused(tmp_path, state72.damaged(tmp_path, DAMAGES[damage](state72.file.read_bytes())))


@pytest.mark.parametrize("damage", ["cut in the midst", "a bit flipped in the midst", "empty"])
def test_a_damaged_file_never_runs_and_ends_qemu_10(tmp_path: Path, state10: Saved, damage: str) -> None:
    assert_refused(tmp_path, state10.damaged(tmp_path, DAMAGES[damage](state10.file.read_bytes())))


def assert_refused(folder: Path, saved: Saved, *options: str, status: int = 3) -> str:
    """statepipe says why and ends with `status`; QEMU ends with 1 without an instant of the guest."""
    uri = load_uri(saved, *options).replace("; exec", ";", 1) + f"; echo $? >{folder}/code"
    done = run_qemu(folder, saved, uri)
    assert done.returncode == 1
    assert_never_ran(folder)
    assert int((folder / "code").read_text()) == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("statepipe: load: ")]
    assert sum("error: " in line for line in lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("share", [0.3, 0.9999])
def test_a_cut_raw_stream_never_runs(tmp_path: Path, state72: Saved, share: float) -> None:
    """0.9999 is in the vmdesc, where QEMU alone would run it."""
    said = assert_refused(tmp_path, state72.damaged(tmp_path, cut(state72.stream(), share)))
    assert "stops before its end" in said and "byte " in said


def test_a_whole_stream_under_the_trailer_of_a_longer_one_never_runs(tmp_path: Path, state72: Saved) -> None:
    """Two files spliced, every sum in order: QEMU must not see the first one's end while the second's is waited for."""
    stream = state72.stream()
    mark = stream.rindex(b"\0\x06\0\1")
    file = state_file([stream[: mark + 1], b"", stream[mark + 1 :]])
    frames = [(file[piece.start : piece.end], piece.content) for piece in layout(file)[:-2]]
    spliced = seal(frames, {"end_mark": mark + 1_000_000, "blake3": "0" * 64, "disks": []})
    assert "expected 0000" in assert_refused(tmp_path, state72.damaged(tmp_path, spliced))


def test_a_missing_file_ends_qemu(tmp_path: Path, state72: Saved) -> None:
    gone = Saved(tmp_path / "none", state72.image, "", state72.qemu)
    assert "No such file" in assert_refused(tmp_path, gone, status=1)


def test_a_changed_disk_is_refused_by_name_unless_forced(tmp_path: Path, state72: Saved) -> None:
    status, image = state72.image.stat(), state72.image.read_bytes()
    try:
        state72.image.write_bytes(image[:-1] + b"!")
        said = assert_refused(tmp_path, state72, status=1)
        assert f"{state72.image}: its content changed" in said and "--force DISK" in said
        with destination(tmp_path, state72, "--force", str(state72.image)) as guest:
            guest.wait_ticks(2)
            assert_continues(state72.before, guest.serial())
    finally:
        state72.image.write_bytes(image)
        os.utime(state72.image, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_machine_with_other_memory_never_runs(tmp_path: Path, state72: Saved) -> None:
    done = run_qemu(tmp_path, state72, load_uri(state72), memory=MEMORY * 2)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert_never_ran(tmp_path)
