"""What a verb is: its name, its parameters with their types, and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statepipe.descriptors import demand_numbered
from statepipe.errors import UsageError
from statepipe.typed import Any, NamedTuple
from statepipe.units import number_in

Values = dict[str, Any]
"""The values of a verb's parameters, by `Param.key`."""


class Param(NamedTuple):
    """An argument or an option of a verb. An option's `name` begins with --; without a `metavar` it is a switch.

    `many`, of an argument: "one", "optional" or "any"; an option with "any" can be repeated, and one with "optional"
    takes a value only after `=`: without one it means `bare`. `short` is an option's letter with its dash. With `dash`,
    `-` stands for standard input or output. `type` converts the text and raises UsageError. A `required` option must be
    given. `needs` is the option without which this one has no effect. `only` names the cases in which it may be given:
    kinds of address, actions (grammar.py, refuse_strays).
    """

    name: str
    help: str
    metavar: str | None = None
    default: Any = None
    many: str = "one"
    bare: str = ""
    choices: tuple[str, ...] = ()
    short: str | None = None
    dash: bool = False
    type: Callable[[str], Any] | None = None
    required: bool = False
    needs: str | None = None
    only: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name under which `Values` has it."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def takes_next(self) -> bool:
        """Whether the value of this option is the word after it."""
        return self.metavar is not None and self.many != "optional"

    @property
    def names(self) -> tuple[str, ...]:
        """Every way to write an option, the long one last; none for an argument."""
        if not self.name.startswith("--"):
            return ()
        return (self.short, self.name) if self.short else (self.name,)

    @property
    def written(self) -> str:
        """How a message names it: `--to FILE`, `--lazy[=WHEN]`, `FILE`."""
        if self.names and self.many == "optional":
            return f"{self.name}[={self.metavar}]"
        return " ".join(filter(None, (*self.names[-1:], self.metavar)))


class Verb(NamedTuple):
    """A verb of the command line. `run` is `module:function`; the function takes the verb's name and the values."""

    name: str
    help: str
    params: tuple[Param, ...]
    run: str


def is_given(value: Any) -> bool:
    """Return whether a value is one that somebody gave: 0 and "" are, too."""
    return value is not None and value is not False and value != []


def is_option(word: str) -> bool:
    """Return whether a word of a command line names an option: it begins with a dash, and is no `-` and no number."""
    return word.startswith("-") and word != "-" and not word[1:].isdigit()


def joined(names: Sequence[str], last: str) -> str:
    """Return a list for a sentence: `a, b or c`, with `last` as its last link."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def seconds(least: float = 0, most: float = 1_000_000) -> Callable[[str], float]:
    """Return the type of a number of seconds."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = -1
        if not least <= number <= most:
            raise UsageError(f"'{text[:40]}' is not a number of seconds", hint=f"give one from {least:g} to {most:g}")
        return number

    return convert


def number(least: int, most: int, of: str) -> Callable[[str], int]:
    """Return the type of a number `of` things."""

    def convert(text: str) -> int:
        if (found := number_in(text, least, most)) is None:
            raise UsageError(f"'{text[:40]}' is not a number of {of}", hint=f"give one from {least} to {most}")
        return found

    return convert


def descriptor(text: str) -> int:
    """The type of a descriptor that the caller has opened."""
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"'{text[:40]}' is not a descriptor", hint="give its number: 3, with 3< FILE or 3> FILE")
    demand_numbered(text)
    return int(text)


def shell_words(text: str) -> list[str]:
    """The type of a command line, which is split as a shell does."""
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        what = f"the command line cannot be split into words: {str(error).lower()}"
        raise UsageError(what, hint="check its quotes") from error


def moved_disk(text: str) -> str:
    """The type of OLD=NEW."""
    if "=" not in text.strip("="):
        raise UsageError(f"'{text}' does not say where a disk is now", hint="write --disk OLD=NEW")
    return text
