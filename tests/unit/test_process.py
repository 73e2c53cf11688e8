"""What is believed of a process that may not be what it says, and how its words reach another host unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.ends.ssh import quoted
from statepipe.qemu.facts import host_facts
from statepipe.qemu.process import COMMAND_LIMIT, anew, inspect_process, listening_qemu

NOBODY = 65534


@pytest.fixture
def lookalike(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose program is called as QEMU is, and which pretends to be another."""
    program = tmp_path / "qemu-x"
    shutil.copy(shutil.which("cat") or "", program)
    with subprocess.Popen(
        ["id", "-"], executable=program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b".")
        assert process.stdout.read(1) == b"."  # it has begun, and its command line is there
        yield process


def test_the_program_is_the_kernel_s_word_and_not_the_command_line_s(
    lookalike: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    found = inspect_process(lookalike.pid)
    assert found is not None and found.command[0] == "id" and found.program == str(tmp_path / "qemu-x")


def test_who_listens_is_only_a_process_of_the_same_user(lookalike: subprocess.Popen[bytes]) -> None:
    """Its number may be that of another's QEMU by now."""
    assert listening_qemu(lookalike.pid, os.geteuid())
    assert listening_qemu(lookalike.pid, 0)
    assert not listening_qemu(lookalike.pid, os.geteuid() + 1)
    assert not listening_qemu(os.getpid(), os.geteuid())


def test_a_command_line_without_end_is_none(tmp_path: Path) -> None:
    words = ["x" * 1000] * (COMMAND_LIMIT // 1000 + 1)
    with subprocess.Popen(["cat", "-", *words], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        found = inspect_process(process.pid)
        assert found is not None and found.command == ()


def test_a_value_that_looks_like_an_option_is_kept() -> None:
    kept = ["qemu", "-append", "-S", "-name", "-daemonize", "-nodefaults", "disk.img", "-device", "--incoming"]
    dropped = ["-S", "--daemonize", "-incoming", "-S", "-chardev", "socket,id=statepipe-monitor-0,fd=5"]
    dropped += ["-mon", "chardev=statepipe-monitor-0,mode=control"]
    assert anew([*kept, *dropped]) == kept
    assert anew([kept[0], *dropped, *kept[1:]]) == kept


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "..", "a/b", "x" * 100])
def test_a_tap_s_name_leads_to_no_other_file(name: str) -> None:
    assert host_facts([f"tap,id=n,ifname={name},script=no"])["taps"] == {}


WORDS = [
    "",
    "a b",
    "it's",
    "\\",
    "\\'; touch x #",
    "'\\'",
    "a\\\\b",
    "!x!",
    "$HOME `id` $(id)",
    '"',
    "*?[]{}~",
    "ü€",
    "-x",
]


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "fish", "csh", "tcsh"])
def test_each_shell_there_reads_the_words_that_were_meant(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    line = f"printf '%s\\n' {' '.join(map(quoted, WORDS))}"
    done = subprocess.run([shell, "-c", line], capture_output=True, text=True, env=os.environ | {"HOME": "/"})
    assert done.stdout.split("\n")[:-1] == WORDS, done
