"""The text that an age file begins with: a version line, a stanza for each recipient, and a MAC over all of it.

    age-encryption.org/v1
    -> X25519 TEiF0ypqr+bpvcqXNyCVJpL7OuwPdVwPL7KQEbFDOCc
    EmECAEcKN+n/Vs9SbWiV+Hu0r+E8R77DdWYyd83nw7U
    --- Vn+54jqiiUCE+WZcEVY3f1sqHjlu/z1LCQ/T7Xm7qI0

Parsing is strict, as the specification (C2SP age.md) demands: each header can be written in only one way. age's
plugins send stanzas too, so stanzas are parsed line by line.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import Buffer
from statepipe.typed import NamedTuple, NoReturn

VERSION = b"age-encryption.org/v1\n"

COLUMNS = 64
"""Columns of a line of a stanza's body; the last line is shorter."""

HEADER_LIMIT = 1 << 20
"""Bytes of a header at most: room for about 600 post-quantum recipients. The format itself has no limit."""

STANZA_LIMIT = 8192
"""Stanzas in a header at most: each costs each identity an X25519 exchange, 50 µs, or a longer post-quantum one."""

_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_ARGUMENT = re.compile(rb"[\x21-\x7e]+")


class HeaderError(IntegrityError):
    """The header does not follow age's format."""


class HeaderCut(HeaderError, TruncatedError):
    """The stream ends inside the header."""


class Stanza(NamedTuple):
    """The data from which one recipient recovers the file key: a kind, arguments, and a body of up to a few KiB."""

    kind: str
    arguments: tuple[str, ...]
    body: bytes

    def __bytes__(self) -> bytes:
        """Return the stanza as text: the body is wrapped, and its last line is short."""
        text = encode(self.body).encode()
        lines = [text[at : at + COLUMNS] for at in range(0, len(text) + 1, COLUMNS)]
        return b"\n".join([" ".join(("->", self.kind, *self.arguments)).encode(), *lines, b""])


def encode(data: bytes) -> str:
    """Return `data` in base64 without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").decode()


def decode(text: bytes | str) -> bytes:
    """Decode canonical base64 without padding. Raises HeaderError."""
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    if not _BASE64.fullmatch(data) or len(data) % 4 == 1:
        raise HeaderError("a value in the age header is not base64")
    decoded = binascii.a2b_base64(data + b"=" * (-len(data) % 4))
    if encode(decoded).encode() != data:
        raise HeaderError("a value in the age header is not canonical base64")
    return decoded


class StanzaParser:
    """Parses stanzas line by line."""

    def __init__(self) -> None:
        self._arguments: list[str] | None = None
        self._body = b""

    @property
    def between(self) -> bool:
        """Whether no stanza is incomplete."""
        return self._arguments is None

    def feed(self, line: bytes) -> Stanza | None:
        """Take the next line without its line end; return the stanza that it completes or None. Raises HeaderError."""
        if self._arguments is None:
            mark, *words = line.split(b" ")
            if mark != b"->" or not words or not all(map(_ARGUMENT.fullmatch, words)):
                raise HeaderError("a stanza in the age header does not begin with '-> ' and a kind")
            self._arguments = [word.decode() for word in words]
            return None
        if len(line) > COLUMNS:
            raise HeaderError("a line of a stanza in the age header is too long")
        self._body += decode(line)
        if len(line) == COLUMNS:
            return None
        kind, *arguments = self._arguments
        stanza = Stanza(kind, tuple(arguments), self._body)
        self._arguments, self._body = None, b""
        return stanza


class Header(NamedTuple):
    """A parsed header: the stanzas, the bytes that the MAC covers, the MAC, and the total length in bytes."""

    stanzas: tuple[Stanza, ...]
    covered: bytes
    mac: bytes
    size: int


def covered(stanzas: Iterable[Stanza]) -> bytes:
    """Return the part of a header that the MAC covers."""
    return VERSION + b"".join(map(bytes, stanzas)) + b"---"


def written(stanzas: Iterable[Stanza], mac: bytes) -> bytes:
    """Return a whole header."""
    return covered(stanzas) + b" " + encode(mac).encode() + b"\n"


class HeaderReader:
    """Collects the header from the first bytes of a file, and at least `behind` bytes that follow it.

    Feed it until it returns a header; `rest` then holds the bytes after the header.
    """

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._held = bytearray()
        self._header: Header | None = None

    @property
    def rest(self) -> bytes:
        """The bytes after the header."""
        return bytes(self._held)

    def feed(self, buffer: Buffer) -> Header | None:
        """Return the header once it is complete, else None. Raises HeaderError."""
        seen = len(self._held)
        self._held += buffer
        if self._header is None:
            start = bytes(self._held[: len(VERSION)])
            if not VERSION.startswith(start):
                if start.startswith(b"age-encryption.org/"):
                    raise HeaderError("unsupported version of age: expected v1", offset=0)
                what = "not an age file: it does not begin with the line of age's version"
                raise HeaderError(what, offset=0, hint="is it encrypted?")
            # Only lines that end in `buffer` are searched.
            mark = self._held.find(b"\n---", max(0, self._held.rfind(b"\n", 0, seen)), HEADER_LIMIT)
            end = self._held.find(b"\n", mark + 1, HEADER_LIMIT) + 1 if mark >= 0 else 0
            if not end and len(self._held) >= HEADER_LIMIT:
                raise HeaderError(f"the age header is larger than {HEADER_LIMIT} bytes", offset=0)
            if not end:
                return None
            self._header = parse(bytes(self._held[:end]))
            del self._held[:end]
        return self._header if len(self._held) >= self._behind else None

    def close(self) -> NoReturn:
        """Report the end of the stream. Raises HeaderCut."""
        size = len(self._held) + (self._header.size if self._header else 0)
        raise HeaderCut("the stream ends inside the age header", offset=size)


def parse(data: bytes) -> Header:
    """Parse a whole header, from its version line to the end of its MAC's line. Raises HeaderError."""
    *lines, last = data[len(VERSION) : -1].split(b"\n")
    parser, stanzas = StanzaParser(), list[Stanza]()
    for line in lines:
        if stanza := parser.feed(line):
            stanzas.append(stanza)
        if len(stanzas) > STANZA_LIMIT:
            raise HeaderError(f"the age header has more than {STANZA_LIMIT} stanzas", offset=0)
    if not parser.between:
        raise HeaderError("a stanza in the age header has no last line")
    if not stanzas:
        raise HeaderError("the age header has no stanza", offset=0)
    mac = decode(last[4:]) if last.startswith(b"--- ") else b""
    start = len(data) - len(last) - 1
    if len(mac) != 32:
        raise HeaderError("the age header does not end with a MAC", offset=start)
    return Header(tuple(stanzas), data[: start + 3], mac, len(data))
