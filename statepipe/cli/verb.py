"""What a verb is: its name, its parameters, and who carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Param:
    """An argument or option of a verb. `name` begins with -- for an option; no `metavar` makes it a switch.

    `many`, of an argument: 'one', 'optional' (?) or 'any' (*); an option with 'any' may be given again and again.
    `short` is an option's one letter, with its dash. `dash`, of one that takes a file's name: whether `-` stands for
    standard input or output there.
    """

    name: str
    help: str
    metavar: str | None = None
    default: Any = None
    many: str = "one"
    choices: tuple[str, ...] | None = None
    short: str | None = None
    dash: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every way to write an option, the long one last; none for an argument."""
        if not self.name.startswith("--"):
            return ()
        return (self.short, self.name) if self.short else (self.name,)


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line: `run` is `module:function`, which takes the parsed values."""

    name: str
    help: str
    params: tuple[Param, ...]
    run: str


AS_JSON = Param("--json", "print JSON")
