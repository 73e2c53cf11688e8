"""What comes in as JSON has a shape, and is held against it once, at its door: after that nobody looks again.

A file, a peer, QEMU's monitor and another user of the host are all input. A shape is a function that raises Misshapen,
naming the place, for a value that is not of it; the builders below make one out of others:

    DISK = fields({"path": text(4096), "size": whole()}, optional={"format": text(64)})
    GUEST = fields({"name": maybe(text(256)), "disks": many(DISK, most=256)})

    facts = parse(payload, GUEST)

Fields that a shape does not name may be there, for what is written later can say more. Whoever opens the door says what
a misfit is: an IntegrityError of a file, a PeerError of a peer, a QemuError of a monitor.

msgspec would do the same, but costs 20 ms of every start, and refuses the lone surrogates in which the JSON of a path
that is no UTF-8 is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

Shape = Callable[[object, str], None]
"""Raises Misshapen unless the value, which stands at the named place, is of the shape."""

LARGEST = (1 << 63) - 1
"""No count, size or offset of ours or of QEMU's is larger."""


class Misshapen(ValueError):
    """A value is not of the shape that is asked for. The message names the place and what is expected there."""


def parse(text: bytes | str, shape: Shape) -> Any:
    """The value that is written as JSON in `text`, once it is known to be of `shape`. The caller bounds its length.

    Bytes are UTF-8 without a byte order mark (RFC 8259, 8.1): json.loads alone would guess UTF-16 and UTF-32 too, and
    take surrogates in them. Raises Misshapen, also for what is no JSON, and for JSON that is nested deeper than Python
    goes.
    """
    try:
        value = json.loads(text if isinstance(text, str) else bytes(text).decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Misshapen(f"it is not JSON: {error}") from error
    return check(value, shape)


def check(value: Any, shape: Shape) -> Any:
    """The value, once it is known to be of `shape`. Raises Misshapen."""
    shape(value, "")
    return value


def whole(least: int = 0, most: int = LARGEST) -> Shape:
    """An integer from `least` to `most`."""

    def look(value: object, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _expect(f"a whole number from {least} to {most}", value, where)

    return look


def number(value: object, where: str) -> None:
    """An integer or a fraction, no larger than a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        _expect("a number", value, where)


def text(most: int = 4096) -> Shape:
    """Text of at most so many characters."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, str) or len(value) > most:
            _expect(f"text of at most {most} characters", value, where)

    return look


def like(pattern: str, what: str) -> Shape:
    """Text that the pattern fits from end to end; `what` says so in words."""
    wanted = re.compile(pattern, re.ASCII)

    def look(value: object, where: str) -> None:
        if not isinstance(value, str) or not wanted.fullmatch(value):
            _expect(what, value, where)

    return look


def flag(value: object, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        _expect("true or false", value, where)


def anything(value: object, where: str) -> None:
    """Whatever is there: nobody reads it but to show it."""


def one_of(*words: str) -> Shape:
    """One of these words."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, str) or value not in words:
            _expect(" or ".join(words), value, where)

    return look


def just(expected: bool) -> Shape:
    """True, or false, and nothing else."""

    def look(value: object, where: str) -> None:
        if value is not expected:
            _expect("true" if expected else "false", value, where)

    return look


def maybe(shape: Shape) -> Shape:
    """Null, or a value of the shape."""

    def look(value: object, where: str) -> None:
        if value is not None:
            shape(value, where)

    return look


def many(shape: Shape, most: int, least: int = 0) -> Shape:
    """A list of `least` to `most` values, each of the shape."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            _expect(f"a list of {least} to {most}" if least else f"a list of at most {most}", value, where)
        for index, item in enumerate(value):
            shape(item, f"{where}[{index}]")

    return look


def table(shape: Shape, most: int, names: Shape = anything) -> Shape:
    """An object of at most `most` fields, each of the shape and its name of the shape `names`."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            _expect(f"an object of at most {most} fields", value, where)
        for name, item in value.items():
            names(name, f"a name in {where or 'it'}")
            shape(item, _within(where, name))

    return look


def fields(required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object with all of the required fields, and those of the optional ones that are there, each of its shape."""
    known = {**required, **(optional or {})}

    def look(value: object, where: str) -> None:
        if not isinstance(value, dict):
            _expect("an object", value, where)
        for name, shape in known.items():
            if name in value:
                shape(value[name], _within(where, name))
            elif name in required:
                raise Misshapen(f"{_within(where, name)} is missing")

    return look


def either(*shapes: Shape) -> Shape:
    """A value of one of the shapes; the misfit that is told is that of the last."""

    def look(value: object, where: str) -> None:
        for shape in shapes[:-1]:
            try:
                return shape(value, where)
            except Misshapen:
                continue
        return shapes[-1](value, where)

    return look


def told(text: object, most: int = 1000) -> str:
    """Somebody else's words, fit for a terminal and a log: so many characters, none of which acts there."""
    letters = str(text)
    short = letters if len(letters) <= most else f"{letters[: most - 1]}…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in short)


def _within(where: str, name: object) -> str:
    field = str(name)[:64]
    return f"{where}.{field}" if where else field


def _expect(expected: str, value: object, where: str) -> NoReturn:
    found = _KINDS.get(type(value)) or repr(value)
    raise Misshapen(f"{where or 'it'} is {found[:80]}, where {expected} is expected")


_KINDS: Mapping[type, str] = {dict: "an object", list: "a list", type(None): "null"}


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON's")
