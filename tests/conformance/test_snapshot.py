"""What a save that failed still reads of its QEMU's stream: no more than shows that it is no snapshot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.statefiles import noisy_stream
from tests.streams import LAST, command, head, ram, ram_start

SCRIPT = """
import os, sys
from statepipe.formats.qemu.stream import QemuStream
from statepipe.qemu.snapshot import part
from statepipe.wakeups import waiting
begun = bytes.fromhex(sys.argv[1])
follows = QemuStream()
follows.feed(begun)
whole = waiting(0)
part(print, stream=follows)
print(whole - waiting(0))
part(print)
print(0 < whole - waiting(0) <= 1 << 16)
os.close(0)
part(print)
"""
"""With a QEMU for a parent: first where a page has come, then where nothing has been read, then where nothing can be.
"""


@pytest.fixture
def qemu(tmp_path: Path) -> str:
    """A shell with an old version, by a QEMU's name."""
    if (shell := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    return str(shutil.copy(shell, tmp_path / "qemu-system-fake"))


def test_a_stream_that_breaks_off_is_not_read_to_its_end(qemu: str) -> None:
    """QEMU would call it completed, and its guest stand still without a file."""
    begun = head() + ram_start() + ram(LAST)
    reading, writing = os.pipe()
    with open(reading, "rb") as theirs, open(writing, "wb", buffering=0) as ours:
        ours.write(begun)
        ours.write(bytes((60 << 10) - len(begun)))
        words = [qemu, "-c", '"$@"; true', "sh", sys.executable, "-P", "-c", SCRIPT, begun.hex()]
        done = subprocess.run(words, stdin=theirs, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\nTrue\n", "")


@pytest.mark.parametrize("opened", [b"", command(1)], ids=["", "with a return path"])
def test_a_guest_that_may_stand_still_is_told_of_with_what_to_type(tmp_path: Path, qemu: str, opened: bytes) -> None:
    """The disk is full once QEMU has sent all: only by the return path does it hear of that."""
    (tmp_path / "stream").write_bytes(head() + opened + noisy_stream()[len(head()) :])
    save = f"ulimit -f 8; {sys.executable} -P -m statepipe save s <stream; echo $?"
    done = subprocess.run([qemu, "-c", save], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n" and "cannot write" in done.stderr, done.stderr
    assert ("the guest is stopped; type: cont" in done.stderr) == (not opened)
    assert not (tmp_path / "s").exists()
