"""The commands of docs/coming-from.md, run as they are printed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.documents import section

PAGE = "coming-from.md"
ROOT = Path(__file__).parents[1]


def commands(heading: str) -> list[str]:
    """What a user or root types in a section, in order. Lines of named hosts are not among them."""
    text = section(PAGE, heading).replace("\\\n", " ")
    return re.findall(r"^    [$#] (.+)$", text, re.MULTILINE)


def of_statepipe(text: str) -> Iterator[list[str]]:
    """The arguments of each statepipe in a text with literal blocks, on any host."""
    for line in re.findall(r"^    [a-z]*[$#] (.+)$", text.replace("\\\n", " "), re.MULTILINE):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
        lexer.whitespace_split = True
        found: list[str] | None = None
        for word in lexer:
            if set(word) <= set("|<>;&"):
                if found:
                    yield found
                found = None
            elif found is not None:
                found.append(word)
            elif word == "statepipe":
                found = []
        if found:
            yield found


def script(lines: list[str], key: str, names: Mapping[str, object]) -> str:
    """A script of these lines that ends at the first failure, with other `names`, and with the public key of `key`."""
    text = "\n".join(lines).replace("age1…", f'"$(grep -o "age1[a-z0-9]*" {key})"')
    for name, other in names.items():
        assert name in text, f"the page no longer has {name}"
        text = text.replace(name, str(other))
    return f'set -eu\nstatepipe() {{ {shlex.join([sys.executable, "-P", "-m", "statepipe"])} "$@"; }}\n{text}\n'
