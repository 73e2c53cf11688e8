"""One grammar for commands and words: `NAME ARG --opt V` and `NAME:ARG,opt=V` are read by the same parser.

In a word the first colon ends the name, as in QEMU's tcp:host:port. Commas separate; a comma inside a value is written
twice, as in QEMU's options. `opt` alone is a switch. On a command line options can stand anywhere before `--`. An
option's letter can be used in both.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

from statepipe.cli.filtertable import CODECS, FILTERS, Filter, find
from statepipe.cli.verb import Param, Values, Verb, is_given, is_option, joined, shell_words
from statepipe.cli.verbs import find_verb
from statepipe.descriptors import look_at
from statepipe.errors import UsageError
from statepipe.guessing import closest, did_you_mean
from statepipe.typed import Any

COMMAND = "command"
"""The name of the parameter that takes a command line of another program."""

_PATHS = ("FILE", "NEW", "DIR", "CA", "IDENTITY", "IDENTITIES")
"""The metavars of files and folders."""


def parse(verb: Verb | Filter, arguments: Sequence[str]) -> Values:
    """Return the values of a verb's parameters. Raises UsageError; SystemExit(0) after --help."""
    command: list[str] | None = None
    if any(param.name == COMMAND for param in verb.params):
        # What follows -- is taken off first: argparse would remove a -- of the command's own.
        if "--" in arguments:
            at = arguments.index("--")
            arguments, command = arguments[:at], list(arguments[at + 1 :])
        else:
            _demand_separator(verb, arguments)
    values = plain_values(verb, arguments)
    if values is None:
        from statepipe.cli.parser import parsed

        values = parsed(verb, arguments)
    _demand_no_strays(verb, arguments, values.get(COMMAND), command is not None)
    _fill_last(verb, values)
    values = {param.key: _converted(param, values[param.key]) for param in verb.params}
    if command is not None:
        values[COMMAND] = command
    by_name = {name: param for param in verb.params for name in (param.name, param.metavar)}
    for param in verb.params:
        needed = by_name[param.needs] if param.needs else None
        if needed and is_given(values[param.key]) and not is_given(values[needed.key]):
            what = "a QEMU command line after --" if needed.name == COMMAND else needed.written
            hint = "statepipe ps shows the whole command; " if param.name == "--resume" else ""
            raise UsageError(f"{param.written} needs {what}", hint=f"{hint}see: statepipe {verb.name} --help")
    return values


def plain_values(verb: Verb | Filter, arguments: Sequence[str]) -> Values | None:
    """Return what argparse would read from arguments that are written in the usual way.

    None for all others, which argparse has to read: --help, errors, a letter joined to its value, an empty value.
    """
    named = {name: param for param in verb.params for name in param.names}
    values: Values = {param.name if not param.names else param.key: _unsaid(param) for param in verb.params}
    plain: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            plain += rest
            break
        if not is_option(word):
            plain.append(word)
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        param = named.get(name)
        if param is None or (equals and not value):
            return None
        if param.takes_next:
            value = value or next(rest, "")
            if not value or is_option(value):
                return None
            values[param.key] = [*values[param.key], value] if param.many == "any" else value
        elif equals and param.metavar is None:
            return None
        else:
            values[param.key] = True if param.metavar is None else value or param.bare
    return values if "--" not in plain and _take(verb, plain, values) else None


def _unsaid(param: Param) -> Any:
    if param.many == "any" and (param.names or param.default is None):
        return []
    return False if param.names and param.metavar is None else param.default


def _take(verb: Verb | Filter, plain: Sequence[str], values: Values) -> bool:
    """Distribute what are no options, each argument taking as much as it may. Return whether it comes out even."""
    arguments = [param for param in verb.params if not param.names]
    spare, at = len(plain) - sum(param.many == "one" for param in arguments), 0
    if spare < 0 or any(param.required and not is_given(values[param.key]) for param in verb.params if param.names):
        return False
    for param in arguments:
        count = {"one": 1, "optional": min(spare, 1), "any": spare}[param.many]
        spare -= count if param.many != "one" else 0
        if count:
            taken = list(plain[at : at + count])
            values[param.name] = taken if param.many == "any" else taken[0]
        at += count
    return not spare


def _fill_last(verb: Verb | Filter, values: Values) -> None:
    """Give an argument behind the words that can be left out what argparse took for the last word, unless it is one."""
    arguments = [param for param in verb.params if not param.names]
    for words, param in pairwise(arguments):
        taken = values[words.key] if words.metavar == "WORD" and param.many == "optional" else []
        if taken and not names_filter(taken[-1]):
            values[param.key] = taken.pop()


def _converted(param: Param, given: Any) -> Any:
    """Return what an argument's text means. Raises UsageError."""
    if isinstance(given, list):
        return [_converted(param, each) for each in given]
    if not isinstance(given, str):
        return given
    if param.metavar in _PATHS and given == "-" and not param.dash:
        hint = "to name a file called -, write ./-"
        raise UsageError(f"{param.written} cannot be - (standard input or output)", hint=hint)
    look_at(given)
    if param.choices and given not in param.choices:
        hint = f"{did_you_mean(given, param.choices)}give one of {', '.join(param.choices)}"
        raise UsageError(f"{param.written} cannot be '{given}'", hint=hint)
    if param.type is None:
        return given
    try:
        return param.type(given)
    except UsageError as error:
        raise UsageError(f"{param.written}: {error}", hint=error.hint) from error


def _demand_separator(verb: Verb | Filter, arguments: Sequence[str]) -> None:
    """Raise UsageError for a QEMU command line without the `--` before it: its options would be taken for ours."""
    for before, word in pairwise(arguments):
        if os.path.basename(word).startswith("qemu-system") and not before.startswith("-"):
            hint = f"write: statepipe {verb.name} {shlex.quote(before)} -- {shlex.quote(word)} …"
            raise UsageError("a QEMU command line comes after --", hint=hint)


def _demand_no_strays(verb: Verb | Filter, arguments: Sequence[str], strays: list[str] | None, separated: bool) -> None:
    """Raise UsageError for `strays`, words that stand where only a command line after `--` may follow."""
    is_qemu = any(param.name == COMMAND and param.metavar == "QEMU" for param in verb.params)
    if not strays or not (separated or is_qemu):
        return
    hint = f"see: statepipe {verb.name} --help"
    optional = {name: param for param in verb.params if param.many == "optional" for name in param.names}
    switches = {name for param in verb.params if param.metavar is None for name in param.names}
    for before, word in pairwise(arguments):
        if before in switches and not is_option(word):
            hint = f"{before} takes no value: leave '{word}' out, if it was meant for one"
        if (param := optional.get(before)) is not None:
            with suppress(UsageError):
                _converted(param, word)
                hint = f"the value of {before} follows an equals sign: {before}={word}"
    raise UsageError(f"'{strays[0]}' is one argument too many", hint=hint)


def parse_word(word: str) -> tuple[Filter, Values]:
    """Return the filter and the values of a word, such as `checksum:sha256,to=FILE`. Raises UsageError naming the word.

    The name of a codec stands for compress with it: `zstd:auto`.
    """
    name, _, rest = word.partition(":")
    if name.partition(",")[0] in CODECS:
        name, rest = "compress", word
    row = find(name)
    options = {name.lstrip("-"): param.name for param in row.params for name in param.names}
    named, plain = [], []
    with naming(word):
        for item in rest.replace(",,", "\0").split(","):  # no argument contains a NUL
            item = item.replace("\0", ",")
            key, equals, value = item.partition("=")
            if key in options:
                named.append(f"{options[key]}={value}" if equals else options[key])
            elif item:
                plain.append(item)
        if any(param.name == COMMAND for param in row.params):
            if len(plain) > 1:
                raise UsageError("a comma ends the program's command line", hint="write a comma within it twice")
            plain = shell_words("".join(plain))
        return row, parse(row, [*named, "--", *plain])


def names_filter(text: str) -> bool:
    """Return whether a text would be a word: it begins with the name of a filter or a codec."""
    name = text.partition(":")[0].partition(",")[0]
    return name in CODECS or any(row.name == name for row in FILTERS)


def similar_filter(text: str) -> bool:
    """Return whether a filter or a codec may be meant that is written otherwise."""
    return closest(text.lower(), [*(row.name for row in FILTERS), *CODECS]) is not None


def refuse_word(text: str, what: str, written: str) -> None:
    """Raise UsageError if a word stands where `what` was forgotten. `written` is how to name a `what` of that name."""
    if names_filter(text):
        hint = f"name the {what} as well; if it is really called '{text}', write {written}"
        raise UsageError(f"'{text}' is a filter, and no {what} is named", hint=hint)


def refuse_strays(name: str, values: Values, case: str, hint: str | None = None) -> None:
    """Raise UsageError if a parameter was given that is not for this case, a kind of address or an action."""
    for param in find_verb(name).params:
        if param.only and case not in param.only and is_given(values.get(param.key)):
            raise UsageError(
                f"{param.written} is for {joined(param.only, 'and')} only", hint=hint or f"see: statepipe {name} --help"
            )


@contextmanager
def naming(word: str) -> Iterator[None]:
    """Add the word to every UsageError within: there can be many words."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"in the word '{word}': {error}", hint=error.hint) from error
