"""One grammar for commands and words: `NAME ARG --opt V` and `NAME:ARG,opt=V` are read by the same parser.

In a word the first colon ends the name, as in QEMU's tcp:host:port. Commas separate; a comma inside a value is written
twice, as in QEMU's options. `opt` alone is a switch. On a command line options can stand anywhere before `--`. An
option's letter can be used in both.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NoReturn

from statepipe.cli.filtertable import CODECS, FILTERS, Filter, find
from statepipe.cli.messages import show
from statepipe.cli.verb import Param, Values, Verb, is_given, joined, shell_words
from statepipe.cli.verbs import find_verb
from statepipe.descriptors import look_at
from statepipe.errors import UsageError
from statepipe.guessing import closest, did_you_mean

COMMAND = "command"
"""The name of the parameter that takes a command line of another program."""

_MANY = {"optional": "?", "any": "*"}

_PATHS = ("FILE", "DIR", "CA", "IDENTITY", "IDENTITIES")
"""The metavars of files and folders."""


class Parser(argparse.ArgumentParser):
    """argparse with our errors: it raises UsageError and never exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.replace(": -- ", ": "), hint=f"{self._advice(message)}see: {self.prog} --help")

    def _advice(self, message: str) -> str:
        """Return the beginning of a hint, for a misspelt option or a second FILE."""
        takes_file = any(action.metavar == "FILE" for action in self._get_positional_actions())
        known = [name for name in self._option_string_actions if name.startswith("--")]
        if option := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            if "--one-frame" in known and closest(option[1], ["--level"]):
                return "the level is part of the codec, as in zstd:3; "
            return did_you_mean(option[1], known)
        if key := re.match(r"unrecognized arguments: ([\w-]+)=", message):
            return did_you_mean(key[1], [name.removeprefix("--") for name in known])
        if message.endswith("--qmp"):
            return "--qmp names the unix socket of the guest's QEMU monitor; "
        if message.endswith(" FILE") and any(action.metavar == "QEMU" for action in self._get_positional_actions()):
            return f"write: {self.prog} FILE -- qemu-system-x86_64 …; "
        if takes_file and re.match("unrecognized arguments: (?!-)", message):
            return "give one FILE at a time; "
        return ""

    def print_help(self, file: object = None) -> None:
        # argparse writes an optional value as another word, which it would not be
        show(re.sub(r"(--[\w-]+) \[([A-Z]+)\]", r"\1[=\2]", self.format_help()))


def parser_for(verb: Verb | Filter) -> Parser:
    """Return the parser of a verb's arguments. The help groups options that only some uses of the verb take."""
    parser = Parser(prog=f"statepipe {verb.name}", description=verb.help, allow_abbrev=False)
    groups: dict[str, Any] = {"": parser}
    needs = {param.name: param.needs for param in verb.params}
    for param in verb.params:
        extra: dict[str, Any] = {"default": param.default, "metavar": param.metavar}
        if param.names and param.metavar is None:
            extra = {"action": "store_true"}
        elif param.names and param.many == "any":
            extra |= {"action": "append", "default": []}
        elif param.many in _MANY:
            extra["nargs"] = _MANY[param.many]
            if param.names:
                extra["const"] = param.bare
        elif param.required:
            extra["required"] = True
        title = needs.get(param.needs or "") or param.needs or ""
        if param.only and not any(param.name in case for case in param.only):
            title = joined(param.only, "or")
        title = title if param.names else ""
        if title not in groups:
            groups[title] = parser.add_argument_group(f"options with {title}")
        text = param.help.replace("%", "%%")
        groups[title].add_argument(*param.names or (param.name,), help=text, **extra)
    return parser


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
    parser = parser_for(verb)
    values = vars(parser.parse_args(_options_first(verb, arguments, parser)))
    _demand_no_strays(verb, arguments, values.get(COMMAND), command is not None)
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
    for before, word in pairwise(arguments):
        if (param := optional.get(before)) is not None:
            with suppress(UsageError):
                _converted(param, word)
                hint = f"the value of {before} follows an equals sign: {before}={word}"
    raise UsageError(f"'{strays[0]}' is one argument too many", hint=hint)


def _options_first(verb: Verb | Filter, arguments: Sequence[str], parser: Parser) -> list[str]:
    """Return the arguments with every option before `--` and all others after: argparse fails where they alternate.

    Raises UsageError for an unknown option, which argparse reports only after all that is missing.
    """
    known = {"-h", "--help", *(name for param in verb.params for name in param.names)}
    taking_value = {name: param.name for param in verb.params if param.takes_next for name in param.names}
    named, plain = [], []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            break
        if not _is_option(word):
            plain.append(word)
        elif (word.partition("=")[0] if word.startswith("--") else word[:2]) not in known:
            parser.error(f"unrecognized arguments: {word}")
        elif word not in taking_value:
            named.append(word)
        elif _is_option(value := next(rest, "--")):
            raise UsageError(f"{word} needs a value", hint=f"see: statepipe {verb.name} --help")
        else:
            named.append(f"{taking_value[word]}={value}")
    plain += rest
    return [*named, "--", *plain] if plain else named  # argparse refuses a lone -- where no argument can follow


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and not word[1:].isdigit()


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


def refuse_word(text: str, what: str, written: str) -> None:
    """Raise UsageError if a word stands where `what` was forgotten. `written` is how to name a `what` of that name."""
    name = text.partition(":")[0].partition(",")[0]
    if name in CODECS or any(row.name == name for row in FILTERS):
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
