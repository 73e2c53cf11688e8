"""The parser of a verb's arguments for all that is not plain: --help, errors, and the rarer ways to write an option.

It is argparse, which takes 5 ms of start-up; plain command lines are read by grammar.py alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from statepipe.cli.filtertable import Filter
from statepipe.cli.messages import show
from statepipe.cli.verb import Values, Verb, is_option, joined
from statepipe.errors import UsageError
from statepipe.guessing import closest, did_you_mean
from statepipe.typed import Any, NoReturn

_MANY = {"optional": "?", "any": "*"}


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
        if re.match(r"unrecognized arguments: (-[rR]\b|--recipient)", message) and "--identity" in known:
            return "-i FILE names the secret key that decrypts; "
        if re.match(r"unrecognized arguments: (-i\b|--identity)", message) and "--recipient" in known:
            return "-r RECIPIENT names who can decrypt; "
        if key := re.match(r"unrecognized arguments: ([\w-]+)=", message):
            return did_you_mean(key[1], [name.removeprefix("--") for name in known])
        if message.endswith("--qmp"):
            return "--qmp names the unix socket of the guest's QEMU monitor; "
        if message.endswith(" FILE") and any(action.metavar == "QEMU" for action in self._get_positional_actions()):
            return f"write: {self.prog} FILE -- qemu-system-x86_64 …; "
        if takes_file and re.match("unrecognized arguments: (?!-)", message):
            return "give one FILE at a time; "
        if "--output" in known and re.match("unrecognized arguments: (?!-)", message):
            return "-o FILE names the output; "
        return ""

    def print_help(self, file: object = None) -> None:
        # argparse writes an optional value as another word, which it would not be
        show(re.sub(r"(--[\w-]+) \[([A-Z]+)\]", r"\1[=\2]", self.format_help()))


def parsed(verb: Verb | Filter, arguments: Sequence[str]) -> Values:
    """Return the texts of a verb's arguments. Raises UsageError; SystemExit(0) after --help."""
    parser = parser_for(verb)
    return vars(parser.parse_args(_options_first(verb, arguments, parser)))


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
        if not is_option(word):
            plain.append(word)
        elif (word.partition("=")[0] if word.startswith("--") else word[:2]) not in known:
            parser.error(f"unrecognized arguments: {word}")
        elif word not in taking_value:
            named.append(word)
        elif is_option(value := next(rest, "--")):
            raise UsageError(f"{word} needs a value", hint=f"see: statepipe {verb.name} --help")
        else:
            named.append(f"{taking_value[word]}={value}")
    plain += rest
    return [*named, "--", *plain] if plain else named  # argparse refuses a lone -- where no argument can follow
