"""checksum and verify: a digest of the bytes that pass, in the line format of sha256sum and b3sum."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from itertools import chain

from blake3 import blake3

from statepipe.descriptors import named_by
from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.guessing import did_you_mean
from statepipe.stage import Buffer, Stage, hold_last
from statepipe.stages.context import NewFile
from statepipe.typed import Protocol

ALGORITHMS = ("sha256", "sha512", "sha1", "md5", "blake2b", "blake3")

DEFAULT = ALGORITHMS[0]

_LINE = re.compile(r"\\?([0-9a-fA-F]{32,128})(?: [ *](.*))?")


class Hash(Protocol):
    def update(self, data: Buffer, /) -> object: ...
    def hexdigest(self) -> str: ...


def new_hash(algorithm: str) -> Hash:
    """Return a new hash. Raises UsageError for an algorithm not in ALGORITHMS."""
    if algorithm not in ALGORITHMS:
        hint = f"{did_you_mean(algorithm.lower(), ALGORITHMS)}use one of {', '.join(ALGORITHMS)}"
        raise UsageError(f"unknown checksum '{algorithm}'", hint=hint)
    if algorithm == "blake3":
        return blake3()
    return hashlib.new(algorithm, usedforsecurity=False)


class Digest:
    """A stage that passes everything on; `value` is the hexadecimal digest of the bytes so far."""

    def __init__(self, algorithm: str) -> None:
        self._hash = new_hash(algorithm)

    @property
    def value(self) -> str:
        return self._hash.hexdigest()

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        for buffer in upstream:
            self._hash.update(buffer)
            yield buffer


class Checksum(Digest):
    """A Digest that passes the line `DIGEST  -` to `write` after a clean end of the stream."""

    def __init__(self, algorithm: str, write: Callable[[str], object]) -> None:
        super().__init__(algorithm)
        self._write = write

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from super().__call__(upstream)
        self._write(line_of(self.value))


def checksum(
    report: Callable[[str], object], new_file: NewFile, algorithm: str = "sha256", to: str | None = None
) -> Checksum:
    """Return a stage that passes everything on and writes `DIGEST  -` after a clean end of the stream.

    The line is written to the file `to`, or else to `report`, which is standard error: standard output has the data.
    Raises UsageError, and StatepipeError at once if the file cannot be made.
    """
    new_hash(algorithm)  # refuses an unknown algorithm before it tries the file
    return Checksum(algorithm, lines_to(report, "standard error", new_file, to))


def lines_to(report: Callable[[str], object], place: str, new_file: NewFile, to: str | None) -> Callable[[str], None]:
    """Return a function that writes lines of digests to the file `to`, or else to `report`; messages call that `place`.

    The function raises StatepipeError, and so does this, at once, if the file cannot be made. A device (a terminal,
    /dev/null, a named pipe) is written to; other files are replaced.
    """
    replaces = to is not None and (named_by(to) is not None or not _is_device(to))
    if to is not None and replaces:
        with new_file(to, _FOR_ALL):
            pass

    def write(lines: str) -> None:
        if to is not None and replaces:
            with new_file(to, _FOR_ALL) as file:
                file.write(os.fsencode(lines))
                file.commit()
            return
        try:
            if to is None:
                report(lines)
            else:
                with open(to, "wb") as device:
                    device.write(os.fsencode(lines))
        except OSError as error:
            raise StatepipeError(f"cannot write the checksum to {to or place}: {error.strerror}") from error

    return write


_FOR_ALL = 0o666
"""The mode of a digest's file, less the umask: a digest is not a secret, unlike the data."""


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def line_of(digest: str, name: str = "-") -> str:
    """Return a line as sha256sum and b3sum write it: `DIGEST  NAME`.

    It begins with a backslash if NAME contains a backslash or a line break, which are escaped.
    """
    escaped = _escaped(name)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _escaped(name: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in name)


_ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r"}


def read_digest(path: str, name: str | None = None) -> str:
    """Return the digest in a file in sha256sum's format: from its only line, or from the line that has `name`.

    Without `name`, the first line counts. Raises StatepipeError, UsageError.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = iter(lambda: file.readline(_LONGEST), "")
            first, second = next(lines, ""), next(lines, "")
            if name is None or not second.strip():
                return parse_digest(first.strip())
            for line in chain((first, second), lines):
                match = _LINE.fullmatch(line.rstrip("\n"))
                if match is not None and match[2] == _escaped(name):
                    return match[1].lower()
    except OSError as error:
        raise StatepipeError(f"cannot read {path}: {error.strerror}") from error
    raise UsageError(f"{path} has several digests, but none for {name}", hint="give the name as it is in that file")


_LONGEST = 10_000
"""The limit for characters in a line: a name can have 4096, each of them escaped."""


def parse_digest(text: str) -> str:
    """Return the digest from `HEX` or a line of sha256sum. Raises UsageError."""
    match = _LINE.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text[:80]}' is not a digest", hint="give the hexadecimal digest, as sha256sum prints it")
    return match[1].lower()


_MAYBE_BLAKE3 = "take another copy; or if the digest is of blake3, give --algorithm blake3"
"""The hint if no algorithm was given and DEFAULT was used: only blake3's digests have the same length."""

_ENDINGS = {name: name for name in ALGORITHMS} | {"b2": "blake2b", "b3": "blake3"}
"""The algorithm that the ending of a file's name suggests."""


def verify(expected: str, algorithm: str | None = None, path: str | None = None) -> Stage:
    """Return a stage that passes everything on, but the last buffer only if the digest of the whole stream matches.

    `path` is the file that the digest was read from; its ending can suggest an algorithm. The stage raises
    IntegrityError at the end if the digest differs, so the consumer sees no clean end. Raises UsageError for a digest
    of a length that the algorithm does not have.
    """
    hint = None if algorithm else _MAYBE_BLAKE3
    which = "give the right --algorithm, or check that the digest is complete"
    named = _ENDINGS.get((path or "").rpartition(".")[2].lower())
    if algorithm is None and named and named != DEFAULT:
        hint = which = f"the name of {path} suggests {named}: give --algorithm {named}"
    algorithm = algorithm or DEFAULT
    digest = Digest(algorithm)
    wanted = parse_digest(expected)
    if len(wanted) != (length := len(digest.value)):
        raise UsageError(f"the digest has {len(wanted)} digits, but {algorithm} has {length}", hint=which)

    def checked(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from digest(upstream)
        if digest.value != wanted:
            raise IntegrityError(f"{algorithm} is {digest.value}, expected {wanted}", hint=hint)

    return lambda upstream: hold_last(checked(upstream))
