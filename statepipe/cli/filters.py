"""The verbs that are filters: standard input or a file through stages to standard output or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from statepipe.cli.context import context
from statepipe.cli.filtertable import Filter, find
from statepipe.cli.grammar import naming, parse_word
from statepipe.cli.keys import with_defaults
from statepipe.cli.messages import show
from statepipe.cli.onfiles import (
    ON_FILES,
    algorithm_or_files,
    for_each_file,
    meant,
    open_source,
    opened,
    refuse_input_as_output,
    require_pipes,
)
from statepipe.cli.verb import Values
from statepipe.errors import UsageError
from statepipe.pipeline.pipeline import NamedStage, Pipeline
from statepipe.stages.get import Get


def run_filter(name: str, values: Values) -> int:
    """Run one filter."""
    row, values = meant(find(name), values)
    stages = [build(row, values)]
    if row.is_first:
        return _run_from(stages, values)
    return _run(stages, values if name in ON_FILES else {})  # the FILE of tee is not what it reads


def run_pipe(name: str, values: Values) -> int:
    """Run several filters in one process. Raises UsageError."""
    if not values["words"]:
        hint = "for example: statepipe pipe compress checksum < FILE > FILE; filters are listed by: statepipe --help"
        raise UsageError("pipe needs at least one filter", hint=hint)
    stages = build_words(values["words"], may_begin=True, may_end=True)
    return _run_from(stages, {}) if isinstance(stages[0][1], Get) else _run(stages, {})


def build_words(words: Sequence[str], *, may_begin: bool = False, may_end: bool = False) -> list[NamedStage]:
    """Return the stages of words. Raises UsageError, also for a filter without an output unless it is the last one of
    a pipeline that may end with it, and for one without an input unless it is the first one of one that may begin so.
    """
    stages = []
    for at, word in enumerate(words, 1):
        row, values = parse_word(word)
        with naming(word):
            if row.is_first and not (may_begin and at == 1):
                hint = "it can be the first word of pipe, and what comes before it is not read"
                raise UsageError(f"nothing goes into {row.name}", hint=hint)
            if row.is_last and not (may_end and at == len(words)):
                hint = "it can be the last word of pipe, and nothing comes behind it; tee passes everything on"
                raise UsageError(f"nothing comes out of {row.name}", hint=hint)
            stages.append(build(row, values))
    return stages


def build(row: Filter, values: Values) -> NamedStage:
    """Return the stage of a filter with its name. Raises UsageError, StatepipeError."""
    return row.name, row.build(with_defaults(row.name, values), context())


def _run(stages: Sequence[NamedStage], values: Values) -> int:
    require_pipes(values, binary=any(name == "compress" for name, _ in stages))
    with ExitStack() as stack:
        source, sink = opened(values, stack)
        Pipeline(source, stages, sink).run()
    return 0


def _run_from(stages: Sequence[NamedStage], values: Values) -> int:
    """Run stages of which the first reads an object: that is the source, and standard input is not read."""
    from statepipe.cli.onfiles import new_sink

    (_, first), *rest = stages
    assert isinstance(first, Get)
    require_pipes({"file": "ADDRESS", **values}, binary=True)
    with ExitStack() as stack:
        sink = new_sink(values.get("output"))
        Pipeline(stack.enter_context(first.open()), rest, sink).run()
    return 0


def run_checksum(name: str, values: Values) -> int:
    """Print the digests of files, as sha256sum does; without files, or with -o, run as a filter. Raises UsageError."""
    values = algorithm_or_files(values)
    files = values["file"]
    if files and values["output"] is None:
        return _print_digests(name, values)
    if len(files) > 1:
        raise UsageError("-o takes one FILE, whose bytes it writes", hint="without -o, each digest is printed")
    return run_filter(name, values | {"file": files[0] if files else None})


def _print_digests(name: str, values: Values) -> int:
    """Print a line for each file. With --to, the lines are written at the end, and only if every file was read."""
    from statepipe.ends.fd import FdSink, Nowhere
    from statepipe.ends.output import new_output
    from statepipe.stages.checksum import Digest, line_of, lines_to

    def print_line(line: str) -> None:
        if sys.stdout.isatty():
            show(line)  # without control characters; elsewhere the name's own bytes count
        else:
            FdSink(1, "standard output").write(os.fsencode(line))

    write = lines_to(print_line, "standard output", new_output, values["to"])
    lines = []

    def work(path: str) -> None:
        digest = Digest(values["algorithm"])
        require_pipes({"file": path}, binary=False)
        with ExitStack() as stack:
            source = open_source(path, stack)
            refuse_input_as_output(source.fd, "--to", values["to"])
            Pipeline(source, [("checksum", digest)], Nowhere()).run()
        line = line_of(digest.value, path)
        lines.append(line) if values["to"] else write(line)

    code = for_each_file(name, values["file"], work)
    if values["to"] and not code:
        write("".join(lines))
    return code
