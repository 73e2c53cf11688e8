"""Words that another host's shell gets to see: each shell passes on what was meant, whatever it takes for its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from statepipe.session.farwords import MARK, far_words, meant_words

SHELLS = ["sh", "dash", "bash", "zsh", "fish", "csh", "tcsh"]

WORDS = [
    "=ls",
    "a=b",
    "",
    "a b",
    "it's",
    "\\",
    "\\'; touch x #",
    "'\\'",
    "a\\\\b",
    "!x!",
    "!",
    "one\ntwo",
    "tab\tand\rmore",
    "$HOME `id` $(id)",
    '{"driver": "qcow2"}',
    "*?[]{}~",
    "~",
    "~root",
    "%self",
    "%00",
    "^",
    "ü€",
    "-x",
    "+b",
    "\udcff\udc80",
    "x" * 5000,
]


def through(shell: str, words: Sequence[str]) -> list[str]:
    """The words that a program gets which the shell starts."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    line = " ".join(["env", "printf", "'%s\\0'", *words])
    command = [shell, *(["-f"] if "csh" in shell else []), "-c", line]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"HOME": "/"})
    assert done.returncode == 0, done.stderr
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_there_passes_on_the_words_that_were_meant(shell: str) -> None:
    assert meant_words(through(shell, far_words(WORDS))) == WORDS


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("words", [["recv", "--session-stdio", "-o", "/a,b=c:1"], [MARK, "recv"], []])
def test_words_that_no_shell_touches_pass_as_they_are(shell: str, words: list[str]) -> None:
    assert through(shell, ["-", *far_words(words)])[1:] == far_words(words)
    assert meant_words(far_words(words)) == words
    assert MARK in words or far_words(words) == words
