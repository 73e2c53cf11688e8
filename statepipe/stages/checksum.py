"""checksum and verify: a digest of what goes past, in the line format of sha256sum and b3sum."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from statepipe.descriptors import named_by
from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.stage import Buffer, Stage, hold_last
from statepipe.stages.context import NewFile

ALGORITHMS = ("sha256", "sha512", "sha1", "md5", "blake2b", "blake3")

DEFAULT = ALGORITHMS[0]

_LINE = re.compile(r"\\?([0-9a-fA-F]{32,128})(?: [ *](.*))?")


class Hash(Protocol):
    def update(self, data: Buffer, /) -> object: ...
    def hexdigest(self) -> str: ...


def new_hash(algorithm: str) -> Hash:
    """A fresh hash. Raises UsageError for an algorithm not in ALGORITHMS."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"unknown checksum '{algorithm}'", hint=f"one of {', '.join(ALGORITHMS)}")
    if algorithm == "blake3":
        return blake3()
    return hashlib.new(algorithm, usedforsecurity=False)


class Digest:
    """A stage that passes everything on; `value` is the hexadecimal digest of what has passed."""

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
    """A Digest that gives the line `DIGEST  -` to `write` when the stream has ended cleanly."""

    def __init__(self, algorithm: str, write: Callable[[str], object]) -> None:
        super().__init__(algorithm)
        self._write = write

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from super().__call__(upstream)
        self._write(line_of(self.value))


def checksum(
    report: Callable[[str], object], new_file: NewFile, algorithm: str = "sha256", to: str | None = None
) -> Checksum:
    """A stage that passes everything on and writes `DIGEST  -` when the stream has ended cleanly.

    The line goes where `lines_to` has it: `report` is standard error, for standard output is data. Raises
    StatepipeError at once where the file `to` cannot be.
    """
    new_hash(algorithm)  # an unknown one is refused before a file is tried
    return Checksum(algorithm, lines_to(report, "standard error", new_file, to))


def lines_to(report: Callable[[str], object], place: str, new_file: NewFile, to: str | None) -> Callable[[str], None]:
    """A function that writes lines of digests to the file `to`, or else to `report`, which is called `place`.

    What writes raises StatepipeError, and so does this, at once, where there can be no such file.
    """
    named = to is not None and (named_by(to) is not None or not _is_device(to))
    if to is not None and named:
        with new_file(to, _FOR_ALL):
            pass

    def write(lines: str) -> None:
        if to is not None and named:
            with new_file(to, _FOR_ALL) as file:
                file.write(os.fsencode(lines))
                file.commit()
            return
        try:
            report(lines) if to is None else Path(to).write_bytes(os.fsencode(lines))
        except OSError as error:
            raise StatepipeError(f"cannot write the checksum to {to or place}: {error.strerror}") from error

    return write


def line_of(digest: str, name: str = "-") -> str:
    """A line as sha256sum and b3sum write it: `DIGEST  NAME`, or with a backslash before it where NAME has one or
    breaks the line."""
    escaped = _escaped(name)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _escaped(name: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in name)


_ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r"}


_FOR_ALL = 0o666
"""The mode of a digest's file, less the umask: unlike what it is of, it is no secret."""


def _is_device(path: str) -> bool:
    """A terminal, /dev/null, a named pipe: the line is written to it, and nothing takes its place."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def read_digest(path: str, name: str | None = None) -> str:
    """The digest in the first line of a file in sha256sum's format; of several lines, in the one that has `name`.

    Raises StatepipeError, UsageError.
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
    raise UsageError(f"{path} has several digests, but none of {name}", hint="name FILE as the line in it does")


_LONGEST = 10_000
"""Characters of a line at most: a name may have 4096, each of them escaped."""


def parse_digest(text: str) -> str:
    """A digest from `HEX` or a line of sha256sum. Raises UsageError."""
    match = _LINE.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text[:80]}' holds no digest", hint="give the hexadecimal digest, as sha256sum prints it")
    return match[1].lower()


_ANOTHER = "take another copy; or if the digest is of blake3, give --algorithm blake3"
"""For a digest that was compared with DEFAULT because no algorithm was given: only blake3's has the same length."""

_WHICH = "say which it is with --algorithm, or look whether the digest is cut"


def verify(expected: str, algorithm: str | None = None) -> Stage:
    """A stage that passes everything on, but the last buffer only once the digest of the whole agrees.

    Raises IntegrityError at the end if it does not: the consumer then never sees a clean end. Raises UsageError for
    a digest that no stream of this algorithm can have.
    """
    hint = None if algorithm else _ANOTHER
    algorithm = algorithm or DEFAULT
    digest = Digest(algorithm)
    wanted = parse_digest(expected)
    if len(wanted) != (length := len(digest.value)):
        raise UsageError(f"the digest has {len(wanted)} digits, one of {algorithm} has {length}", hint=_WHICH)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from hold_last(checked(upstream))

    def checked(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        yield from digest(upstream)
        if digest.value != wanted:
            raise IntegrityError(f"{algorithm} is {digest.value}, expected {wanted}", hint=hint)

    return stage
