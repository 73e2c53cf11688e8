"""The ways to give a passphrase on a command line: typed at the terminal, in a file, through a descriptor."""

from __future__ import annotations

import os
from collections.abc import Mapping

from statepipe.errors import StatepipeError, UsageError
from statepipe.private import forbid_dumps
from statepipe.stages.agekeys import PASSPHRASE_LIMIT, first_line, read_secret, typed
from statepipe.stages.context import Context
from statepipe.typed import Any

Values = Mapping[str, Any]


def passphrase(values: Values, context: Context) -> bytes | None:
    """Return the passphrase that opens something, or None if none was given. Raises UsageError, StatepipeError."""
    given = _given(values)
    return typed(context, "passphrase") if values["passphrase"] else given


def new_passphrase(values: Values, context: Context) -> bytes | None:
    """Return a passphrase to encrypt with. It is typed twice: a typing error would lock the data for ever."""
    given = _given(values)
    if not values["passphrase"]:
        return given
    first = first_line(typed(context, "new passphrase"))
    if typed(context, "the same again") != first:
        raise StatepipeError("the two passphrases differ", hint="try again")
    return first


def _given(values: Values) -> bytes | None:
    """Return the passphrase from a file or a descriptor. Raises UsageError if more than one way was used."""
    file, fd = values["passphrase_file"], values["passphrase_fd"]
    if sum([values["passphrase"], file is not None, fd is not None]) > 1:
        hint = "give one of -p, --passphrase-file and --passphrase-fd"
        raise UsageError("the passphrase is given in several ways", hint=hint)
    if file is not None:
        return first_line(read_secret(file)[:PASSPHRASE_LIMIT])
    if fd is None:
        return None
    if fd < 3:
        raise UsageError(f"descriptor {fd} cannot give a passphrase", hint="for example: --passphrase-fd 3 3< FILE")
    line = b""
    forbid_dumps()
    try:  # not a byte more than the first line: what follows is for others
        while len(line) < PASSPHRASE_LIMIT and not line.endswith(b"\n") and (byte := os.read(fd, 1)):
            line += byte
    except OSError as error:
        raise StatepipeError(f"cannot read the passphrase from descriptor {fd}: {error.strerror}") from error
    return first_line(line)
