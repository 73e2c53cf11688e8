"""The verb keygen: from parsed values to trust/keygen.py, and the secret to where it belongs."""

from __future__ import annotations

import os
import stat
from datetime import datetime
from typing import Any

from statepipe.cli.context import context
from statepipe.cli.messages import say, show, warn
from statepipe.errors import UsageError

Values = dict[str, Any]


def run_keygen(name: str, values: Values) -> int:
    """A new identity, or with --recipients those of a file."""
    values = values | {key: None for key in ("output", "file") if values[key] == "-"}
    if values["recipients"]:
        _convert(values)
        return 0
    if values["file"] is not None:
        raise UsageError("keygen reads no file, except to tell its recipients", hint="add -y, or name a file by -o")
    _generate(values)
    return 0


def _generate(values: Values) -> None:
    from statepipe.trust.keygen import generate, identity_file, write_new

    identity = generate(postquantum=values["pq"])
    text = identity_file(identity, datetime.now().astimezone())
    if values["output"] is not None:
        write_new(values["output"], text)
    else:
        _warn_of_readers()
        show(text)
    if values["output"] is not None or not os.isatty(1):
        say(f"Public key: {identity.recipient}")


def _warn_of_readers() -> None:
    """A shell makes files that everyone may read."""
    mode = os.fstat(1).st_mode
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn("keygen", "the secret key goes to a file that others may read; -o FILE makes one that only you can")


def _convert(values: Values) -> None:
    from statepipe.stages.agekeys import read_identities
    from statepipe.trust.keygen import recipients_of, write_new

    if values["pq"]:
        raise UsageError("--pq has no place beside --recipients")
    path = values["file"] or "/dev/stdin"
    text = "".join(f"{each}\n" for each in recipients_of(read_identities(path, context()), path))
    if values["output"] is None:
        show(text)
    else:
        write_new(values["output"], text)
