"""One rule for commands and words: `NAME ARG --opt V` and `NAME:ARG,opt=V` are parsed by the same parser.

The first colon ends the name, as in QEMU's tcp:host:port; commas separate; `opt` alone is a switch. A comma inside
a value is written twice, as in QEMU's options. On a command line options stand anywhere before `--`. An option's one
letter, if it has one, stands for its name in both.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NoReturn

from statepipe.cli.filtertable import FILTERS, Filter, find
from statepipe.cli.guessing import closest
from statepipe.cli.messages import show
from statepipe.cli.verb import Param, Verb
from statepipe.descriptors import demand_numbered, look_at
from statepipe.errors import UsageError

COMMAND = "command"
"""The name of the parameter that takes a command line of another program."""

CODECS = ("zstd", "gzip", "bzip2", "xz", "lz4")

_MANY = {"optional": "?", "any": "*"}

_PATHS = ("FILE", "DIR", "CA", "IDENTITY", "IDENTITIES")
"""What stands for the name of a file or folder."""


class Parser(argparse.ArgumentParser):
    """argparse with our errors: it raises UsageError and never exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.replace(": -- ", ": "), hint=f"{self._meant(message)}see: {self.prog} --help")

    def _meant(self, message: str) -> str:
        """The beginning of a hint, for an option that is misspelt, or a second FILE."""
        takes_file = any(action.metavar == "FILE" for action in self._get_positional_actions())
        if takes_file and re.match("unrecognized arguments: (?!-)", message):
            return "give one FILE at a time; "
        unknown = re.match(r"unrecognized arguments: (--[a-z-]+)", message)
        known = [name for name in self._option_string_actions if name.startswith("--")]
        option = closest(unknown[1], known) if unknown else None
        return f"did you mean {option}? " if option else ""

    def print_help(self, file: object = None) -> None:
        show(self.format_help())


def parser_for(verb: Verb | Filter) -> Parser:
    """The parser of one verb's arguments."""
    parser = Parser(prog=f"statepipe {verb.name}", description=verb.help, allow_abbrev=False)
    for param in verb.params:
        _add(parser, param)
    return parser


def _add(parser: argparse.ArgumentParser, param: Param) -> None:
    if param.names and param.metavar is None:
        parser.add_argument(*param.names, action="store_true", help=param.help)
        return
    extra: dict[str, Any] = {"default": param.default}
    if param.names and param.many == "any":
        extra = {"action": "append", "default": []}
    elif param.many in _MANY:
        extra["nargs"] = _MANY[param.many]
    if param.choices is not None:
        extra["choices"] = param.choices
    parser.add_argument(*param.names or (param.name,), metavar=param.metavar, help=param.help, **extra)


def parse(verb: Verb | Filter, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of a verb's parameters by name. Raises UsageError; SystemExit(0) after --help."""
    _demand_separator(verb, arguments)
    own, command = _cut_command(verb, arguments)
    values = vars(parser_for(verb).parse_args(_options_first(verb, own)))
    _refuse_dashes(verb, values)
    _look_at_descriptors(values)
    return values | command


def _refuse_dashes(verb: Verb | Filter, values: dict[str, Any]) -> None:
    """Raises UsageError for a `-` where it stands for no standard input or output: nobody means a file of that name."""
    for param in verb.params:
        value = values.get(param.name.removeprefix("--").replace("-", "_"))
        if param.metavar in _PATHS and not param.dash and "-" in (value if isinstance(value, list) else [value]):
            what = " ".join((*param.names[-1:], param.metavar))
            hint = "a file that is really called so is written ./-"
            raise UsageError(f"{what} cannot be -: it stands for no file there", hint=hint)


def _look_at_descriptors(values: dict[str, Any]) -> None:
    """Before anything is opened: what the caller has not opened would be ours. Raises UsageError."""
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if not name.endswith("_fd"):
                look_at(text)
            else:
                demand_numbered(text)


def _demand_separator(verb: Verb | Filter, arguments: Sequence[str]) -> None:
    """Raises UsageError for a QEMU's command line that `--` was forgotten before: its options would be taken for ours,
    or for unknown ones."""
    if "--" in arguments or not any(param.name == COMMAND for param in verb.params):
        return
    for before, word in pairwise(arguments):
        if os.path.basename(word).startswith("qemu-system") and not before.startswith("-"):
            hint = f"write: statepipe {verb.name} {before} -- {word} …"
            raise UsageError("a QEMU command line comes after --", hint=hint)


def _cut_command(verb: Verb | Filter, arguments: Sequence[str]) -> tuple[Sequence[str], dict[str, list[str]]]:
    """Take what follows `--` from a verb that runs a command: argparse would swallow a `--` of the command's own."""
    if "--" not in arguments or not any(param.name == COMMAND for param in verb.params):
        return arguments, {}
    at = arguments.index("--")
    return arguments[:at], {COMMAND: list(arguments[at + 1 :])}


def _options_first(verb: Verb | Filter, arguments: Sequence[str]) -> list[str]:
    """The same, with every option before `--` and all others after: argparse gives up where they alternate."""
    taking_value = {name: param.name for param in verb.params if param.metavar is not None for name in param.names}
    named, plain = [], []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            break
        if not _is_option(word):
            plain.append(word)
        elif word in taking_value:
            named.append(f"{taking_value[word]}={_value(verb, word, next(rest, '--'))}")
        else:
            named.append(word)
    plain += rest
    return [*named, "--", *plain] if plain else named  # a lone `--` is refused where no argument can follow


def _value(verb: Verb | Filter, option: str, word: str) -> str:
    """What follows an option, unless that is another option: the value was forgotten then."""
    if _is_option(word):
        raise UsageError(f"{option} needs a value", hint=f"see: statepipe {verb.name} --help")
    return word


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not word[1:].isdigit()


def parse_word(word: str) -> tuple[Filter, dict[str, Any]]:
    """A word, as `checksum:sha256,to=FILE`: its filter and parameters. Raises UsageError naming the word.

    A codec's name stands for compress with it: `zstd:auto`.
    """
    name, _, rest = word.partition(":")
    if name.partition(",")[0] in CODECS:
        name, rest = "compress", word
    row = find(name)
    with naming(word):
        return row, parse(row, _arguments(row, rest))


def refuse_word(text: str, what: str, written: str) -> None:
    """Raises UsageError for a word in the place of `what`, which was forgotten; `written`: how it is really meant."""
    name = text.partition(":")[0].partition(",")[0]
    if name in CODECS or any(row.name == name for row in FILTERS):
        raise UsageError(
            f"'{text}' is a word, and no {what} is named",
            hint=f"name the {what} as well; one that is really called so is written {written}",
        )


@contextmanager
def naming(word: str) -> Iterator[None]:
    """Within it, what is wrong with a word is told with the word: there may be many."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"in the word '{word}': {error}", hint=error.hint) from error


def _arguments(row: Filter, rest: str) -> list[str]:
    """A word's tail as the command line it stands for: options first, what has no option's name after."""
    options = {name.lstrip("-"): param.name for param in row.params for name in param.names}
    named, plain = [], []
    for item in _split(rest):
        key, equals, value = item.partition("=")
        if key in options:
            named.append(f"{options[key]}={value}" if equals else options[key])
        elif item:
            plain.append(item)
    return [*named, "--", *_command_line(row, plain)]


def _command_line(row: Filter, plain: list[str]) -> list[str]:
    """The arguments of a word; those of another program are one line, which is split as a shell would."""
    if not any(param.name == COMMAND for param in row.params):
        return plain
    if len(plain) > 1:
        raise UsageError("a comma ends the program's line", hint="a comma that is the program's is written twice")
    try:
        return shlex.split("".join(plain))
    except ValueError as error:
        raise UsageError(f"cannot split the program's line: {error}", hint="look at its quotes") from error


def _split(text: str) -> list[str]:
    """At single commas; NUL, which no argument can hold, stands for a doubled one meanwhile."""
    return [item.replace("\0", ",") for item in text.replace(",,", "\0").split(",")]
