"""Inputs that nobody wrote: good ones with a few places changed, and values of the wrong shape in the right places.

Everything comes from the Random that is handed in, so a seed gives the same input again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
"""Those at which counts and sizes go wrong."""

LARGE = (*NUMBERS, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

LONGEST = 4 << 20
"""Bytes of an input: a block is not doubled beyond that."""


def mutated(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one place changed, or a few; bytes may come from `others`."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        random.choice(_CHANGES)(random, changed, others)
    return bytes(changed[:LONGEST])


def _flip(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _replace(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 10, 32, 48, 127, 128, 255, random.randrange(256)))


def _number(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    size, order = random.choice((2, 3, 4, 8)), random.choice(("big", "little"))
    at = random.randrange(len(data) + 1)
    number = random.choice(LARGE) + random.choice((-1, 0, 0, 1))
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]


def _cut(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[random.randrange(len(data) + 1) :]


def _remove(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    start, end = _range(random, data)
    del data[start:end]


def _insert(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(random.choice((1, 2, 4, 16, 100)))


def _repeat(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    start, end = _range(random, data)
    count = random.choice((1, 1, 2, 100, 5000))
    if (end - start) * count + len(data) <= LONGEST:
        data[end:end] = data[start:end] * count


def _move(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    start, end = _range(random, data)
    part = data[start:end]
    del data[start:end]
    at = random.randrange(len(data) + 1)
    data[at:at] = part


def _splice(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = random.choice(others)
        start, end = _range(random, other)
        at, _ = _range(random, data)
        data[at : at + random.choice((0, end - start))] = other[start:end]


def _range(random: Random, data: bytes | bytearray) -> tuple[int, int]:
    """Most often a short one."""
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 4, 8, 16, 64, 1000, len(data))))


_CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _replace, _number, _number, _cut, _remove, _insert, _repeat, _move, _splice),
)


# --- text


def odd_text(random: Random, samples: Sequence[str], pieces: Sequence[str]) -> str:
    """A sample, or pieces in a row; most often with a piece or a letter changed."""
    text = (
        random.choice(samples) if random.random() < 0.7 else "".join(random.choices(pieces, k=random.randrange(1, 8)))
    )
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        at = random.randrange(len(text) + 1)
        upto = at + random.choice((0, 0, 1, 3, len(text)))
        text = text[:at] + random.choice((random.choice(pieces), random.choice(LETTERS))) + text[upto:]
    return text


LETTERS = (
    *"\0\t\n\r\x1b\x7f :,=-%~'\"\\/@[]{}#",
    *"09aZ",
    "\x85",
    "\u2028",
    "²",
    "٣",
    "é",
    "\udcff",
    "\U0001f600",
    "9" * 5000,
)
"""What means something to somebody, and what is a digit or a line's end to some and to others not."""


# --- JSON

LONGEST_JSON = 1 << 20
"""Bytes of it."""


class _Huge:
    """Stands for a number that is written out, which json itself would not write."""

    def __init__(self, text: str) -> None:
        self.text = text


def odd_value(random: Random) -> Any:
    """A value that nobody expects, of any kind."""
    return random.choice(
        (
            *(None, True, False, 0, 1, -1, 1.5, -0.0, 1e308, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400),
            *("", "x", "\0", "\x1b[2J", "\ud800", "9", "-1", "²", "x" * 5000, "/dev/null", "a\nb", "nan"),
            *([], [None], [[]], [{}], [0] * 3000, ["x"], {}, {"": None}, {"x": []}, {"name": 7}, {"path": 7}),
            _Huge("1e999"),
            _Huge("NaN"),
            _Huge("-Infinity"),
            _Huge("9" * 5000),
            _Huge("[" * 20_000 + "]" * 20_000),
            _Huge('{"x":' * 2000 + "0" + "}" * 2000),
        )
    )


def odd_json(random: Random, sample: Any) -> bytes:
    """The sample with a value or two changed, a field gone or there twice, or its text changed."""
    value = json.loads(json.dumps(sample))
    for number in range(random.choice((1, 1, 1, 2, 4))):
        value = _changed(random, value, 1 if number else 300)
    text = _written(value)[:LONGEST_JSON]
    return mutated(random, text) if random.random() < 0.15 else text


def _changed(random: Random, value: Any, most: int) -> Any:
    places = list(_places(value))
    if not places or random.random() < 0.05:
        return odd_value(random)
    holder, key = random.choice(places)
    what = random.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.25 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * random.choice((1, most))
    elif what < 0.3 and isinstance(holder, dict):
        holder[random.choice(("", "x", "path", "name", "unknown", "\ud800", "__class__"))] = odd_value(random)
    else:
        holder[key] = odd_value(random)
    return value


def _places(value: Any) -> Any:
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in rows:
        yield value, key
        yield from _places(item)


def _written(value: Any) -> bytes:
    huge: list[str] = []

    def mark(item: object) -> str:
        assert isinstance(item, _Huge)
        huge.append(item.text)
        return f"@huge{len(huge) - 1}@"

    text = json.dumps(value, default=mark)
    for number, written in enumerate(huge):
        text = text.replace(f'"@huge{number}@"', written)
    return text.encode(errors="surrogatepass")


# --- portions


def portions(data: bytes) -> list[bytes]:
    """`data` in buffers of sizes that depend on nothing else, flush marks between them."""
    random = Random(len(data) * 31 + sum(data[:64]))
    size = random.choice((1, 3, 17, 1000, 1 << 16, len(data) or 1))
    size = max(size, len(data) // 2000)  # a megabyte by single bytes tells no more than a kilobyte
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [piece for part in parts for piece in ((part, b"") if random.random() < 0.05 else (part,))]
