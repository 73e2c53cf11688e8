"""What a stage of the library may use of the program that it runs in: only what the caller allows.

Nothing is printed unless the caller gives `messages`. Warnings go to the logger "statepipe" unless the caller gives
`warn`. No one is asked for a passphrase unless the caller gives `ask`.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable

from statepipe.ends.output import new_output
from statepipe.ends.program import program
from statepipe.errors import StatepipeError
from statepipe.stages.context import Context
from statepipe.typed import NoReturn, TextIO


class _Silent(io.StringIO):
    """Takes text and drops it."""

    def write(self, text: str, /) -> int:
        return len(text)


def context(
    *,
    messages: TextIO | None = None,
    warn: Callable[[str], None] | None = None,
    ask: Callable[[str], str] | None = None,
) -> Context:
    """Return a context for the library's stages.

    `messages` gets what programs of `external` print and what `progress` shows. `warn` takes one line. `ask` takes a
    prompt and returns the passphrase of an encrypted key file.
    """
    warn = warn or logging.getLogger("statepipe").warning
    return Context(
        messages or _Silent(), warn, time.monotonic, ask or _nobody, new_output, program, lambda: None, _no_report
    )


def _nobody(prompt: str) -> NoReturn:
    raise StatepipeError(f"no passphrase can be asked for: {prompt}", hint="give ask= to statepipe.context()")


def _no_report(fd: int) -> NoReturn:
    raise StatepipeError("status lines are written by the command alone", hint="call Pipeline.status()")
