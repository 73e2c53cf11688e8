"""The verbs that are filters: standard input to standard output through stages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from statepipe.cli.context import context
from statepipe.cli.filtertable import Filter, find
from statepipe.cli.grammar import naming, parse_word
from statepipe.cli.keys import with_defaults
from statepipe.cli.onfiles import ON_FILES, meant, opened, require_pipes
from statepipe.pipeline.pipeline import NamedStage, Pipeline

Values = dict[str, Any]


def run_filter(name: str, values: Values) -> int:
    """One filter as a command."""
    row, values = meant(find(name), values)
    stages = [_build(row, values)]
    return _run(stages, values if name in ON_FILES else {})  # the FILE of tee is not what it reads


def run_pipe(name: str, values: Values) -> int:
    """Several, in one process."""
    return _run(build_words(values["words"]), {})


def build_words(words: Sequence[str]) -> list[NamedStage]:
    """Stages from words. Raises UsageError."""
    return [_of_word(word) for word in words]


def _of_word(word: str) -> NamedStage:
    row, values = parse_word(word)
    with naming(word):
        return _build(row, values)


def _build(row: Filter, values: Values) -> NamedStage:
    return row.name, row.build(with_defaults(row.name, values), context())


def _run(stages: Sequence[NamedStage], values: Values) -> int:
    require_pipes(values, binary=any(name == "compress" for name, _ in stages))
    with ExitStack() as stack:
        source, sink = opened(values, stack)
        Pipeline(source, stages, sink).run()
    return 0
