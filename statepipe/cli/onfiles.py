"""Filters on files: FILE, -o and -d of the commands that compress and encrypt, as zstd and age have them.

They belong to the command lines alone. A word of `pipe` or `save` stands between others, and has neither end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from statepipe.errors import UsageError
from statepipe.stages import Filter, Param, find

Values = dict[str, Any]

_FILE = Param("file", "what to read; the default, and -, is standard input", "FILE", many="optional", dash=True)
_OUTPUT = Param(
    "--output",
    "write FILE, which is there only once it is whole; - is standard output",
    "FILE",
    short="-o",
    dash=True,
)
_BACK = "tar -I gives this option when it extracts"
_GIVEN = "is what it does; tar -I gives this option"

ON_FILES: Mapping[str, tuple[Param, ...]] = {
    "compress": (Param("--decompress", f"decompress instead; {_BACK}", short="-d"), _OUTPUT, _FILE),
    "decompress": (Param("--decompress", _GIVEN, short="-d"), _OUTPUT, _FILE),
    "encrypt": (
        Param("--decrypt", f"decrypt instead; {_BACK}", short="-d"),
        Param(
            "--identity",
            "for -d: a file of keygen's or ssh's that holds the key",
            "IDENTITY",
            many="any",
            short="-i",
        ),
        _OUTPUT,
        _FILE,
    ),
    "decrypt": (Param("--decrypt", _GIVEN, short="-d"), _OUTPUT, _FILE),
}
"""The further parameters of these filters' commands."""


def meant(row: Filter, values: Values) -> tuple[Filter, Values]:
    """The filter to run and its values: FILE told from what may stand before it, the inverse with -d.

    Raises UsageError.
    """
    if row.name == "compress":
        values = _codec_or_file(values)
        if values["decompress"]:
            return find("decompress"), values | {"memory": None}
    if row.name == "encrypt":
        values = _recipients_or_file(values)
        if values["decrypt"]:
            return find("decrypt"), values | {"signed_by": None}
    return row, values


def _codec_or_file(values: Values) -> Values:
    """One argument alone is a codec or, if it is not called like one, a file that is there."""
    from statepipe.cli.grammar import CODECS

    only = values["codec"]
    if only == "":  # a shell's variable that is not set: what should be in the file is not standard input
        raise UsageError("an empty argument is neither a codec nor a FILE")
    if only is None or re.fullmatch(rf"({'|'.join(CODECS)}|auto)(:.*)?|-?\d+", only):
        return values
    if values["file"] is not None:
        hint = f"the codec comes before FILE, and is one of {', '.join(CODECS)} and auto"
        raise UsageError(f"'{only}' is no codec", hint=hint)
    if not _is_file(only):
        what = f"'{only}' is neither a codec nor a file that is there"
        raise UsageError(what, hint=f"codecs are {', '.join(CODECS)} and auto, as zstd:19")
    return values | {"codec": None, "file": only}


def _recipients_or_file(values: Values) -> Values:
    """Of the arguments those are recipients that look like one; what does not, and is there, is the file."""
    files = [text for text in values["recipients"] if not _RECIPIENT.match(text) and _is_file(text)]
    if len(files) > 1:
        raise UsageError(
            f"{files[0]} and {files[1]}: one file at a time", hint="for many: tar -c FILES | statepipe encrypt …"
        )
    rest = [text for text in values["recipients"] if text not in files]
    return values | {"recipients": rest, "file": files[0] if files else None}


_RECIPIENT = re.compile("age1|ssh-|gpg:")


def _is_file(text: str) -> bool:
    return text == "-" or os.path.lexists(text) or "/" in text


def opened(values: Values, stack: ExitStack) -> tuple[Any, Any]:
    """Where the bytes come from and where they go, open until the stack closes. Raises StatepipeError."""
    from statepipe.ends.fd import FdSink, FdSource
    from statepipe.ends.file import AnyFile
    from statepipe.ends.output import new_output

    file, output = values.get("file"), values.get("output")
    source: Any
    if file in (None, "-"):
        source = stack.enter_context(FdSource(0, "standard input"))
    else:
        source = stack.enter_context(AnyFile(str(file)))
    if output in (None, "-"):
        return source, FdSink(1, "standard output")
    return source, new_output(str(output), _mode_of(str(output)))


def _mode_of(path: str) -> int:
    """Of the file that is replaced, if there is one: what its owner has hidden stays hidden."""
    try:
        return os.stat(path).st_mode & 0o666
    except (OSError, ValueError):  # none; a NUL in it
        return 0o666


def require_pipes(values: Values, *, binary: bool) -> None:
    """Raises UsageError where bytes would come from a terminal, or binary ones go to it."""
    reads = values.get("file") in (None, "-") and os.isatty(0)
    writes = binary and values.get("output") in (None, "-") and os.isatty(1)
    if reads or writes:
        hint = "use < FILE and > FILE" if "file" not in values else "name the FILE to read, and -o FILE to write"
        raise UsageError("a filter stands between two pipes or files, not at a terminal", hint=hint)
