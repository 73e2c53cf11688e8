"""Completion in the real shells, at a terminal: a line is begun, the key pressed, and what then runs is looked at."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statepipe.cli.completion import FILES, SCRIPTS, candidates
from statepipe.cli.verbs import VERBS
from tests.conformance.running import PATIENCE, run
from tests.conformance.test_jobs import reading

BIN = Path(__file__).parents[2] / "bin"

SHELL = """
PS1=READY
statepipe() { if [ "$1" = completion ]; then command statepipe "$@"; else printf 'GOT[%s]\\n' "$*"; fi; }
"""
"""A statepipe that says what it was called with, and completes as the real one does."""

START = {
    "bash": (("bash", "--noprofile", "--rcfile", "rc", "-i"), "rc", "bind 'set enable-bracketed-paste off'\n"),
    "zsh": (("zsh", "-d", "-i"), ".zshrc", "unsetopt prompt_sp\nautoload -U compinit\ncompinit -D -u\n"),
}


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: tools/setup test")


def environment(home: Path) -> dict[str, str]:
    own = {"HOME": str(home), "ZDOTDIR": str(home), "TERM": "dumb", "LC_ALL": "C.UTF-8", "INPUTRC": "/dev/null"}
    return {**os.environ, **own, "PATH": f"{BIN}:{os.environ['PATH']}"}


@contextmanager
def terminal(shell: str, home: Path) -> Iterator[int]:
    """A shell at a terminal, with its completion loaded; the terminal's other end."""
    command, rc, more = START[shell]
    (home / "script").write_text(SCRIPTS[shell])
    (home / rc).write_text(f"{more}{SHELL}. ./script\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=home, env=environment(home), start_new_session=True
    )
    os.close(theirs)
    try:
        wait_for(ours, "READY")
        yield ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def wait_for(fd: int, text: str) -> None:
    """Until the terminal has shown the text."""
    shown = b""
    while text.encode() not in shown:
        assert select.select([fd], [], [], PATIENCE)[0], shown
        shown += os.read(fd, 4096)


LINES = [
    ("statepipe canc\t4711\r", "GOT[cancel 4711]"),
    ("statepipe save --th\tquit vm\r", "GOT[save --then quit vm]"),
    ("statepipe save --then qu\tvm\r", "GOT[save --then quit vm]"),
    ("statepipe compress bz\t\r", "GOT[compress bzip2]"),
    ("statepipe inspect vm1.st\t\r", "GOT[inspect vm1.state]"),
    ("statepipe pipe compress:zstd:3 prog\tname=x\r", "GOT[pipe compress:zstd:3 progress:name=x]"),
    ("statepipe pipe checksum:to=vm1.st\t\r", "GOT[pipe checksum:to=vm1.state]"),
    ("statepipe pki rev\tnode\r", "GOT[pki revoke node]"),
    ("statepipe inspect my\\ st\t\r", "GOT[inspect my state]"),
    ("statepipe inspect 'my st\t\r", "GOT[inspect my state]"),
    ("statepipe pipe checksum:to=my\\ s\t\r", "GOT[pipe checksum:to=my state]"),
    ("statepipe save --qmp='my state' --th\tquit vm\r", "GOT[save --qmp=my state --then quit vm]"),
]
"""The file `stop` begins like the second word of `my state`."""


@pytest.mark.parametrize("shell", START)
def test_the_key_completes(shell: str, tmp_path: Path) -> None:
    need(shell)
    for name in ("vm1.state", "my state", "stop"):
        (tmp_path / name).touch()
    with terminal(shell, tmp_path) as fd:
        for typed, ran in LINES:
            os.write(fd, typed.encode())
            wait_for(fd, ran)


@pytest.mark.parametrize("shell", START)
def test_the_key_completes_a_running_id(shell: str, tmp_path: Path) -> None:
    need(shell)
    with reading("compress") as job, terminal(shell, tmp_path) as fd:
        os.write(fd, b"statepipe cancel \t\r")
        wait_for(fd, f"GOT[cancel {job.pid}]")


FISH = [
    ("statepipe canc", ["cancel"]),
    ("statepipe save --then ", ["cont", "quit", "stay"]),
    ("statepipe compress b", ["bzip2"]),
    ("statepipe inspect vm1.", ["vm1.state"]),
    ("statepipe pipe checksum:to=vm1.s", ["checksum:to=vm1.state"]),
    ("statepipe pipe decompress verify:f", ["verify:from="]),
    ("statepipe pki rev", ["revoke"]),
    ("statepipe inspect my\\ st", ["my state"]),
    ("statepipe inspect 'my st", ["my state"]),
    ("statepipe save --qmp=my\\ st", ["--qmp=my state"]),
]


@pytest.mark.parametrize(("line", "offered"), FISH)
def test_fish_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    need("fish")
    for name in ("vm1.state", "my state", "stop"):
        (tmp_path / name).touch()
    (tmp_path / "script").write_text(SCRIPTS["fish"])
    asked = ["fish", "--no-config", "-c", 'source script; complete -C "$argv[1]"', line]
    done = subprocess.run(asked, cwd=tmp_path, env=environment(tmp_path), capture_output=True, timeout=PATIENCE)
    assert [each.split("\t")[0] for each in done.stdout.decode().splitlines()] == offered, done.stderr


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_printed_and_is_one(shell: str) -> None:
    need(shell)
    done = run("completion", shell)
    assert done.returncode == 0 and done.stdout.decode().rstrip("\n") == SCRIPTS[shell].rstrip("\n")
    assert subprocess.run([shell, "-n"], input=done.stdout, timeout=PATIENCE).returncode == 0


def test_no_shell_is_a_slip() -> None:
    assert run("completion").returncode == 2


# --- what is offered


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_and_option_is_offered(verb: object) -> None:
    name, params = verb.name, verb.params  # type: ignore[attr-defined]
    assert name in candidates([name[:2]])
    assert set(candidates([name, "-"])) == {"--help", *(each for param in params for each in param.names)}
    for param in params:
        if param.choices and param.name.startswith("--"):
            assert candidates([name, param.name, ""]) == (
                list(param.choices) if param.takes_next else candidates([name, ""])
            )
            assert candidates([name, f"{param.name}="]) == [f"{param.name}={value}" for value in param.choices]


OFFERED = [
    (["load", ""], [FILES]),
    (["load", "vm1", ""], []),
    (["compress", ""], FILES),
    (["checksum", ""], FILES),
    (["checksum", "bl"], ["blake2b", "blake3", FILES]),
    (["checksum", "sha256", "vm1", ""], [FILES]),
    (["verify", "0" * 64, ""], [FILES]),
    (["throttle", ""], []),
    (["load", "vm1", "--", "qemu", ""], [FILES]),
    (["save", "progress", ""], FILES),
    (["convert", "web1.save", ""], FILES),
    (["save", "--qmp", ""], [FILES]),
    (["nothing", ""], []),
    (["pipe", "checksum:sha256,to="], [FILES]),
    (["pipe", "nothing:to="], []),
    (["--he"], ["--help"]),
]


@pytest.mark.parametrize(("words", "offered"), OFFERED)
def test_what_is_offered(words: list[str], offered: object) -> None:
    found = candidates(words)
    assert offered in found if isinstance(offered, str) else found == offered
