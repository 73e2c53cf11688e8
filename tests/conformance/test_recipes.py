"""docs/coming-from.md for people who come from CRIU, and from archives of disks: its commands, and what damage does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE
from tests.disks import SBIN, or_skip, unmount
from tests.qemu.harness import wait_for
from tests.recipes import ROOT, commands, script

Shell = Callable[..., "subprocess.CompletedProcess[str]"]

COUNTER = """
import hashlib, os, sys, time
data = os.urandom(8 << 20)
with open(sys.argv[1], "a", buffering=1) as out:
    number = 0
    while True:
        number += 1
        out.write(f"TICK {number} SUM {hashlib.sha256(data).hexdigest()}\\n")
        time.sleep(0.02)
"""
"""A process whose count and memory must go on."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs a script in an empty folder that has a key, `vol.key` and `job.key`."""
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{SBIN}", "PYTHONPATH": str(ROOT)}

    def run(text: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["sh", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE * 2
        )
        assert done.returncode == status, f"{text}\nended with {done.returncode}: {done.stderr}"
        return done

    run(script(["statepipe keygen -o vol.key", "cp vol.key job.key"], "", {}))
    return run


def typed(heading: str, words: str) -> list[str]:
    """The lines of a section that have these words."""
    found = [line for line in commands(heading) if re.search(words, line)]
    assert found, f"the page no longer has {words}"
    return found


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- disk images


def test_an_image_comes_back(shell: Shell, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "vol.img").write_bytes(data)
    shell(script(typed("Images", r"vol\.(img|state|today)"), "vol.key", {}))
    assert (tmp_path / "vol.today").read_bytes() == (tmp_path / "vol.again").read_bytes() == data


def test_of_a_damaged_archive_nothing_has_the_image_s_name(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "vol.img").write_bytes(os.urandom(3 << 20))
    packing, ours = typed("Images", "tee:vol")
    shell(script([packing], "vol.key", {}))
    flip(tmp_path / "vol.state")
    shell(script([ours], "vol.key", {}), status=3)
    assert not (tmp_path / "vol.again").exists()


# --- snapshots


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A folder with `disks/now`, a read-only snapshot, and `copies`, both on a btrfs."""
    image = tmp_path / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    place = tmp_path / "mounted"
    place.mkdir()
    or_skip("mkfs.btrfs", "-q", image)
    or_skip("mount", "-o", "loop", image, place)
    try:
        or_skip("btrfs", "subvolume", "create", place / "vm")
        (place / "vm" / "disk.raw").write_bytes(os.urandom(6 << 20))
        for name in ("disks", "copies"):
            (place / name).mkdir()
            (tmp_path / name).symlink_to(place / name)
        or_skip("btrfs", "subvolume", "snapshot", "-r", place / "vm", place / "disks" / "now")
        yield place
    finally:
        unmount(place)


def test_a_snapshot_comes_back(shell: Shell, btrfs: Path) -> None:
    shell(script(typed("Images", "btrfs"), "vol.key", {}))
    original, copy = (btrfs / name / "now" / "disk.raw" for name in ("disks", "copies"))
    assert original.read_bytes() == copy.read_bytes()


def test_a_damaged_snapshot_stays_writable_and_is_an_error(shell: Shell, btrfs: Path, tmp_path: Path) -> None:
    packing, unpacking = typed("Images", "btrfs")
    shell(script([packing], "vol.key", {}))
    flip(tmp_path / "now.state")
    shell(script([unpacking], "vol.key", {}), status=3)
    assert shell("btrfs property get copies/now ro").stdout == "ro=false\n"


def test_a_sender_that_is_killed_leaves_no_archive(shell: Shell, tmp_path: Path) -> None:
    """A shell calls the same a success: the status is that of its last program."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "btrfs").write_text("#!/bin/sh\nhead -c 100000 /dev/urandom\nkill -9 $$\n")
    (tmp_path / "bin" / "btrfs").chmod(0o755)
    packing, _ = typed("Images", "btrfs")
    shell(script([packing], "vol.key", {}), status=1)
    assert not (tmp_path / "now.state").exists()
    shell("btrfs send -q disks/now | zstd -q > today.zst")
    assert (tmp_path / "today.zst").exists()


# --- CRIU


class Counter:
    """A process that counts, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "ticks"
        program = folder / "counter.py"
        program.write_text(COUNTER)
        start = 'setsid "$@" </dev/null >/dev/null 2>&1 & echo $!; exec >&-; wait'  # and its id is free again
        words = ["sh", "-c", start, "sh", sys.executable, "-I", "-S", str(program), str(self.output)]
        self._parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._parent.stdout is not None
        with self._parent.stdout as said:
            self.pid = int(said.read())

    def ticks(self) -> list[tuple[str, str]]:
        """(number, digest) of each tick so far."""
        return re.findall(r"^TICK (\d+) SUM (\w+)$", self.output.read_text() if self.output.exists() else "", re.M)

    def wait_ticks(self, more: int) -> None:
        """Wait until there are `more` than now."""
        target = len(self.ticks()) + more
        wait_for(f"tick {target}", lambda: len(self.ticks()) >= target)

    def assert_runs_on(self) -> None:
        """It counts on from where it was, and its memory is as it was."""
        self.wait_ticks(2)
        ticks = self.ticks()
        assert [int(number) for number, _ in ticks] == list(range(1, len(ticks) + 1))
        assert len({digest for _, digest in ticks}) == 1

    def kill(self) -> None:
        """End it, restored or not."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        """Until it has ended, and its id can be used again. A restored one is not its parent's."""
        self._parent.wait(PATIENCE)


@pytest.fixture
def criu(tmp_path: Path) -> None:
    """CRIU on the path of `shell`, if this kernel and this user let it work."""
    if os.geteuid() != 0:
        pytest.skip("only root may dump any process")
    done = subprocess.run([ROOT / "tools" / "criu"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "criu").symlink_to(done.stdout.strip())


@pytest.fixture
def counter(criu: None, tmp_path: Path) -> Iterator[Counter]:
    """A process that counts."""
    found = Counter(tmp_path)
    try:
        found.wait_ticks(2)
        yield found
    finally:
        found.kill()


def recipes() -> tuple[list[str], list[str]]:
    """Of today, and with statepipe."""
    lines = commands("CRIU")
    ours = [at for at, line in enumerate(lines) if line.startswith("mkdir")][1]
    return lines[:ours], lines[ours:]


@pytest.mark.parametrize("which", [0, 1], ids=["today", "statepipe"])
def test_a_process_goes_on(counter: Counter, shell: Shell, which: int) -> None:
    shell(script(recipes()[which], "job.key", {"4711": counter.pid}))
    counter.assert_runs_on()


def test_a_process_runs_on_if_its_archive_could_not_be_written(counter: Counter, shell: Shell, tmp_path: Path) -> None:
    making, dumping, packing, *_ = recipes()[1]
    shell(script([making, dumping], "job.key", {"4711": counter.pid}))
    shell("ulimit -f 1024; " + script([packing], "job.key", {}), status=1)
    assert not (tmp_path / "job.state").exists()
    os.kill(counter.pid, signal.SIGCONT)
    counter.assert_runs_on()


def test_criu_restores_memory_that_changed(counter: Counter, shell: Shell, tmp_path: Path) -> None:
    """If this fails, CRIU has learned to tell, and the page is to say so."""
    making, dumping, *_ = recipes()[0]
    shell(script([making, dumping], "job.key", {"4711": counter.pid}))
    counter.wait()
    flip(tmp_path / "images" / "pages-1.img")
    shell("criu restore -D images --shell-job -d")
    counter.wait_ticks(2)
    assert len({digest for _, digest in counter.ticks()}) == 2
