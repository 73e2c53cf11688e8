"""Asking for a secret: at the terminal, unseen, and only there."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from tests.conformance.running import PATIENCE

ASKS = "from statepipe.cli.context import ask; print(len(ask('Passphrase')))"


def asked(typed: bytes) -> tuple[int, bytes]:
    """Exit status and everything seen at a terminal where `typed` is typed once the prompt is there."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", ASKS])
    try:
        seen = b""
        while b"Passphrase: " not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, typed)
        try:
            while data := os.read(terminal, 4096):
                seen += data
        except OSError:  # EIO: the other side has ended
            pass
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen
    finally:
        os.close(terminal)


def test_what_is_typed_is_not_seen() -> None:
    status, seen = asked(b"open sesame\n")
    assert (status, seen.replace(b"\r", b"")) == (0, b"Passphrase: \n11\n")


def test_an_end_without_a_line_is_no_answer() -> None:
    status, seen = asked(b"\x04")
    assert status == 1 and b"nothing was typed" in seen


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE])
def test_no_terminal_is_an_error(stdin: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKS], stdin=stdin, capture_output=True, start_new_session=True, timeout=PATIENCE
    )
    assert done.returncode == 1 and b"there is no terminal to ask at: Passphrase" in done.stderr
