"""The working set of a saved guest, as the bytes of a file (docs/state-file.md, section 13).

It is one JSON object: the digest of the state's stream, and for each block of RAM the pages that the guest touched
first, as pairs of numbers: how many pages are skipped, how many follow. So pages are in order and none is there twice.

A changed file could only change which pages are sent first: their contents come from the state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.shapes import Misshapen, fields, like, many, one_of, parse, text, whole

MAGIC = b'{"statepipe":1,"kind":"working-set",'
"""What `build_working_set` writes first. A file that does not begin so is not replaced."""

MOST_PAGES = 1 << 18
"""Pages at most: 1 GiB of a guest."""

LIMIT = 4 << 20
"""Bytes at most. MOST_PAGES single pages, each with a distance of nine digits, take 3 MiB."""

_MOST_BLOCKS = 4096


def _numbers(value: object, where: str) -> None:
    """A list of pairs: how many pages are skipped, and how many follow."""
    if not isinstance(value, list) or len(value) % 2 or not set(map(type, value)) <= {int}:
        raise Misshapen(f"{where} is not a list of pairs of whole numbers")
    if value and (min(value) < 0 or min(value[1::2]) < 1):
        raise Misshapen(f"{where} has a number that is too small")


_BLOCK = fields({"name": text(255), "pages": _numbers})
_SET = fields(
    {
        "statepipe": whole(1, 1),
        "kind": one_of("working-set"),
        "blake3": like("[0-9a-f]{64}", "64 hexadecimal digits"),
        "blocks": many(_BLOCK, _MOST_BLOCKS),
    }
)


def build_working_set(digest: str, blocks: Iterable[tuple[str, Sequence[tuple[int, int]]]]) -> bytes:
    """Return the file for the state of this digest: each block's name, and its pages as ascending runs (first, count).

    There are at most MOST_PAGES of them.
    """
    listed = []
    for name, runs in blocks:
        ends = (0, *(first + count for first, count in runs))
        numbers = [number for (first, count), end in zip(runs, ends, strict=False) for number in (first - end, count)]
        if numbers:
            listed.append({"name": name, "pages": numbers})
    facts = {"statepipe": 1, "kind": "working-set", "blake3": digest, "blocks": listed}
    return json.dumps(facts, separators=(",", ":")).encode() + b"\n"


def parse_working_set(data: bytes, digest: str, blocks: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """Return the pages of each block as ascending runs (first, count). `blocks` has the number of pages of each block
    of the state, whose stream has this digest.

    Raises IntegrityError for what `build_working_set` does not make, and StatepipeError for the set of another state.
    """
    try:
        if len(data) > LIMIT:
            raise Misshapen(f"it is larger than {LIMIT >> 20} MiB")
        facts = parse(data, _SET)
        if facts["blake3"] != digest:
            raise StatepipeError("it belongs to another state")
        found: dict[str, list[tuple[int, int]]] = {}
        for block in facts["blocks"]:
            name, numbers = block["name"], block["pages"]
            if name in found or sum(numbers) > blocks.get(name, 0):
                raise Misshapen(f"it names pages that the block {name[:80]!r} does not have")
            edges = list(accumulate(numbers))
            found[name] = list(zip(edges[::2], numbers[1::2], strict=True))
        if sum(count for runs in found.values() for _, count in runs) > MOST_PAGES:
            raise Misshapen(f"it names more than {MOST_PAGES} pages")
    except Misshapen as error:
        raise IntegrityError(f"it is damaged: {error}") from error
    return found
