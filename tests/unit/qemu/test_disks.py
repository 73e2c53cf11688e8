"""A disk is told by a name that a file or a peer gives: nothing is opened but what a disk can be in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError
from statepipe.qemu.disks import WHOLE, fingerprint
from statepipe.qemu.guard import Word, judge, named
from statepipe.qemu.images import Image, Images

LOOK = "import json, sys; from statepipe.qemu.disks import fingerprint; print(json.dumps(fingerprint(sys.argv[1])))"


def looked_at(path: object) -> dict[str, object]:
    """The fingerprint, taken by a process that may be killed if it waits."""
    done = subprocess.run([sys.executable, "-P", "-c", LOOK, str(path)], capture_output=True, text=True, timeout=30)
    assert not done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_fifo_is_no_disk_and_lets_no_writer_go_on(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert looked_at(fifo)["unknown"] == "it is not a regular file or a block device"
    with pytest.raises(OSError):
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


def test_a_socket_a_folder_and_a_device_are_no_disks(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "socket", tmp_path, "/dev/zero", "/dev/tty", "/dev/ptmx"):
            assert looked_at(path)["unknown"] == "it is not a regular file or a block device"


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/kmsg", "/sys/kernel/uevent_seqnum"])
def test_what_the_kernel_answers_is_no_disk(path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"{path} is not here")
    assert "unknown" in fingerprint(path)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", ""])
def test_a_name_that_is_none_is_told(path: str) -> None:
    assert "unknown" in fingerprint(path)


def test_no_other_file_than_qemus_is_looked_at(tmp_path: Path) -> None:
    """Not even to say whether it is there."""
    disk = {"path": str(tmp_path / "not there"), "size": 1, "mtime_ns": 1, "samples_blake3": ""}
    its = Images((Image(str(tmp_path / "its own"), "file"),))
    for saved in (disk, {"path": disk["path"], "unknown": "another user's"}):
        with pytest.raises(StatepipeError, match=r"lacks disks that the guest had: .*not there$"):
            judge([saved], its, Word(), str)
        judge([saved], its, Word(forced=[str(disk["path"])]), str)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_disk_by_another_name_is_the_same(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"it")
    link(image, tmp_path / "link")
    saved, its = fingerprint(str(tmp_path / "link")), Images((Image(str(image), "file"),))
    judge([saved], its, Word(), str)
    image.write_bytes(b"is")
    with pytest.raises(StatepipeError, match="its content changed"):
        judge([saved], its, Word(), str)


@pytest.mark.parametrize(
    "word", ["{}", "file={},if=virtio", '{{"driver": "file", "filename": "{}"}}', "driver=qcow2,file.filename={}"]
)
def test_a_command_line_names_its_disks(tmp_path: Path, word: str) -> None:
    disk = {"path": str(tmp_path / "image")}
    assert named([disk], ["qemu", "-drive", word.format(disk["path"])], Word()) == [disk]
    assert named([disk], ["qemu", "-drive", word.format(tmp_path / "other")], Word()) == []


def test_a_copy_has_the_same_content_whether_it_is_sparse_or_not(tmp_path: Path) -> None:
    """Holes are zeros; where in the image a block lies counts."""
    sparse, full, other = (tmp_path / name for name in ("sparse", "full", "other"))
    for path, at in ((sparse, 300_000), (full, 300_000), (other, 300_001)):
        with path.open("wb") as file:
            file.truncate(3_000_001)
            file.seek(at)
            file.write(b"data")
    full.write_bytes(full.read_bytes())
    contents = [fingerprint(str(path))["content_blake3"] for path in (sparse, full, other)]
    assert contents[0] == contents[1] != contents[2]


def test_of_an_image_with_much_in_it_only_samples_are_read(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(WHOLE * 1000)
    assert "content_blake3" in fingerprint(str(image))
    with image.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
        for at in range(0, WHOLE + 1, 1 << 20):
            file.seek(at)
            file.write(b"x" * (1 << 20))
    assert "content_blake3" not in fingerprint(str(image))
