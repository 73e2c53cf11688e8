"""The file of a working set: what is written is read again, and what is not written is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from statepipe.errors import IntegrityError, StatepipeError
from statepipe.formats.workingset import LIMIT, MAGIC, MOST_PAGES, build_working_set, parse_working_set

DIGEST = "ab" * 32
BLOCKS = {"pc.ram": 1 << 20, "pc.bios": 64, "pc.rom": 32}
PAGES = {"pc.ram": [(0, 3), (4, 1), ((1 << 20) - 1, 1)], "pc.bios": [(1, 63)]}


def test_what_is_written_is_read_again() -> None:
    data = build_working_set(DIGEST, [*PAGES.items(), ("pc.rom", [])])
    assert data.startswith(MAGIC)
    assert parse_working_set(data, DIGEST, BLOCKS) == PAGES


def test_the_largest_one_is_read_again() -> None:
    pages = {"pc.ram": [(999_999_999 * number, 1) for number in range(1, MOST_PAGES + 1)]}
    data = build_working_set(DIGEST, pages.items())
    assert len(data) <= LIMIT
    assert parse_working_set(data, DIGEST, {"pc.ram": 1 << 60}) == pages


def test_that_of_another_state_is_not_called_damaged() -> None:
    data = build_working_set("cd" * 32, PAGES.items())
    with pytest.raises(StatepipeError, match="it belongs to another state") as caught:
        parse_working_set(data, DIGEST, BLOCKS)
    assert not isinstance(caught.value, IntegrityError)


def changed(**facts: Any) -> bytes:
    good: dict[str, Any] = json.loads(build_working_set(DIGEST, PAGES.items()))
    return json.dumps(good | facts).encode()


def block(*numbers: Any, name: Any = "pc.ram") -> bytes:
    return changed(blocks=[{"name": name, "pages": list(numbers)}])


WRONG = {
    "empty": b"",
    "cut": changed()[:-9],
    "not text": b"\xff\xfe" + changed(),
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"7",
    "another version": changed(statepipe=2),
    "a state's kind": changed(kind="state"),
    "no digest": changed(blake3=None),
    "a digest in capitals": changed(blake3="AB" * 32),
    "no blocks": changed(blocks=None),
    "too many blocks": changed(blocks=[{"name": "pc.rom", "pages": []}] * 5000),
    "a name that is none": block(1, 1, name=7),
    "a long name": block(1, 1, name="x" * 256),
    "an unknown block": block(0, 1, name="ram9"),
    "half a pair": block(1),
    "no page": block(1, 0),
    "fewer than none": block(-1, 1),
    "fewer than none later": block(5, 1, -3, 2),
    "a fraction": block(1, 1.5),
    "truth": block(1, True),
    "words": block("1", "1"),
    "a list inside": block([1], 1),
    "outside its block": block(1 << 20, 1),
    "beyond its block": block((1 << 20) - 1, 2),
    "beyond any number": block(10**30, 1),
    "a number of 5000 digits": changed().replace(b"[0,", b"[" + b"9" * 5000 + b","),
    "too many pages": block(0, MOST_PAGES + 1),
    "too many in two runs": block(0, MOST_PAGES, 1, 1),
    "a block twice": changed(blocks=[{"name": "pc.ram", "pages": [0, 1]}] * 2),
    "too large": changed() + b" " * LIMIT,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_written_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="it is damaged: "):
        parse_working_set(WRONG[name], DIGEST, BLOCKS)
