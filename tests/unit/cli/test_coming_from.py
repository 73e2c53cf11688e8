"""docs/coming-from.md: each command line of statepipe parses, and those of hosts by name are among them."""

from __future__ import annotations

from statepipe.cli.grammar import parse, parse_word
from statepipe.cli.verbs import VERBS
from tests.documents import text_of
from tests.recipes import PAGE, of_statepipe
from tests.unit.cases import case


def test_every_command_line_parses() -> None:
    lines = list(of_statepipe(text_of(PAGE)))
    assert {line[0] for line in lines} >= {"save", "load", "convert", "verify-state", "tunnel", "pipe", "send", "recv"}
    for name, *arguments in lines:
        with case(f"{name} {arguments}"):
            verb = next(verb for verb in VERBS if verb.name == name)
            for word in parse(verb, [each.replace("…", "x") for each in arguments]).get("words") or ():
                parse_word(word)
