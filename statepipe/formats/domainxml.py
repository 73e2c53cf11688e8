"""Who a domain is, from its XML as libvirt writes it. Only the texts that are asked for are kept."""

from __future__ import annotations

from typing import NamedTuple
from xml.parsers import expat

LONGEST = 1024
"""Characters of a name that are kept."""


class Identity(NamedTuple):
    """A domain's name and UUID; None for what its XML does not tell."""

    name: str | None = None
    uuid: str | None = None


def identity(xml: bytes) -> Identity:
    """Return who the domain is. Text that is no XML, or that brings its own entities, tells nothing."""
    path: list[str] = []
    found: dict[str, str] = {}

    def begin(name: str, attributes: dict[str, str]) -> None:
        path.append(name)

    def end(name: str) -> None:
        path.pop()

    def text(data: str) -> None:
        if len(path) == 2 and path[1] in ("name", "uuid"):
            found[path[1]] = (found.get(path[1], "") + data)[:LONGEST]

    def refuse(*declaration: object) -> None:
        raise _ForeignError

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse  # libvirt writes none, and entities could be endless
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, _ForeignError):
        return Identity()
    return Identity(found.get("name"), found.get("uuid"))


class _ForeignError(Exception):
    """The XML has a document type."""
