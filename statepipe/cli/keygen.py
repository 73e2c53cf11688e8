"""The verb keygen: from parsed values to trust/keygen.py, and the secret key to its file."""

from __future__ import annotations

import os
import shlex
import stat
from datetime import datetime

from statepipe.cli.context import context
from statepipe.cli.messages import say, show, warn
from statepipe.cli.verb import Values
from statepipe.errors import UsageError


def run_keygen(name: str, values: Values) -> int:
    """Make a new identity, or print the recipients of a file's identities with --recipients."""
    from statepipe.trust.keygen import generate, identity_file, recipients_of, write_new

    file, output = (None if values[key] == "-" else values[key] for key in ("file", "output"))
    if values["recipients"]:
        from statepipe.stages.agekeys import read_identities

        if values["pq"]:
            raise UsageError("--pq and --recipients exclude each other", hint="--pq is for a new key")
        path = file or "/dev/stdin"
        text = "".join(f"{each}\n" for each in recipients_of(read_identities(path, context()), path))
        write_new(output, text) if output is not None else show(text)
        return 0
    if file is not None:
        again = f"statepipe keygen -y {shlex.quote(file)}"
        hint = f"to print the public keys in it: {again}; for a new key in a file: statepipe keygen -o FILE"
        raise UsageError("keygen reads no file when it makes a key", hint=hint)
    identity = generate(postquantum=values["pq"])
    text = identity_file(identity, datetime.now().astimezone())
    if output is not None:
        write_new(output, text)
    else:
        mode = os.fstat(1).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):  # as shells make files
            warn(name, "others can read the file that the secret key goes to; -o FILE makes one that only you can")
        show(text)
    if output is not None or not os.isatty(1):
        say(f"Public key: {identity.recipient}")
    return 0
