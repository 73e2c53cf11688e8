"""The ways to give a passphrase on a command line: typed at the terminal, in a file, through a descriptor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from statepipe.errors import StatepipeError, UsageError
from statepipe.private import forbid_dumps
from statepipe.stages.agekeys import PASSPHRASE_LIMIT, first_line, read_secret, typed
from statepipe.stages.context import Context

Values = Mapping[str, Any]


def passphrase(values: Values, context: Context) -> bytes | None:
    """The passphrase that opens something, in whichever way it is given; None if in none.

    Raises UsageError, StatepipeError.
    """
    given = _given(values)
    return typed(context, "passphrase") if values["passphrase"] else given


def new_passphrase(values: Values, context: Context) -> bytes | None:
    """The same of one that is to be set: it is typed twice, as what was mistyped once would never open again."""
    given = _given(values)
    if not values["passphrase"]:
        return given
    first = first_line(typed(context, "new passphrase"))
    if typed(context, "the same again") != first:
        raise StatepipeError("the two passphrases differ", hint="try again")
    return first


def _given(values: Values) -> bytes | None:
    """From a file or a descriptor, if one was given; which excludes every other way."""
    ways = [values["passphrase"], values["passphrase_file"] is not None, values["passphrase_fd"] is not None]
    if sum(map(bool, ways)) > 1:
        raise UsageError("a passphrase is given in one way only")
    if values["passphrase_file"] is not None:
        return first_line(read_secret(values["passphrase_file"])[:PASSPHRASE_LIMIT])
    if values["passphrase_fd"] is not None:
        return first_line(_read_line(values["passphrase_fd"]))
    return None


def _read_line(text: str) -> bytes:
    """The first line that a descriptor gives, and not a byte more: what follows is for others."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 3:
        raise UsageError(f"'{text}' is no descriptor to take a passphrase from", hint="for example: 3, with 3< FILE")
    line = b""
    forbid_dumps()
    try:
        while len(line) < PASSPHRASE_LIMIT and not line.endswith(b"\n") and (byte := os.read(int(text), 1)):
            line += byte
    except OSError as error:
        raise StatepipeError(f"cannot read the passphrase from descriptor {text}: {error.strerror}") from error
    return line
