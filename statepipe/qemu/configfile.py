"""QEMU's own configuration files (-readconfig): the options that they add to a command line.

A section is an option, its quoted name the option's id, and its lines the option's words. QEMU reads them by scanf(3)
(util/qemu-config.c), line by line, and so takes what nobody would write: a quote or a bracket that is not closed, any
words behind one, a word without a value. All of it is read here as there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from statepipe.qemu.commandline import parted
from statepipe.qemu.disks import NoImage, open_image
from statepipe.qemu.view import View

LIMIT = 1 << 20
"""Bytes that are read of one; those in QEMU's documentation have 8 KiB."""

LINE = 1023
"""Characters that QEMU takes for a line at the most; the next ones are another line to it."""

_SECTION = re.compile(r'\[\s*(\S{1,63}+)\s*"([^"]{1,63}+)|\[(?P<bare>[^]]{1,63}+)', re.ASCII)
_WORD = re.compile(r'\s*(\S{1,63}+)(?:\s*=\s*"([^"]{1,1023}+))?', re.ASCII)
"""As `[%63s "%63[^"]"]`, `[%63[^]]]` and ` %63s = "%1023[^"]"`; whatever stands behind the last is not looked at."""

_FIRST = {"chardev": "backend", "object": "qom-type", "netdev": "type", "audiodev": "driver", "vnc": "vnc"}
"""The word of an option that stands on a command line without its name."""


def configured(command: Sequence[str], view: View, folder: str) -> list[str]:
    """The options in the files that a command line names, as words of one; of those that can be read."""
    files = (words[1] for name, words in parted(command) if name == "readconfig" and len(words) > 1)
    texts = (text for file in files if (text := read(os.path.join(folder, file), view)) is not None)
    return [word for text in texts for option in options(text) for word in option]


def read(path: str, view: View) -> str | None:
    """What is in such a file; None if that cannot be told, as it is not there, no file, or too long to be one."""
    try:
        with view.place(path) as place, open(open_image(place, os.O_RDONLY), "rb") as file:
            text = file.read(LIMIT + 1)
    except (OSError, NoImage):
        return None
    return os.fsdecode(text) if len(text) <= LIMIT else None


def options(text: str) -> Iterator[list[str]]:
    """Each section as on a command line: `-chardev` and `file,id=c,path=/l`."""
    section: tuple[str, dict[str, str]] | None = None
    lines = re.findall(f"[^\\n]{{0,{LINE - 1}}}\\n|[^\\n]{{1,{LINE}}}", text)
    for line in (each.partition("\0")[0] for each in lines):  # C ends it there
        if line.startswith("#"):
            continue
        if begun := _SECTION.match(line):
            if section is not None:
                yield _option(*section)
            section = (begun["bare"], {}) if begun["bare"] else (begun[1], {"id": begun[2]})
        elif (word := _WORD.match(line)) and section is not None:
            section[1][word[1]] = word[2] or ""
    if section is not None:
        yield _option(*section)


def _option(name: str, words: dict[str, str]) -> list[str]:
    first = [_escaped(words[key]) for key in (_FIRST.get(name),) if key in words]
    rest = [f"{key}={_escaped(value)}" for key, value in words.items() if key != _FIRST.get(name)]
    return [f"-{name}", ",".join([*first, *rest])]


def _escaped(value: str) -> str:
    return value.replace(",", ",,")
