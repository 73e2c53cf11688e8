"""Disks that are full, for tests that may mount."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
    """It must not be in use."""
    subprocess.run(["umount", folder], check=True)
