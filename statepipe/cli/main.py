"""The command: find the verb, parse, run, and turn what comes out into an exit code. Nothing else catches errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from statepipe import __version__
from statepipe.cli.messages import explain
from statepipe.cli.verbs import EXIT_CODES, VERBS, Verb
from statepipe.engine.signals import as_exceptions
from statepipe.errors import StatepipeError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (sys.argv by default); the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb: str | None = None
    try:
        with as_exceptions():
            if not words or words[0] in ("-h", "--help", "help"):
                return _help(words)
            if words[0] == "--version":
                return _print(f"statepipe {__version__}")
            found = _find(words[0])
            verb = found.name
            return _dispatch(found, words[1:])
    except StatepipeError as error:
        explain(verb, error)
        return error.exit_code


def _find(name: str) -> Verb:
    for verb in VERBS:
        if verb.name == name:
            return verb
    raise UsageError(f"there is no verb '{name}'", hint="see: statepipe --help")


def _dispatch(verb: Verb, words: Sequence[str]) -> int:
    from statepipe.cli.grammar import parse

    values = parse(verb, words)
    module, _, function = verb.run.partition(":")
    code: int = getattr(import_module(module), function)(verb.name, values)
    return code


def _help(words: Sequence[str]) -> int:
    width = max(len(verb.name) for verb in VERBS)
    lines = [
        "usage: statepipe VERB [ARGUMENT…]",
        "",
        "Carries the state of running virtual machines through pipes, and says the truth about whether it arrived.",
        "",
        *(f"  {verb.name:{width}}  {verb.help}" for verb in VERBS),
        "",
        "exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES) + "; 128+n signal n",
        "statepipe VERB --help tells more, man statepipe all.",
    ]
    print("\n".join(lines), file=sys.stdout if words else sys.stderr)
    return 0 if words else UsageError.exit_code


def _print(line: str) -> int:
    print(line)
    return 0


def entry() -> None:
    """What bin/statepipe and `python -m statepipe` run. Leaves without the interpreter's slow farewell."""
    try:
        code = main()
    except SystemExit as leaving:  # argparse, after --help
        code = int(leaving.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
