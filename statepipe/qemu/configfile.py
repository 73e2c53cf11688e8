"""QEMU's configuration files (-readconfig): the options that they add to a command line.

A section is an option, its quoted name the option's id, and its lines the option's words. QEMU reads them by scanf(3)
(util/qemu-config.c), line by line, and so accepts a quote or a bracket that is not closed, any text after one, and a
word without a value. This parser accepts the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from statepipe.qemu.commandline import parted
from statepipe.qemu.disks import NoImage, open_image
from statepipe.qemu.view import View

LIMIT = 1 << 20
"""Bytes of a file at most; those in QEMU's documentation have 8 KiB."""

LINE = 1023
"""Characters of a line at most; QEMU treats the rest as another line."""

_SECTION = re.compile(r'\[\s*(\S{1,63}+)\s*"([^"]{1,63}+)|\[(?P<bare>[^]]{1,63}+)', re.ASCII)
_WORD = re.compile(r'\s*(\S{1,63}+)(?:\s*=\s*"([^"]{1,1023}+))?', re.ASCII)
"""As `[%63s "%63[^"]"]`, `[%63[^]]]` and ` %63s = "%1023[^"]"`; text after the last is ignored."""

_FIRST = {"chardev": "backend", "object": "qom-type", "netdev": "type", "audiodev": "driver", "vnc": "vnc"}
"""The word of an option that is written without its name on a command line."""


def configured(command: Sequence[str], view: View, folder: str) -> list[str]:
    """Return the options in the configuration files of a command line, as its words; unreadable files are skipped."""
    files = (words[1] for name, words in parted(command) if name == "readconfig" and len(words) > 1)
    texts = (text for file in files if (text := read(os.path.join(folder, file), view)) is not None)
    return [word for text in texts for option in options(text) for word in option]


def read(path: str, view: View) -> str | None:
    """Return the text of a configuration file; None if it cannot be read or is too long."""
    try:
        with view.place(path) as place, open(open_image(place, os.O_RDONLY), "rb") as file:
            text = file.read(LIMIT + 1)
    except (OSError, NoImage):
        return None
    return os.fsdecode(text) if len(text) <= LIMIT else None


def options(text: str) -> Iterator[list[str]]:
    """Yield each section as on a command line: `-chardev` and `file,id=c,path=/l`."""
    sections: list[tuple[str, dict[str, str]]] = []
    lines = re.findall(f"[^\\n]{{0,{LINE - 1}}}\\n|[^\\n]{{1,{LINE}}}", text)
    for line in (each.partition("\0")[0] for each in lines):  # in C a NUL ends the string
        if line.startswith("#"):
            continue
        if begun := _SECTION.match(line):
            sections.append((begun["bare"], {}) if begun["bare"] else (begun[1], {"id": begun[2]}))
        elif (word := _WORD.match(line)) and sections:
            sections[-1][1][word[1]] = word[2] or ""
    for name, words in sections:
        escaped = {key: value.replace(",", ",,") for key, value in words.items()}
        first = [escaped.pop(key) for key in (_FIRST.get(name),) if key in escaped]
        yield [f"-{name}", ",".join([*first, *(f"{key}={value}" for key, value in escaped.items())])]
