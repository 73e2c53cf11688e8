"""A terminal with someone at it: a shell command that runs there, and answers typed as it asks."""

from __future__ import annotations

import os
import pty
from collections.abc import Sequence


def at_terminal(script: str, answers: Sequence[tuple[str, str]], cwd: object) -> tuple[int, str]:
    """The exit status of a shell script, and what was seen; each answer is typed once its prompt is there."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(str(cwd))
        os.execv("/bin/sh", ["/bin/sh", "-c", script])
    try:
        seen = ""
        for prompt, answer in answers:
            seen += _read_until(terminal, prompt)
            os.write(terminal, f"{answer}\n".encode())
        seen += _read_until(terminal, None)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.replace("\r", "")
    finally:
        os.close(terminal)


def _read_until(terminal: int, prompt: str | None) -> str:
    seen = ""
    try:
        while prompt is None or prompt not in seen:
            seen += os.read(terminal, 4096).decode(errors="replace")
    except OSError as error:  # EIO: the other side has ended
        assert prompt is None, f"it never asked '{prompt}', but said: {seen} ({error})"
    return seen
