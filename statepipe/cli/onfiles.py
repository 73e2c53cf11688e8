"""Filters on files: FILE and -o of the commands, and -d of those that compress and encrypt, as zstd and age have them.

These belong to commands alone. A word of `pipe` or `save` stands between others and has neither end.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from statepipe.cli.filtertable import CODECS, Filter, find
from statepipe.cli.messages import explain
from statepipe.cli.verb import Param, Values
from statepipe.descriptors import demand_readable
from statepipe.errors import InterruptedBySignal, ReaderGone, StatepipeError, UsageError
from statepipe.guessing import did_you_mean
from statepipe.typed import Any

_FILE = Param("file", "file to read (default: standard input, as for -)", "FILE", many="optional", dash=True)
_OUTPUT = Param(
    "--output",
    "file to write, which exists only once it is complete (default: standard output, as for -)",
    "FILE",
    short="-o",
    dash=True,
)
_BACK = "(tar -I adds this to extract)"
_ANYWAY = "no effect, since that is what it does (tar -I adds this to extract)"

ON_FILES: Mapping[str, tuple[Param, ...]] = {
    "compress": (Param("--decompress", f"decompress instead {_BACK}", short="-d"), _OUTPUT, _FILE),
    "decompress": (Param("--decompress", _ANYWAY, short="-d"), _OUTPUT, _FILE),
    "encrypt": (
        Param("--decrypt", f"decrypt instead {_BACK}", short="-d"),
        Param("--identity", "for -d: file with a secret key of keygen or ssh", "IDENTITY", many="any", short="-i"),
        _OUTPUT,
        _FILE,
    ),
    "decrypt": (Param("--decrypt", _ANYWAY, short="-d"), _OUTPUT, _FILE),
    "checksum": (
        _OUTPUT,
        Param(
            "file",
            "files whose digests to print, without passing them on; - is standard input",
            "FILE",
            many="any",
            dash=True,
        ),
    ),
    "verify": (_OUTPUT, _FILE),
    "throttle": (_OUTPUT, _FILE),
    "progress": (_OUTPUT, _FILE),
    "get": (_OUTPUT,),
    "put": (
        _FILE,
        Param(
            "--abort-stale",
            "end uploads below PREFIX that were left more than a day ago, and do nothing else",
            "PREFIX",
        ),
    ),
}
"""The further parameters of these filters' commands."""

_CODEC = re.compile(rf"({'|'.join(CODECS)}|auto)(:.*)?|-?\d+")
_RECIPIENT = re.compile("age1|ssh-|gpg:")
_VARIABLE = "check whether a variable of the shell is not set"


def meant(row: Filter, values: Values) -> tuple[Filter, Values]:
    """Return the filter to run and its values: FILE told apart from the argument before it, the inverse for -d.

    Raises UsageError.
    """
    if row.name == "compress":
        values = _codec_or_file(values)
        if values["decompress"]:
            return find("decompress"), values | {"memory": None}
    if row.name == "encrypt":
        given = values["recipients"]
        files = [text for text in given if not _RECIPIENT.match(text) and _is_file(text)]
        if len(files) > 1:
            raise _several(files[0], files[1], "encrypt")
        rest = [text for text in given if text not in files]
        values = values | {"recipients": rest, "file": files[0] if files else None}
        if values["decrypt"]:
            return find("decrypt"), values | {"signed_by": None}
    only_file = row.name == "verify" and values["from"] is not None and values["file"] is None
    if only_file and _is_file(values["digest"] or ""):
        values = values | {"digest": None, "file": values["digest"]}
    return row, values


def _codec_or_file(values: Values) -> Values:
    """Decide whether a first argument is a codec, or, unless it looks like one, a file that exists."""
    first, file = values["codec"], values["file"]
    if first == "":  # a variable of the shell that is not set: standard input is not meant
        raise UsageError("an empty argument is neither a codec nor a FILE", hint=_VARIABLE)
    if first is None or _CODEC.fullmatch(first):
        return values
    if _is_file(first):
        if file is None:
            return values | {"codec": None, "file": first}
        if not _CODEC.fullmatch(file):
            raise _several(first, file, "compress")
    known = f"codecs are {', '.join(CODECS)} and auto, as in zstd:19"
    hint = f"{did_you_mean(first.partition(':')[0].lower(), (*CODECS, 'auto'))}{known}"
    if file is not None:
        raise UsageError(f"'{first}' is not a codec", hint=f"the codec comes before FILE; {hint}")
    raise UsageError(f"'{first}' is neither a codec nor a file that exists", hint=hint)


def algorithm_or_files(values: Values) -> Values:
    """Decide whether checksum's first argument is an algorithm, or, unless it is named like one, a file that exists.

    Raises UsageError.
    """
    from statepipe.stages.checksum import ALGORITHMS

    first = values["algorithm"]
    if first in ALGORITHMS:
        return values
    if not first:
        raise UsageError("an empty argument is neither an algorithm nor a FILE", hint=_VARIABLE)
    if not _is_file(first):
        hint = f"{did_you_mean(first.lower(), ALGORITHMS)}algorithms are {', '.join(ALGORITHMS)}"
        raise UsageError(f"'{first}' is neither an algorithm nor a file that exists", hint=hint)
    return values | {"algorithm": "sha256", "file": [first, *values["file"]]}


def _several(one: str, other: str, name: str) -> UsageError:
    return UsageError(f"{one} and {other}: one file at a time", hint=f"for many: tar -c FILES | statepipe {name} …")


def _is_file(text: str) -> bool:
    return text == "-" or os.path.lexists(text) or "/" in text


def opened(values: Values, stack: ExitStack) -> tuple[Any, Any]:
    """Return the source and the sink, open until the stack closes. Raises StatepipeError."""
    source, output = open_source(values.get("file"), stack), values.get("output")
    for option, target in (("-o", output), ("--to", values.get("to"))):
        refuse_input_as_output(source.fd, option, target)
    return source, new_sink(output)


def new_sink(output: str | None) -> Any:
    """Return the sink that -o names, or standard output. Raises StatepipeError."""
    from statepipe.ends.fd import FdSink
    from statepipe.ends.output import new_output

    if output in (None, "-"):
        return FdSink(1, "standard output")
    try:
        mode = os.stat(output).st_mode & 0o666  # a file that is replaced keeps its mode: a secret stays one
    except (OSError, ValueError):  # there is none; a NUL in its name
        mode = 0o666
    return new_output(str(output), mode)


def open_source(file: str | None, stack: ExitStack) -> Any:
    """Return a source of FILE or standard input, open until the stack closes. Raises StatepipeError."""
    from statepipe.ends.fd import FdSource
    from statepipe.ends.source import AnyFile

    if file in (None, "-"):
        demand_readable(0, "standard input")
        return stack.enter_context(FdSource(0, "standard input"))
    return stack.enter_context(AnyFile(str(file)))


def refuse_input_as_output(fd: int, option: str, target: str | None) -> None:
    """Raise UsageError if `target` names the regular file that the descriptor reads."""
    if target is None:
        return
    try:
        read, written = os.fstat(fd), os.stat(target)
    except (OSError, ValueError):  # it does not exist, or has a NUL in its name: opening it reports that
        return
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
        raise UsageError(f"{option} {target} is the file that is read", hint="write to another file, then rename it")


def for_each_file(name: str, paths: Sequence[str], work: Callable[[str], object]) -> int:
    """Do a verb's work on each file. Return the exit code of the first that failed, or 0.

    An error is reported at once, and the next file follows. Raises UsageError, and the error of a single file.
    """
    if paths.count("-") > 1:
        raise UsageError("standard input can be read only once", hint="give - once")
    failures = []
    for path in paths:
        try:
            work(path)
        except (InterruptedBySignal, ReaderGone):
            raise
        except StatepipeError as error:
            if len(paths) == 1:
                raise
            is_named = str(error).startswith(called(path))
            explain(name if is_named else f"{name}: {called(path)}", error)
            failures.append(error)
    return failures[0].exit_code if failures else 0


def called(path: str) -> str:
    """Return what messages call FILE."""
    return "standard input" if path == "-" else path


def require_pipes(values: Values, *, binary: bool) -> None:
    """Raise UsageError if bytes would be read from a terminal, or binary ones written to it."""
    reads = values.get("file") in (None, "-") and os.isatty(0)
    writes = binary and values.get("output") in (None, "-") and os.isatty(1)
    if reads or writes:
        what = "standard input is a terminal" if reads else "standard output is a terminal, and the output is not text"
        hint = "use < FILE and > FILE" if "file" not in values else "name the FILE to read, and -o FILE to write"
        raise UsageError(what, hint=hint)
