"""The overlays of a clone as files: made once, never over another file, and removed where the guest never ran."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError, UsageError
from statepipe.qemu.images import Image, Images
from statepipe.qemu.overlays import Clone


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A QEMU with two disks."""
    program = tmp_path / "bin" / "qemu-system"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    return [str(program), *(word for name in "ab" for word in ("-drive", f"file={tmp_path}/{name},format=raw"))]


def fail(text: str) -> None:
    raise AssertionError(text)


needs_tool = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@needs_tool
def test_overlays_are_made_and_removed_with_their_folder(tmp_path: Path, command: list[str]) -> None:
    clone = Clone(f"{tmp_path}/c")
    for _ in range(2):
        words = clone.of(command)
        assert words[2::2] == [f"format=qcow2,file={tmp_path}/c/{name}.qcow2" for name in "ab"]
        assert clone.where == f"what the guest writes is in {tmp_path}/c/a.qcow2, {tmp_path}/c/b.qcow2"
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "c").iterdir()} == {0o600}
        clone.undo(fail)
        assert not (tmp_path / "c").exists() and clone.where == ""


@needs_tool
def test_what_others_have_in_the_folder_stays(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "b.qcow2").write_text("of another")
    clone = Clone(f"{tmp_path}/c")
    with pytest.raises(StatepipeError, match=r"/c/b\.qcow2 exists already"):
        clone.of(command)
    assert (tmp_path / "c" / "a.qcow2").exists()
    clone.undo(fail)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["b.qcow2"]


@needs_tool
def test_a_folder_that_cannot_be_removed_is_told_of(tmp_path: Path, command: list[str]) -> None:
    clone, told = Clone(f"{tmp_path}/c"), list[str]()
    clone.of(command)
    (tmp_path / "c" / "note").touch()
    clone.undo(told.append)
    assert told == [f"the folder {tmp_path}/c stays: Directory not empty"]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["note"]


@needs_tool
def test_a_folder_that_was_removed_under_way_is_not_said_to_stay(tmp_path: Path, command: list[str]) -> None:
    clone = Clone(f"{tmp_path}/c")
    clone.of(command)
    shutil.rmtree(tmp_path / "c")
    clone.undo(fail)


@needs_tool
def test_a_disk_that_cannot_be_read_is_named(tmp_path: Path, command: list[str]) -> None:
    os.unlink(tmp_path / "a")
    with pytest.raises(
        StatepipeError, match=f"{tmp_path}/a cannot be the base of a clone: cannot read it: No such file"
    ):
        Clone(f"{tmp_path}/c").of(command)


@needs_tool
def test_what_qemu_img_says_is_told(tmp_path: Path, command: list[str]) -> None:
    command = [word.replace("format=raw", "format=qcow2") for word in command]
    clone = Clone(f"{tmp_path}/c")
    with pytest.raises(StatepipeError, match=f"could not make an overlay over {tmp_path}/a: .*not in qcow2 format"):
        clone.of(command)
    clone.undo(fail)


def test_without_qemu_img_the_package_is_named(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StatepipeError, match="--clone needs qemu-img, which is not installed") as error:
        Clone(f"{tmp_path}/c").of(command)
    assert error.value.hint == "install qemu-utils" and not (tmp_path / "c").exists()


def test_a_guest_without_disks_needs_nothing(tmp_path: Path, command: list[str]) -> None:
    clone = Clone(f"{tmp_path}/c")
    assert clone.of(command[:1]) == command[:1] and clone.where == "" and not (tmp_path / "c").exists()


def test_only_a_qemu_s_options_are_changed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sh is not a QEMU"):
        Clone(f"{tmp_path}/c").of(["sh", "start"])
    assert Clone().of(["sh", "start"]) == ["sh", "start"]


def written_elsewhere(path: Path) -> int:
    """Lock an image as a QEMU does that writes to it; the descriptor."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))
    return fd


@needs_tool
@pytest.mark.parametrize("first", [True, False])
def test_no_clone_has_a_disk_that_is_written(tmp_path: Path, command: list[str], first: bool) -> None:
    clone = Clone(f"{tmp_path}/c")
    if first:
        fd = written_elsewhere(tmp_path / "b")
        with pytest.raises(StatepipeError, match=f"{tmp_path}/b cannot be the base of a clone") as error:
            clone.of(command)
        assert f"(process {os.getpid()})" in (error.value.hint or "")
        os.close(fd)
    clone.undo(fail)
    clone.of(command)
    shared = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 201, 1, 0)
    with (tmp_path / "b").open("r+b") as file:  # as a QEMU looks that is about to write
        assert struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_OFD_GETLK, shared))[0] == fcntl.F_RDLCK
        clone.close()
        assert struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_OFD_GETLK, shared))[0] == fcntl.F_UNLCK
    clone.undo(fail)


@needs_tool
def test_the_disk_guard_sees_each_disk_in_the_place_of_its_overlay(tmp_path: Path, command: list[str]) -> None:
    clone = Clone(f"{tmp_path}/c")
    clone.of(command)
    cd = Image(f"{tmp_path}/cd", "file", ("ide 2",), read_only=True)
    its = [Image(f"{tmp_path}/c/{name}.qcow2", "file", (f"pci {name}",)) for name in "ab"]
    bases = [Image(f"{tmp_path}/{name}", "file", (), read_only=True) for name in "ab"]
    seen = clone.through(Images((*its, *bases, cd)))
    assert seen.rows == (*(Image(f"{tmp_path}/{name}", "file", (f"pci {name}",)) for name in "ab"), cd)
    other = Image(f"{tmp_path}/b", "file", ("pci c",))
    with pytest.raises(StatepipeError, match=re.escape(f"that have no overlay: {tmp_path}/b")):
        clone.through(Images((its[0], bases[0], other)))
    clone.undo(fail)
