"""The world that stages are let to see: standard error, the clock, the terminal, files."""

from __future__ import annotations

import os
import sys
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from statepipe.cli.messages import clean, say
from statepipe.ends.output import new_output
from statepipe.errors import StatepipeError
from statepipe.pipeline.job import glance, its_qemu, report_to
from statepipe.stages.context import Context, GuestMemory, Talking


def context() -> Context:
    """The real one."""
    return Context(sys.stderr, _warn, time.monotonic, ask, new_output, _program, glance(), report_to, _memory())


def _memory() -> Callable[[int], GuestMemory | None]:
    """Looks into the QEMU that we drive, or whose exec: filter we are."""
    qemu = its_qemu()

    def look(size: int) -> GuestMemory | None:
        from statepipe.qemu.memory import memory
        from statepipe.qemu.process import parent_pid

        pid, once = qemu() or (parent_pid(), False)
        return None if pid is None else memory(pid, size, once=once)

    return look


def _program(command: Sequence[str]) -> AbstractContextManager[Talking]:
    from statepipe.ends.program import program

    return program(command)


def _warn(text: str) -> None:
    say(f"statepipe: warning: {text}")


SECRET_LIMIT = 4096
"""Bytes of a line that is typed: the terminal itself hands over no more (n_tty, canonical mode)."""


def ask(prompt: str, option: str = "--passphrase-file") -> str:
    """Show `prompt` at the terminal, and return the line that is typed there unseen.

    The terminal is the process's own, not standard input, which is data. Raises StatepipeError where there is none,
    naming the `option` that does without, or where the answer ends before its line.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise StatepipeError(
            f"there is no terminal to ask at: {prompt}", hint=f"give it in a file that only you can read: {option} FILE"
        ) from error
    try:
        return _ask(terminal, prompt)
    finally:
        os.close(terminal)


def _ask(terminal: int, prompt: str) -> str:
    before = termios.tcgetattr(terminal)
    unseen = termios.tcgetattr(terminal)
    unseen[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, unseen)
        os.write(terminal, f"{clean(prompt)}: ".encode())
        line = os.read(terminal, SECRET_LIMIT)
        os.write(terminal, b"\n")
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
    if not line.endswith(b"\n"):
        raise StatepipeError("nothing was typed")
    return line[:-1].decode(errors="surrogateescape")
