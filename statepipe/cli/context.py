"""What stages may use of the world: standard error, the clock, the terminal, files, QEMU's memory."""

from __future__ import annotations

import os
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from statepipe.cli.messages import clean, say
from statepipe.ends.output import new_output
from statepipe.errors import StatepipeError
from statepipe.pipeline.job import glance, its_qemu, report_to
from statepipe.stages.context import Context, GuestMemory, Talking


def context() -> Context:
    """Return the context of a command."""
    qemu = its_qemu()

    def start(command: Sequence[str]) -> AbstractContextManager[Talking]:
        from statepipe.ends.program import program

        return program(command)

    def look(size: int) -> GuestMemory | None:
        """Look into the QEMU that we drive, or whose exec: filter we are."""
        from statepipe.qemu.memory import memory
        from statepipe.qemu.process import parent_pid

        pid, once = qemu() or (parent_pid(), False)
        return None if pid is None else memory(pid, size, once=once)

    def warn(text: str) -> None:
        say(f"statepipe: warning: {text}")

    return Context(sys.stderr, warn, time.monotonic, ask, new_output, start, glance(), report_to, look)


SECRET_LIMIT = 4096
"""Most bytes of a typed line: the terminal itself hands over no more (n_tty, canonical mode)."""


def ask(prompt: str, option: str = "--passphrase-file") -> str:
    """Show `prompt` at the terminal, and return the line that is typed there unseen.

    The terminal is the process's own, not standard input, which is data. Raises StatepipeError if there is none,
    naming the `option` that needs none, or if the input ends before a line.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        hint = f"give it in a file that only you can read: {option} FILE"
        raise StatepipeError(f"there is no terminal to ask at: {prompt}", hint=hint) from error
    try:
        before, unseen = termios.tcgetattr(terminal), termios.tcgetattr(terminal)
        unseen[3] &= ~termios.ECHO
        try:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, unseen)
            os.write(terminal, f"{clean(prompt)}: ".encode())
            line = os.read(terminal, SECRET_LIMIT)
            os.write(terminal, b"\n")
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
    finally:
        os.close(terminal)
    if not line.endswith(b"\n"):
        raise StatepipeError("nothing was typed", hint="type a line and press Enter")
    return line[:-1].decode(errors="surrogateescape")
