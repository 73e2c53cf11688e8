"""A QEMU that could not lock its disk says so in its own words; a person wants to know who has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from statepipe.errors import QemuError
from statepipe.qemu.holders import lock_hint
from statepipe.qemu.migration import demand_completed

SAID = (
    """qemu-system-x86_64: -drive file=PATH: Failed to get "write" lock / Is another process using the image [PATH]?"""
)


def test_who_has_the_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    with open(tmp_path / "disk"):
        hint = lock_hint(SAID.replace("PATH", str(tmp_path / "disk")))
    assert hint is not None and f"{tmp_path}/disk is open in " in hint and f"(process {os.getpid()})" in hint


@pytest.mark.parametrize("is_there", [True, False])
def test_a_qemu_that_a_lazy_load_may_have_left_is_not_to_be_ended(tmp_path: Path, is_there: bool) -> None:
    """Its guest would be lost: its disks are newer than the state by then."""
    disk, monitor = tmp_path / "disk", tmp_path / "load-1.qmp"
    disk.touch()
    if is_there:
        monitor.touch()
    words = ["-chardev", f"socket,id=statepipe-resume,path={monitor},server=on,wait=off"]
    with disk.open("a") as out:  # sh waits for its standard input
        process = subprocess.Popen(["sh", "-c", "read x", "sh", *words], stdin=subprocess.PIPE, stdout=out)
    with process:
        program = "import sys; from statepipe.qemu.holders import lock_hint; print(lock_hint(sys.argv[1]))"
        asked = [sys.executable, "-c", program, SAID.replace("PATH", str(disk))]
        hint = subprocess.run(asked, capture_output=True, check=True, text=True).stdout
        ours = lock_hint(asked[-1])
        assert process.stdin is not None
        process.stdin.close()
    assert f"(process {process.pid})" in hint
    assert ours is not None and f"(process {process.pid})" not in ours  # a child of ours was started for this load
    assert (f"do not end it: statepipe resolve --qmp {monitor}" in hint) == is_there


def test_one_that_nobody_here_has_open_may_be_another_host_s(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    hint = lock_hint(SAID.replace("PATH", str(tmp_path / "disk")))
    assert hint is not None and "check the other hosts" in hint and f"fuser -v {tmp_path}/disk" in hint


@pytest.mark.parametrize("lock", ['"write"', '"consistent read"', 'shared "write"'])
def test_where_qemu_names_no_image_the_hint_does_without(lock: str) -> None:
    assert "another process" in str(lock_hint(f"Failed to get {lock} lock"))


def test_where_qemu_names_no_image_its_disks_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "disk").touch()
    files = [str(tmp_path / "other"), str(tmp_path / "disk")]
    with open(tmp_path / "disk"):
        hint = lock_hint('Failed to get "write" lock', files)
        assert hint is not None and f"{tmp_path}/disk is open in " in hint
        assert "lslocks" in str(lock_hint('Failed to get "write" lock', files, but=os.getpid()))


def test_other_words_have_no_such_hint() -> None:
    assert lock_hint("Could not open '/d': No such file or directory") is None


WHYS = [
    ("RP: Sibling indicated error 1", "the QEMU at the other end could not load the guest; its own messages say why"),
    ('Failed to get "write" lock', "another process"),
    ("Unable to write to socket", ""),
]


@pytest.mark.parametrize(("why", "hint"), WHYS)
def test_a_migration_that_failed_has_a_hint_where_qemu_s_words_are_no_help(why: str, hint: str) -> None:
    with pytest.raises(QemuError, match=why) as caught:
        demand_completed({"status": "failed", "error-desc": why})
    assert str(caught.value.hint or "").startswith(hint) and bool(caught.value.hint) == bool(hint)
