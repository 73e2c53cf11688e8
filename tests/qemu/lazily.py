"""What the tests of lazy loads share: a guest with memory that it does not touch, and a load under observation."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import warm
from tests.guest import parse_ticks
from tests.qemu.harness import Guest, assert_continues, statepipe_command, wait_for
from tests.qemu.loading import MEMORY, Saved, end_qemu, qemu_command

NOISE, NOISE_AT = 24 << 20, 24 << 20
"""Bytes of memory that the guest never touches, and their address: what is loaded in the background alone."""

SLOW = "2M"
"""A rate at which these take 12 s: the load is under way whenever a test looks."""

RESUME = "continue with: statepipe "


def noise(folder: Path) -> list[str]:
    """The option that fills them."""
    file = folder / "noise"
    if not file.exists():
        file.write_bytes(random.Random(7).randbytes(NOISE))
    return ["-device", f"loader,file={file},addr={NOISE_AT:#x},force-raw=on"]


SETTING = Path("/proc/sys/vm/unprivileged_userfaultfd")
LOCK = Path(tempfile.gettempdir(), "statepipe-tests-userfaultfd")
"""The setting is the whole host's: who relies on it shares this lock, who changes it has it alone."""


@contextmanager
def setting(wanted: str | None = None) -> Iterator[str]:
    """What vm.unprivileged_userfaultfd is within it; with `wanted`, it is changed to that."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if wanted is None else fcntl.LOCK_EX)
        before = SETTING.read_text().strip()
        if wanted in (None, before):
            yield before
            return
        try:
            SETTING.write_text(str(wanted))
            yield str(wanted)
        finally:
            SETTING.write_text(before)


class Lazy:
    """A `statepipe load --lazy FILE -- QEMU…` in progress."""

    def __init__(
        self,
        folder: Path,
        saved: Saved,
        *options: str,
        args: Sequence[str] = (),
        program: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.folder, self._env = folder, None if env is None else os.environ | env
        self._stderr = folder / "lazy-stderr"
        words = ["load", "--lazy", *options, str(saved.file), "--", *qemu_command(folder, saved, *args, memory=memory)]
        self.restart([*(program or statepipe_command()), *words])

    def restart(self, command: Sequence[str]) -> None:
        """Run this from now on."""
        with self._stderr.open("w") as stderr:
            self._process = warm.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr, env=self._env)

    @property
    def pid(self) -> int:
        """Of statepipe."""
        return self._process.pid

    def here(self) -> list[str]:
        """Wait until the guest is there; the words that continue the load, at full speed."""
        said = wait_for("word of the guest", self._words)
        words = shlex.split(said[0].partition(RESUME)[2])
        if "--throttle" in words:
            at = words.index("--throttle")
            del words[at : at + 2]
        return words

    def _words(self) -> list[str]:
        ended = self._process.poll()
        said = [line for line in self.stderr().splitlines() if RESUME in line]
        assert said or ended is None, f"it ended with {ended}: {self.stderr()}"
        return said

    def complete(self) -> None:
        """Wait until all memory is loaded."""
        wait_for("all memory", lambda: "all memory is loaded" in self.stderr())

    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def status(self) -> int:
        return self._process.wait(60)

    def ticks(self) -> list[tuple[int, int]]:
        """Of the guest here."""
        with contextlib.suppress(FileNotFoundError):
            return parse_ticks((self.folder / "serial").read_text())
        return []

    def wait_ticks(self, more: int) -> None:
        target = len(self.ticks()) + more
        wait_for(f"tick {target}", lambda: len(self.ticks()) >= target)

    def __enter__(self) -> Lazy:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        end_qemu(self.folder)


def assert_went_on(saved: Saved, lazy: Lazy) -> None:
    """The guest counts on, without a gap, its memory unchanged."""
    lazy.wait_ticks(2)
    assert_continues(saved.before, (lazy.folder / "serial").read_text())


def memory_of(guest: Guest, path: Path) -> bytes:
    """All memory that the guest has."""
    guest.qmp("pmemsave", val=0, size=MEMORY << 20, filename=str(path))
    return path.read_bytes()


def marks(rows: list[dict[str, str]]) -> list[str]:
    """The names of what a load left in QEMU for the one that continues it: since QEMU 11.1, its monitors are objects
    too."""
    return [row["name"] for row in rows if row["name"].startswith("statepipe") and row["type"] == "child<secret>"]


def pids_with(*words: str) -> list[int]:
    """The processes with all of these in their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(entry.parent.name))
    return found
