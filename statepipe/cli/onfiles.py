"""Filters on files: FILE and -o of the commands, and -d of those that compress and encrypt, as zstd and age have them.

They belong to the command lines alone. A word of `pipe` or `save` stands between others, and has neither end.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from statepipe.cli.filtertable import Filter, find
from statepipe.cli.messages import explain
from statepipe.cli.verb import Param
from statepipe.descriptors import demand_readable
from statepipe.errors import InterruptedBySignal, ReaderGone, StatepipeError, UsageError

Values = dict[str, Any]

_FILE = Param("file", "read this file; the default, and -, is standard input", "FILE", many="optional", dash=True)
_OUTPUT = Param(
    "--output",
    "write to FILE, which exists only once it is complete; - is standard output",
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
    "checksum": (
        _OUTPUT,
        Param(
            "file",
            "print the digest of each FILE, of standard input for -, and pass nothing on",
            "FILE",
            many="any",
            dash=True,
        ),
    ),
    "verify": (_OUTPUT, _FILE),
    "throttle": (_OUTPUT, _FILE),
    "progress": (_OUTPUT, _FILE),
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
    if row.name == "verify":
        values = _digest_or_file(values)
    return row, values


def _codec_or_file(values: Values) -> Values:
    """One argument alone is a codec or, if it is not called like one, a file that is there."""
    from statepipe.cli.grammar import CODECS

    only = values["codec"]
    if only == "":  # a shell's variable that is not set: what should be in the file is not standard input
        raise UsageError("an empty argument is neither a codec nor a FILE")
    codec = re.compile(rf"({'|'.join(CODECS)}|auto)(:.*)?|-?\d+")
    if only is None or codec.fullmatch(only):
        return values
    if values["file"] is not None:
        if _is_file(only) and not codec.fullmatch(values["file"]):
            raise _several(only, values["file"], "compress")
        hint = f"the codec comes before FILE, and is one of {', '.join(CODECS)} and auto"
        raise UsageError(f"'{only}' is no codec", hint=hint)
    if not _is_file(only):
        what = f"'{only}' is neither a codec nor a file that is there"
        raise UsageError(what, hint=f"codecs are {', '.join(CODECS)} and auto, as zstd:19")
    return values | {"codec": None, "file": only}


def algorithm_or_files(values: Values) -> Values:
    """The first argument of checksum is an algorithm or, if it is not called like one, a file that exists.

    Raises UsageError.
    """
    from statepipe.stages.checksum import ALGORITHMS

    first = values["algorithm"]
    if first in ALGORITHMS:
        return values
    if not first:  # a shell's variable that is not set
        raise UsageError("an empty argument is neither an algorithm nor a FILE")
    if not _is_file(first):
        hint = f"algorithms are {', '.join(ALGORITHMS)}"
        raise UsageError(f"'{first}' is neither an algorithm nor a file that exists", hint=hint)
    return values | {"algorithm": "sha256", "file": [first, *values["file"]]}


def _digest_or_file(values: Values) -> Values:
    """With --from, an argument alone is the file."""
    if values["from"] is None or values["file"] is not None or not _is_file(values["digest"] or ""):
        return values
    return values | {"digest": None, "file": values["digest"]}


def _recipients_or_file(values: Values) -> Values:
    """Of the arguments those are recipients that look like one; what does not, and is there, is the file."""
    files = [text for text in values["recipients"] if not _RECIPIENT.match(text) and _is_file(text)]
    if len(files) > 1:
        raise _several(files[0], files[1], "encrypt")
    rest = [text for text in values["recipients"] if text not in files]
    return values | {"recipients": rest, "file": files[0] if files else None}


def _several(one: str, other: str, name: str) -> UsageError:
    """The error of a command that was given more than one FILE."""
    return UsageError(f"{one} and {other}: one file at a time", hint=f"for many: tar -c FILES | statepipe {name} …")


_RECIPIENT = re.compile("age1|ssh-|gpg:")


def _is_file(text: str) -> bool:
    return text == "-" or os.path.lexists(text) or "/" in text


def opened(values: Values, stack: ExitStack) -> tuple[Any, Any]:
    """Where the bytes come from and where they go, open until the stack closes. Raises StatepipeError."""
    from statepipe.ends.fd import FdSink
    from statepipe.ends.output import new_output

    source, output = open_source(values.get("file"), stack), values.get("output")
    for option, target in (("-o", output), ("--to", values.get("to"))):
        refuse_input_as_output(source.fd, option, target)
    if output in (None, "-"):
        return source, FdSink(1, "standard output")
    return source, new_output(str(output), _mode_of(str(output)))


def open_source(file: str | None, stack: ExitStack) -> Any:
    """FILE, or standard input, open until the stack closes. Raises StatepipeError."""
    from statepipe.ends.fd import FdSource
    from statepipe.ends.file import AnyFile

    if file in (None, "-"):
        demand_readable(0, "standard input")
        return stack.enter_context(FdSource(0, "standard input"))
    return stack.enter_context(AnyFile(str(file)))


def refuse_input_as_output(fd: int, option: str, target: str | None) -> None:
    """Raises UsageError if `target` names the regular file that the descriptor reads."""
    if target is None:
        return
    try:
        read, written = os.fstat(fd), os.stat(target)
    except (OSError, ValueError):  # it does not exist, or has a NUL in its name: opening it reports that
        return
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
        raise UsageError(f"{option} {target} is the file that is read", hint="write to another file, then rename it")


def _mode_of(path: str) -> int:
    """Of the file that is replaced, if there is one: what its owner has hidden stays hidden."""
    try:
        return os.stat(path).st_mode & 0o666
    except (OSError, ValueError):  # none; a NUL in it
        return 0o666


def for_each_file(name: str, paths: Sequence[str], work: Callable[[str], object]) -> int:
    """Do the work of a verb on each file by itself. Returns the exit code of the first that failed, or 0.

    An error is told when it comes, and the next file has its turn. Raises UsageError, and the error of a file that is
    alone.
    """
    if paths.count("-") > 1:
        raise UsageError("standard input can be read once")
    failures = []
    for path in paths:
        try:
            work(path)
        except (InterruptedBySignal, ReaderGone):
            raise
        except StatepipeError as error:
            if len(paths) == 1:
                raise
            explain(f"{name}: {called(path)}", error)
            failures.append(error)
    return failures[0].exit_code if failures else 0


def called(path: str) -> str:
    """FILE for people."""
    return "standard input" if path == "-" else path


def require_pipes(values: Values, *, binary: bool) -> None:
    """Raises UsageError where bytes would come from a terminal, or binary ones go to it."""
    reads = values.get("file") in (None, "-") and os.isatty(0)
    writes = binary and values.get("output") in (None, "-") and os.isatty(1)
    if reads or writes:
        hint = "use < FILE and > FILE" if "file" not in values else "name the FILE to read, and -o FILE to write"
        raise UsageError("a filter stands between two pipes or files, not at a terminal", hint=hint)
