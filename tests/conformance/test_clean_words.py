"""What others named reaches a terminal without their control characters: in a prompt, in a message, in a result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conformance.running import run
from tests.qemu.harness import EXEC
from tests.terminal import at_terminal

EVIL = "key\x1b]0;owned\x07\x9b2J\u202e"


def test_a_prompt_with_a_files_name_is_clean(tmp_path: Path) -> None:
    plain, key = tmp_path / "plain", tmp_path / EVIL
    plain.write_text("AGE-SECRET-KEY-none")
    plain.chmod(0o600)
    script = f"{EXEC} encrypt -p plain >'{EVIL}' 2>&1; {EXEC} decrypt -i '{EVIL}' <plain"
    prompts = [("new passphrase: ", "x"), ("the same again: ", "x"), (f"passphrase of {tame(EVIL)}: ", "x")]
    script = script.replace("encrypt -p plain", "encrypt -p <plain")
    _, seen = at_terminal(script, prompts, tmp_path)
    assert key.exists()
    assert_tame(seen)


def test_a_plugins_prompt_is_clean() -> None:
    shown = subprocess.run(
        [sys.executable, "-P", "-c", ASK, EVIL], capture_output=True, text=True, errors="surrogateescape"
    )
    assert f"there is no terminal to ask at: {tame(EVIL)}" in shown.stderr
    assert_tame(shown.stderr)


ASK = """
import os, sys
os.setsid()
from statepipe.cli.context import ask
from statepipe.cli.messages import explain
from statepipe.errors import StatepipeError
try:
    ask(sys.argv[1])
except StatepipeError as error:
    explain("decrypt", error)
"""


def test_a_message_and_a_result_are_clean(tmp_path: Path) -> None:
    file = tmp_path / EVIL
    file.write_bytes(b"no state")
    done = run("inspect", str(file))
    assert done.returncode == 3
    assert_tame(done.stderr.decode())


def tame(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def assert_tame(seen: str) -> None:
    assert not set("\x1b\x07\x9b\u202e") & set(seen), repr(seen)
