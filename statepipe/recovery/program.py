"""The command line that starts the guardian as a program of its own."""

from __future__ import annotations

import os
import sys

import statepipe


def guard_words(verb: str, side: str) -> list[str]:
    """Return the guardian's command line for a verb, whose name is in its messages; its socket's number follows it.

    It names the folder of our own code, which the launcher of an installed statepipe knows and its children do not.
    """
    flags = ["-I"] if sys.flags.isolated else ["-P"]
    flags += ["-S"] if sys.flags.no_site else []
    library = os.path.dirname(os.path.dirname(os.path.abspath(statepipe.__file__)))
    return [sys.executable, *flags, "-c", _PROGRAM, library, verb, side]


_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from statepipe.cli.guarding import run; run()"
