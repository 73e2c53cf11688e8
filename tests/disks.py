"""Disks that are full, for tests that may mount."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.qemu.harness import wait_for

SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@contextmanager
def tmpfs(size: int) -> Iterator[Path]:
    """A folder on a file system of its own of `size` bytes."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        or_skip("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        try:
            yield folder
        finally:
            unmount(folder)
    finally:
        folder.rmdir()


@contextmanager
def loop_disk() -> Iterator[Path]:
    """An ext4 that promises more than there is: writes succeed, and fsync says "no space left".

    It lies on a sparse file in a tmpfs too small for it, and allocates as late as ext4 does by default.
    """
    with tmpfs(4 << 20) as small, tempfile.TemporaryDirectory(prefix="loop-disk-") as folder:
        backing = small / "disk.img"
        with backing.open("wb") as file:
            file.truncate(256 << 20)
        or_skip("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", backing)
        or_skip("mount", "-o", "loop", backing, folder)
        try:
            yield Path(folder)
        finally:
            unmount(Path(folder))


def or_skip(*command: object) -> None:
    """Run a command, or skip the test where it may not."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": SBIN})
    except FileNotFoundError:
        pytest.skip(f"{words[0]} is not installed")
    if done.returncode:
        pytest.skip(f"{words[0]} is not allowed here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    """It must not be in use. A loop device lets go of its file, and a killed process of its files, a moment later than
    umount and kill return."""

    def is_done() -> bool:
        done = subprocess.run(["umount", folder], capture_output=True, text=True)
        assert not done.returncode or "busy" in done.stderr, done.stderr
        return not done.returncode

    wait_for(f"end of the use of {folder}", is_done, timeout=20)
