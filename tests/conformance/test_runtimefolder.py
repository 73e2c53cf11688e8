"""The folder of sockets, where another user has made it first."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.running import started
from tests.qemu.harness import statepipe_command, wait_for


@dataclass(frozen=True, slots=True)
class Stranger:
    """A user of its own, whose folder in /tmp root has made."""

    uid: int
    home: Path

    def command(self, *words: str, home: str | None = None) -> list[str]:
        """statepipe run as that user, who may read what Python's own files are, wherever root has put them."""
        caps = [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]
        who = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", *caps]
        given = ["env", "-u", "XDG_RUNTIME_DIR", f"HOME={home or self.home}"]
        return [*who, *given, *statepipe_command(), *words]


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    uid = 1_000_000 + os.getpid()
    home = Path("/tmp") / f"home-of-{uid}"  # pytest's own folders are closed to others
    taken = Path(f"/tmp/statepipe-{uid}")
    home.mkdir()
    os.chown(home, uid, uid)
    taken.mkdir(mode=0o777)
    try:
        yield Stranger(uid, home)
    finally:
        left = os.listdir(taken)
        subprocess.run(["rm", "-rf", home, taken], check=True)
        assert left == []


def test_it_is_passed_over_by_both_sides_and_that_is_said(stranger: Stranger) -> None:

    def look() -> subprocess.CompletedProcess[str]:
        return subprocess.run(stranger.command("ps", "--json"), capture_output=True, text=True)

    with started(stranger.command("compress")) as job:
        assert job.stdin
        job.stdin.write(b"some")
        wait_for("the job", lambda: len(json.loads(look().stdout)) == 1)
        done = look()
        assert done.returncode == 0
        used = stranger.home / ".cache/statepipe"
        assert f"/tmp/statepipe-{stranger.uid} is not a folder of yours; using {used} instead" in done.stderr
        assert used.stat().st_mode & 0o777 == 0o700


def test_a_file_in_its_place_is_not_called_another_user_s(stranger: Stranger) -> None:
    taken = Path(f"/tmp/statepipe-{stranger.uid}")
    taken.rmdir()
    taken.touch()
    os.chown(taken, stranger.uid, stranger.uid)
    try:
        done = subprocess.run(stranger.command("ps"), capture_output=True, text=True)
    finally:
        taken.unlink()
        taken.mkdir()
    assert done.returncode == 0 and f"{taken} is not a folder of yours; " in done.stderr


def test_a_home_of_somebody_else_is_no_place(stranger: Stranger) -> None:
    done = subprocess.run(stranger.command("ps", home="/root"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "belongs to user 0" in done.stderr and "XDG_RUNTIME_DIR" in done.stderr
