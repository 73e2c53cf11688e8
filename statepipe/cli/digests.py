"""checksum on files: a line for each, as sha256sum prints them, and nothing is passed on."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

from statepipe.cli.filters import run_filter
from statepipe.cli.messages import show
from statepipe.cli.onfiles import algorithm_or_files, for_each_file, open_source, refuse_input_as_output, require_pipes
from statepipe.errors import UsageError

Values = dict[str, Any]


def run_checksum(name: str, values: Values) -> int:
    """checksum, of files or as a filter; with -o it is a filter of one file. Raises UsageError."""
    values = algorithm_or_files(values)
    files = values["file"]
    if files and values["output"] is None:
        return _print_digests(name, values)
    if len(files) > 1:
        raise UsageError("-o takes one FILE, whose bytes it writes", hint="without it, each digest is printed")
    return run_filter(name, values | {"file": files[0] if files else None})


def _print_digests(name: str, values: Values) -> int:
    """With --to, the lines are written at the end, and only if every file was read."""
    from statepipe.ends.output import new_output
    from statepipe.stages.checksum import line_of, lines_to

    write = lines_to(_print, "standard output", new_output, values["to"])
    lines = []

    def work(path: str) -> None:
        line = line_of(_digest(path, values), path)
        lines.append(line) if values["to"] else write(line)

    code = for_each_file(name, values["file"], work)
    if values["to"] and not code:
        write("".join(lines))
    return code


def _digest(path: str, values: Values) -> str:
    """The digest of a file in hexadecimal. Raises StatepipeError."""
    from statepipe.ends.fd import Nowhere
    from statepipe.pipeline.pipeline import Pipeline
    from statepipe.stages.checksum import Digest

    digest = Digest(values["algorithm"])
    require_pipes({"file": path}, binary=False)
    with ExitStack() as stack:
        source = open_source(path, stack)
        refuse_input_as_output(source.fd, "--to", values["to"])
        Pipeline(source, [("checksum", digest)], Nowhere()).run()
    return digest.value


def _print(line: str) -> None:
    """A line on standard output: at a terminal without control characters, elsewhere with the name's own bytes."""
    from statepipe.ends.fd import FdSink

    if sys.stdout.isatty():
        show(line)
    else:
        FdSink(1, "standard output").write(os.fsencode(line))
