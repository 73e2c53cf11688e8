"""age's armor: a strict PEM, so that an encrypted file can pass through mail and terminals.

    -----BEGIN AGE ENCRYPTED FILE-----
    YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBRMDl4Uk5mRUdHVGRPT2
    …
    -----END AGE ENCRYPTED FILE-----

Lines have 64 columns; the last one may be shorter. The base64 is canonical, with padding. Only white space, up to a
limit, may surround the armor. Lines may end in CRLF.
"""

from __future__ import annotations

import binascii

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import Buffer

BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"
END = b"-----END AGE ENCRYPTED FILE-----"
COLUMNS = 64
BYTES = COLUMNS // 4 * 3

SPACE_LIMIT = 1024
"""Bytes of white space before and after the armor; age has the same limit."""

LINE_LIMIT = SPACE_LIMIT + COLUMNS + 2
"""Bytes kept at most without seeing the end of a line."""


class ArmorError(IntegrityError):
    """The armor does not follow age's format."""


class ArmorCut(ArmorError, TruncatedError):
    """The bytes end before the armor's last line."""


def looks_armored(head: bytes) -> bool:
    """Return whether a stream with these first bytes is armor, or text that contains armor."""
    return not head.startswith(b"age-") and (BEGIN in head or head.lstrip().startswith(BEGIN[:10]))


class Armor:
    """Armors bytes as they arrive."""

    def __init__(self) -> None:
        self._held = b""
        self._begun = False

    def feed(self, buffer: Buffer) -> bytes:
        """Return the lines that `buffer` completes."""
        data = self._held + bytes(buffer)
        whole = len(data) - len(data) % BYTES
        self._held = data[whole:]
        return self._begin() + _lines(data[:whole])

    def close(self) -> bytes:
        """Return the last lines."""
        return self._begin() + _lines(self._held) + END + b"\n"

    def _begin(self) -> bytes:
        begin = b"" if self._begun else BEGIN + b"\n"
        self._begun = True
        return begin


def _lines(data: bytes) -> bytes:
    text = binascii.b2a_base64(data, newline=False)
    return b"".join(text[at : at + COLUMNS] + b"\n" for at in range(0, len(text), COLUMNS))


class Dearmor:
    """Decodes armor as it arrives. Raises ArmorError with the offset of the line in the armored text.

    `offset` counts the bytes of the text that were decoded.
    """

    def __init__(self) -> None:
        self._held = b""
        self._line = self._first
        self._space = 0
        self.offset = 0

    def feed(self, buffer: Buffer) -> bytes:
        """Return the bytes of all complete lines."""
        out = []
        data = self._held + bytes(buffer)
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            if self._line == self._body and (bulk := _full_lines(data, at)):
                out.append(_decode(bulk[0], self.offset))
                step = bulk[1]
            else:
                out.append(self._take(data[at : end + 1]))
                step = end + 1 - at
            at += step
            self.offset += step
        self._held = data[at:]
        if len(self._held) > LINE_LIMIT:
            raise self._error("a line of the armor is too long")
        return b"".join(out)

    def close(self) -> bytes:
        """Report the end of the stream. Raises ArmorCut if it comes before the end of the armor."""
        out = self._take(self._held) if self._held else b""
        self.offset += len(self._held)
        if self._line != self._behind:
            raise ArmorCut("the stream ends before its armor does", offset=self.offset)
        return out

    def _take(self, line: bytes) -> bytes:
        return self._line(line.removesuffix(b"\n").removesuffix(b"\r"))

    def _error(self, text: str) -> ArmorError:
        return ArmorError(f"{text}, at byte {self.offset}", offset=self.offset)

    def _first(self, line: bytes) -> bytes:
        if not line.strip():
            return self._white(line)
        if line != BEGIN:
            raise self._error("not age armor: the first line is not the one that armor begins with")
        self._line, self._space = self._body, 0
        return b""

    def _body(self, line: bytes) -> bytes:
        if line == END:
            self._line = self._behind
            return b""
        if not 0 < len(line) <= COLUMNS:
            raise self._error("a line of the armor is empty or has more than 64 columns")
        data = _decode(line, self.offset)
        if len(data) < BYTES:
            self._line = self._last
        return data

    def _last(self, line: bytes) -> bytes:
        if line != END:
            raise self._error("a short line of the armor is not the last one")
        self._line = self._behind
        return b""

    def _behind(self, line: bytes) -> bytes:
        if line.strip():
            raise self._error("data after the end of the armor")
        return self._white(line)

    def _white(self, line: bytes) -> bytes:
        self._space += len(line) + 1
        if self._space > SPACE_LIMIT:
            raise self._error("too much white space around the armor")
        return b""


def _full_lines(data: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the text of the full lines from `at`, and their length in bytes; None if lines must be read singly."""
    ends = data[at + COLUMNS :: COLUMNS + 1]
    count = len(ends) - len(ends.lstrip(b"\n"))
    bulk = data[at : at + count * (COLUMNS + 1)]
    if not count or bulk.count(b"\n") != count:
        return None
    return bulk.replace(b"\n", b""), len(bulk)


def _decode(text: bytes, offset: int) -> bytes:
    """Canonical base64 with padding. Raises ArmorError."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise ArmorError(f"invalid base64 in the armor after byte {offset}", offset=offset) from error
    if binascii.b2a_base64(data, newline=False) != text:
        raise ArmorError(f"non-canonical base64 in the armor after byte {offset}", offset=offset)
    return data
