"""age's armor: a strict PEM, so that an encrypted file goes through mail and terminals.

    -----BEGIN AGE ENCRYPTED FILE-----
    YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBRMDl4Uk5mRUdHVGRPT2
    …
    -----END AGE ENCRYPTED FILE-----

Lines of 64 columns, the last one shorter or not; base64 with padding, one way to write it. Around it white space, of
which there is a bound, and nothing else. Lines may end as on Windows.
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
"""Bytes of white space before and behind, as age has it."""

LINE_LIMIT = SPACE_LIMIT + COLUMNS + 2
"""Of bytes without the end of a line: no more is kept."""


class ArmorError(IntegrityError):
    """The armor is not as age writes it."""


class ArmorCut(ArmorError, TruncatedError):
    """The bytes end before the armor's last line."""


def looks_armored(head: bytes) -> bool:
    """Whether the first bytes of a stream are those of an armor, or of something that contains one."""
    return not head.startswith(b"age-") and (BEGIN in head or head.lstrip().startswith(BEGIN[:10]))


class Armor:
    """Puts bytes into armor as they come."""

    def __init__(self) -> None:
        self._held = b""
        self._begun = False

    def feed(self, buffer: Buffer) -> bytes:
        """The lines that are full."""
        data = self._held + bytes(buffer)
        whole = len(data) - len(data) % BYTES
        self._held = data[whole:]
        return self._begin() + _lines(data[:whole])

    def close(self) -> bytes:
        """The last lines."""
        return self._begin() + _lines(self._held) + END + b"\n"

    def _begin(self) -> bytes:
        begin = b"" if self._begun else BEGIN + b"\n"
        self._begun = True
        return begin


def _lines(data: bytes) -> bytes:
    text = binascii.b2a_base64(data, newline=False)
    return b"".join(text[at : at + COLUMNS] + b"\n" for at in range(0, len(text), COLUMNS))


class Dearmor:
    """Takes bytes out of their armor as they come. Raises ArmorError with the offset of the line in the armored text.

    `offset` is how much of the text has been understood.
    """

    def __init__(self) -> None:
        self._held = b""
        self._line = self._first
        self._space = 0
        self.offset = 0

    def feed(self, buffer: Buffer) -> bytes:
        """The bytes of all lines that are complete."""
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
        """The bytes have ended. Raises ArmorCut if the armor has not."""
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
            raise self._error("this is no age armor: it does not begin as one")
        self._line, self._space = self._body, 0
        return b""

    def _body(self, line: bytes) -> bytes:
        if line == END:
            self._line = self._behind
            return b""
        if not 0 < len(line) <= COLUMNS:
            raise self._error("a line of the armor is not of 64 columns")
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
            raise self._error("there is something behind the armor")
        return self._white(line)

    def _white(self, line: bytes) -> bytes:
        self._space += len(line) + 1
        if self._space > SPACE_LIMIT:
            raise self._error("there is too much white space around the armor")
        return b""


def _full_lines(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The text of full lines in a row from `at`, and how many bytes they take; None if there are none, or too hard."""
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
        raise ArmorError(f"the armor is not base64 from byte {offset} on", offset=offset) from error
    if binascii.b2a_base64(data, newline=False) != text:
        raise ArmorError(f"the armor is not canonical base64 from byte {offset} on", offset=offset)
    return data
