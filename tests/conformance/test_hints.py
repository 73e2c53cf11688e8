"""Hints that are commands can be pasted: a shell, or QEMU's monitor, reads the file's name as it is."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conformance.running import STATEPIPE, run
from tests.terminal import at_terminal

NAMES = ["plain", "two words", "it's", 'a"b', "back\\slash", "$HOME;x"]


def said_at_terminal(folder: Path, *words: str) -> str:
    """What statepipe shows if a person starts it at a terminal."""
    return at_terminal(shlex.join([*STATEPIPE, *words]), [], folder)[1]


def read_by_shell(command: str) -> list[str]:
    """The words that a shell makes of a command."""
    shown = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    return shown.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_how_to_load(name: str, tmp_path: Path) -> None:
    said = said_at_terminal(tmp_path, "load", name)
    found = re.search(
        r"to start QEMU: (.*) -- qemu-system-…; from QEMU: (.*); by libvirt: add --domain; for a file: > FILE", said
    )
    assert found is not None, said
    assert read_by_shell(found[1]) == ["statepipe", "load", name]
    option, uri = read_by_shell(found[2])
    assert option == "-incoming" and read_by_shell(uri.removeprefix("exec:")) == ["exec", "statepipe", "load", name]


@pytest.mark.parametrize("name", NAMES)
def test_how_to_save_at_the_monitor(name: str, tmp_path: Path) -> None:
    """The monitor knows a backslash before a quote or a backslash. QEMU may run in another folder."""
    said = said_at_terminal(tmp_path, "save", name)
    found = re.search(r'at the monitor: migrate "((?:[^"\\]|\\["\\])*)"; from a shell', said)
    assert found is not None, said
    uri = re.sub(r"\\(.)", r"\1", found[1])
    assert read_by_shell(uri.removeprefix("exec:")) == ["exec", "statepipe", "save", str(tmp_path / name)]


@pytest.mark.parametrize("name", NAMES)
def test_how_to_pipe_a_folder_and_print_keys(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    said = run("compress", name, cwd=tmp_path).stderr.decode()
    assert read_by_shell(said.partition("through tar: ")[2].partition(" | ")[0]) == ["tar", "-c", name], said
    said = run("keygen", name, cwd=tmp_path).stderr.decode()
    pasted = said.partition("keys in it: ")[2].partition("; for a new key")[0]
    assert read_by_shell(pasted) == ["statepipe", "keygen", "-y", name], said


@pytest.mark.parametrize("name", NAMES)
def test_where_a_qemu_command_line_comes(name: str, tmp_path: Path) -> None:
    said = run("load", name, f"/opt/{name}/qemu-system-x86_64", cwd=tmp_path).stderr.decode()
    pasted = said.partition("write: ")[2].partition(" …")[0]
    assert read_by_shell(pasted) == ["statepipe", "load", name, "--", f"/opt/{name}/qemu-system-x86_64"], said
