"""The documents as tests read them: their tables, and the bytes in their dumps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def text_of(name: str) -> str:
    """A document of docs/."""
    return (DOCS / name).read_text()


def section(name: str, heading: str) -> str:
    """What stands below the heading that begins so, up to the next one of its rank or of a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}.*?\n(.*?)(?=^#{{1,}} |\Z)", text_of(name), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{name} has no heading '{heading}'"
    return found[2]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without the lines of heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = [at for at, line in enumerate(lines) if set(line) <= set("|-")]
    heads = {at - 1 for at in rules} | set(rules)
    return [_cells(line) for at, line in enumerate(lines) if at not in heads]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def keys(text: str) -> dict[str, str]:
    """The keys that the tables in a text explain, each with its type: of rows like | `key` | type | meaning |."""
    return {row[0].strip("`"): row[1] for row in rows(text) if re.fullmatch("`[a-z0-9_]+`", row[0])}


def dumps(text: str) -> list[list[tuple[bytes, str]]]:
    """The hexdumps in a text, each as its rows: their bytes and their words. An offset that is wrong is a failure."""
    return [_rows(block) for block in re.findall(r"^```hexdump\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def _rows(block: str) -> list[tuple[bytes, str]]:
    found, at = [], 0
    for line in block.splitlines():
        row = re.fullmatch(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ){0,15}[0-9a-f]{2})(?: {2,}(.*))?", line)
        assert row is not None, f"no row of a dump: {line}"
        assert int(row[1], 16) == at, f"the offset of this row should be {at:04x}: {line}"
        found.append((bytes.fromhex(row[2]), row[3] or ""))
        at += len(found[-1][0])
    return found


def joined(dump: list[tuple[bytes, str]]) -> bytes:
    """All the bytes of a dump."""
    return b"".join(data for data, _ in dump)


# --- types as the tables name them


CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "whole number": ([0, 2**63 - 1], [-1, 2**63, 1.5, True, "1", None]),
    "whole number, required": ([1], [-1, 2**63, 1.5, True, "1", None]),
    "whole number, at most 2^36": ([0, 2**36], [-1, 2**36 + 1, None]),
    "whole number (may be negative)": ([1 - 2**63, 2**63 - 1], [-(2**63), 2**63, 1.5]),
    "number": ([0, -1.5, 2**40], [True, "1", None]),
    "true or false": ([True, False], [0, 1, "true", None]),
    "digest": (["0" * 64], ["0" * 65, 1, None]),
    "object": ([], [[], "x", None]),
}


def cases(kind: str) -> tuple[list[Any], list[Any]]:
    """Values of a type as the documents name it, and values that are not of it."""
    if kind.endswith("or null"):
        right, wrong = cases(kind.removesuffix("or null").rstrip(", "))
        return [*right, None], [value for value in wrong if value is not None]
    if found := re.fullmatch(r"text, at most ([0-9,]+)", kind):
        most = number(found[1])
        return ["", "x" * most], ["x" * (most + 1), 1, None]
    if found := re.fullmatch(r"list of at most ([0-9,]+) texts, each at most ([0-9,]+)", kind):
        most, length = map(number, found.groups())
        return [[], [""] * most, ["x" * length]], [[""] * (most + 1), ["x" * (length + 1)], "x", [1], None]
    if re.fullmatch("list of at most [0-9,]+ objects", kind):
        return [[]], [[{}], {}, [1], "x", None]
    if found := re.fullmatch("object of at most ([0-9]+) keys", kind):
        return [{}], [{str(each): [] for each in range(number(found[1]) + 1)}, [], None]
    return CASES[kind]


def number(text: str) -> int:
    """As the documents write it: 65,536."""
    return int(text.replace(",", ""))
