"""The verbs that are filters: standard input to standard output through stages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from statepipe.cli.context import context
from statepipe.cli.grammar import naming, parse_word
from statepipe.cli.keys import with_defaults
from statepipe.ends.fd import FdSink, FdSource
from statepipe.engine.pipeline import NamedStage, Pipeline
from statepipe.errors import UsageError
from statepipe.stages import Filter, find

Values = dict[str, Any]


def run_filter(name: str, values: Values) -> int:
    """One filter as a command."""
    return _run([_build(find(name), values)])


def run_pipe(name: str, values: Values) -> int:
    """Several, in one process."""
    return _run(build_words(values["words"]))


def build_words(words: Sequence[str]) -> list[NamedStage]:
    """Stages from words. Raises UsageError."""
    return [_of_word(word) for word in words]


def _of_word(word: str) -> NamedStage:
    row, values = parse_word(word)
    with naming(word):
        return _build(row, values)


def _build(row: Filter, values: Values) -> NamedStage:
    return row.name, row.build(with_defaults(row.name, values), context())


def _run(stages: Sequence[NamedStage]) -> int:
    if os.isatty(0) or (os.isatty(1) and any(name == "compress" for name, _ in stages)):
        raise UsageError("a filter stands between two pipes or files, not at a terminal", hint="use < FILE and > FILE")
    with FdSource(0, "standard input") as source:
        Pipeline(source, stages, FdSink(1, "standard output")).run()
    return 0
