"""Check JSON input against a shape once, where it enters; the code after that relies on it.

Files, peers, QEMU's monitor and other users of the host all provide input. A shape is a function that raises Misshapen,
which names the place, for a value that does not match; the builders below combine shapes:

    DISK = fields({"path": text(4096), "size": whole()}, optional={"format": text(64)})
    GUEST = fields({"name": maybe(text(256)), "disks": many(DISK, most=256)})

    facts = parse(payload, GUEST)

A value may have fields that a shape does not name, because a later version can add some. The caller converts Misshapen:
to an IntegrityError for a file, a PeerError for a peer, a QemuError for a monitor.

msgspec would do the same, but adds 20 ms to every start, and refuses the lone surrogates that represent a path that is
not UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from statepipe.typed import Any, NoReturn

Shape = Callable[[object, str], None]
"""Raises Misshapen unless the value at the named place has the shape."""

LARGEST = (1 << 63) - 1
"""The largest count, size or offset that we or QEMU use."""


class Misshapen(ValueError):
    """A value does not have the expected shape. The message names the place and what is expected there."""


def parse(text: bytes | str, shape: Shape) -> Any:
    """Return the JSON value in `text` after checking it against `shape`. The caller limits its length.

    Bytes are UTF-8 without a byte order mark (RFC 8259, 8.1): json.loads alone would guess UTF-16 and UTF-32 too, and
    accept surrogates in them. Raises Misshapen, also for text that is not JSON and for JSON that is nested too deeply
    for Python.
    """
    try:
        value = json.loads(text if isinstance(text, str) else bytes(text).decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Misshapen(f"it is not JSON: {error}") from error
    return check(value, shape)


def check(value: Any, shape: Shape) -> Any:
    """Return the value after checking it against `shape`. Raises Misshapen."""
    shape(value, "")
    return value


def whole(least: int = 0, most: int = LARGEST) -> Shape:
    """An integer from `least` to `most`."""

    def look(value: object, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _expect(f"a whole number from {least} to {most}", value, where)

    return look


def number(value: object, where: str) -> None:
    """An integer or a fraction in the range of a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        _expect("a number", value, where)


def text(most: int = 4096) -> Shape:
    """Text of at most `most` characters."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, str) or len(value) > most:
            _expect(f"text of at most {most} characters", value, where)

    return look


def like(pattern: str, what: str) -> Shape:
    """Text that the whole pattern matches; `what` describes it in words."""
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
    """Any value: it is only displayed."""


def one_of(*words: str) -> Shape:
    """One of these words."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, str) or value not in words:
            _expect(" or ".join(words), value, where)

    return look


def just(expected: bool) -> Shape:
    """The given truth value and no other."""

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
    """An object of at most `most` fields, whose values match `shape` and whose names match `names`."""

    def look(value: object, where: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            _expect(f"an object of at most {most} fields", value, where)
        for name, item in value.items():
            names(name, f"a name in {where or 'it'}")
            shape(item, _within(where, name))

    return look


def fields(required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object with all required fields and any of the optional ones, each of its shape."""
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
    """A value of one of the shapes; the error is that of the last shape."""

    def look(value: object, where: str) -> None:
        for shape in shapes[:-1]:
            try:
                return shape(value, where)
            except Misshapen:
                continue
        return shapes[-1](value, where)

    return look


def told(text: object, most: int = 1000) -> str:
    """Return foreign text made safe for a terminal and a log: at most `most` characters, without control characters."""
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
    raise ValueError(f"{word} is not a JSON number")
