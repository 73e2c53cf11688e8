"""The block nodes that -blockdev defines: which of them are images, and in which files these are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from statepipe.errors import UsageError
from statepipe.qemu.commandline import in_words, json_of, parted, split
from statepipe.qemu.images import FILES

FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "luks", "bochs", "cloop", "dmg")
"""Drivers of image formats: they store the guest's data in one file below them."""

NULL = ("null-co", "null-aio")
"""Drivers that store nothing."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """The file of an image, and the words of its node."""

    filename: str
    words: dict[str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of -blockdev. `value` is the option's value, `words` the same as in an option without JSON."""

    value: str
    words: dict[str, str]

    @staticmethod
    def words_of(value: str, first: str) -> dict[str, str]:
        """Return the words of an option by name; `first` is the name of a first word without one. Raises UsageError for
        invalid JSON."""
        try:
            pairs = [each.partition("=") for each in split(in_words(value))]
        except ValueError as error:
            raise UsageError(f"{value[:200]} is not valid JSON for QEMU: {error}") from error
        return {
            first if not equals and not at else key: text if equals else key
            for at, (key, equals, text) in enumerate(pairs)
        }

    @property
    def name(self) -> str:
        """Its node-name; empty without one."""
        return self.words.get("node-name", "")

    @property
    def driver(self) -> str:
        """Its driver."""
        return self.words.get("driver", "")

    @property
    def read_only(self) -> bool:
        """Whether QEMU never writes to it."""
        return self.words.get("read-only") in ("on", "yes", "y", "true")

    def changed(self, *, name: str | None = None, read_only: bool) -> str:
        """Return the option's value with another node-name, and read-only, in its own form."""
        name = self.name if name is None else name
        if self.value.startswith("{"):
            return json.dumps(json_of(self.value) | {"node-name": name, "read-only": read_only})
        words = [each for each in split(self.value) if not each.startswith(("node-name=", "read-only="))]
        words += [f"node-name={name}", f"read-only={'on' if read_only else 'off'}"]
        return ",".join(word.replace(",", ",,") for word in words)


class Nodes:
    """All nodes of a command line; `at` has them by the place of their option. Raises UsageError for invalid JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        found = ((at, words[1]) for at, (name, words) in enumerate(parted(command)) if name == "blockdev" and words[1:])
        self.at = {at: Node(value, Node.words_of(value, "driver")) for at, value in found}
        self._by_name = {node.name: node for node in self.at.values() if node.name}
        self._names = count()
        images = [node for node in self.at.values() if node.driver in FORMATS]
        self._below = {text for node in images for key, text in node.words.items() if key.endswith(("file", "backing"))}
        uses = Counter(text for node in self.at.values() for text in node.words.values())
        tops = (node for node in images if not node.read_only and not self.is_below(node))
        named = {node.words.get("file", "") for node in tops}
        self.bases = {name for name in named if uses[name] == 2}
        """Nodes that only one writable image is stored in: they need not be written either once that has an overlay."""

    def is_below(self, node: Node) -> bool:
        """Return whether it is a part of an image: the file in which it is stored, or its backing file."""
        return bool(node.name) and node.name in self._below

    def is_filter(self, node: Node) -> bool:
        """Return whether it stores nothing itself, but passes everything on to nodes that have options of their own."""
        inline = any(key.endswith(".driver") for key in node.words)
        return not inline and any(text in self._by_name for key, text in node.words.items() if key != "node-name")

    def leaf(self, node: Node) -> Leaf | None:
        """Return the file of an image; None if it is not in a file or a block device of this host."""
        words, seen = node.words, set[str]()
        while words.get("driver") in FORMATS:
            below = words.get("file")
            if below is None:
                words = {key[5:]: text for key, text in words.items() if key.startswith("file.")}
            elif below in seen or below not in self._by_name:
                return None
            else:
                seen.add(below)
                words = self._by_name[below].words
        return Leaf(words["filename"], words) if words.get("driver") in FILES and "filename" in words else None

    def unused_name(self) -> str:
        """Return a name that no other node has."""
        return next(name for number in self._names if (name := f"clone{number}") not in self._by_name)
