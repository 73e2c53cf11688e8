"""What a verb is: its name, its parameters, and who carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from statepipe.stages import Param


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line: `run` is `module:function`, which takes the parsed values."""

    name: str
    help: str
    params: tuple[Param, ...]
    run: str


AS_JSON = Param("--json", "print JSON")
