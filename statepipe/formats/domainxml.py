"""Who a domain is and which disks it has, from its XML as libvirt writes it. Only what is asked for is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from xml.parsers import expat

from statepipe.typed import NamedTuple

LONGEST = 1024
"""Characters of a name that are kept."""


class Identity(NamedTuple):
    """A domain's name and UUID; None for what its XML does not tell."""

    name: str | None = None
    uuid: str | None = None


def identity(xml: bytes) -> Identity:
    """Return who the domain is. Text that is no XML, or that brings its own entities, tells nothing."""
    found: dict[str, str] = {}

    def text(path: Sequence[str], data: str) -> None:
        if len(path) == 2 and path[1] in ("name", "uuid"):
            found[path[1]] = (found.get(path[1], "") + data)[:LONGEST]

    if not _is_read(xml, lambda path, words: None, text):
        return Identity()
    return Identity(found.get("name"), found.get("uuid"))


def disks(xml: bytes) -> dict[str, str] | None:
    """Return the path of each disk that is a file or a block device, by the disk's name in the guest, such as vda.

    None for text that is no XML, or that brings its own entities.
    """
    found: dict[str, str] = {}
    disk: dict[str, str] = {}

    def element(path: Sequence[str], words: Mapping[str, str]) -> None:
        if len(path) not in (3, 4) or path[1:3] != ["devices", "disk"]:  # a path may be very long
            return
        if len(path) == 3:
            disk.clear()
        elif path[3] == "source":
            disk["path"] = words.get("file") or words.get("dev") or ""
        elif path[3] == "target":
            disk["name"] = words.get("dev", "")
        if disk.get("path") and disk.get("name"):
            found[disk["name"]] = disk["path"]

    return found if _is_read(xml, element, lambda path, data: None) else None


def _is_read(
    xml: bytes, element: Callable[[Sequence[str], Mapping[str, str]], None], text: Callable[[Sequence[str], str], None]
) -> bool:
    """Call `element` with the path and the attributes of each element, and `text` with each text and where it is.

    Return False if it is no XML, or brings its own entities: libvirt writes none, and they could be endless.
    """
    path: list[str] = []

    def begin(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        element(path, attributes)

    def end(name: str) -> None:
        path.pop()

    def refuse(*declaration: object) -> None:
        raise _ForeignError

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = lambda data: text(path, data)
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, _ForeignError):
        return False
    return True


class _ForeignError(Exception):
    """The XML has a document type."""
