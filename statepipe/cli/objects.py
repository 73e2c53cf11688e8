"""The verb put: standard input or a file becomes an object; and the end of uploads that were left."""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack

from statepipe.cli.filters import build
from statepipe.cli.filtertable import find
from statepipe.cli.messages import clean, say, show
from statepipe.cli.onfiles import open_source, refuse_input_as_output, require_pipes
from statepipe.cli.verb import Values, is_given
from statepipe.errors import UsageError
from statepipe.pipeline.pipeline import Pipeline

STALE = 24 * 3600
"""Seconds after which an upload was left: one that is under way for longer is to be aborted by its process alone."""


def run_put(name: str, values: Values) -> int:
    """Write an object, or end uploads that were left."""
    if values["abort_stale"] is not None:
        return _abort_stale(values)
    from statepipe.ends.fd import Nowhere
    from statepipe.objectstore.scheme import is_address, local_path

    row = find(name)
    require_pipes({"file": values["file"]}, binary=False)
    address, file = values["address"], values["file"]
    if address and file and is_address(file) and not is_address(address):
        raise UsageError("the ADDRESS comes first, then FILE", hint=f"write: statepipe put {file} {address}")
    stage = build(row, values)
    with ExitStack() as stack:
        source = open_source(values["file"], stack)
        refuse_input_as_output(source.fd, "ADDRESS", local_path(values["address"]))
        if values["resume"] and not stat.S_ISREG(os.fstat(source.fd).st_mode):
            what = "--resume reads from the beginning what was sent before, and this is not a regular file"
            raise UsageError(what, hint="name a FILE, or use < FILE")
        Pipeline(source, [stage], Nowhere()).run()
    return 0


def _abort_stale(values: Values) -> int:
    """Abort the uploads below a prefix that were begun long ago, and print each."""
    from statepipe.ends.objects import store_below
    from statepipe.objectstore.workers import aside

    if stray := [key for key in ("address", "file", "overwrite", "resume", "size") if is_given(values[key])]:
        raise UsageError(f"--abort-stale takes a PREFIX alone, and not {stray[0].upper()}", hint="leave it out")
    store, prefix = store_below(values["abort_stale"])
    now, younger = time.time(), 0
    found = iter(store.uploads(prefix))
    while (upload := aside(lambda: next(found, None))) is not None:
        if upload.started is None or now - upload.started.timestamp() < STALE:
            younger += 1
            continue
        aside(lambda: store.abort(upload))
        show(f"{clean(str(upload.address))}\t{upload.started:%Y-%m-%d %H:%M}")
    if younger:
        say(f"statepipe: put: uploads younger than a day stay, since they may be under way: {younger}")
    return 0
