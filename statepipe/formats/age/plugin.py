"""The protocol between age and its plugins (C2SP age-plugin.md): stanzas over standard input and output.

First we send the whole task and `done`. Then the plugin sends requests and results, one stanza at a time, and waits
for our answer to each, until its own `done`. This module has the stanzas of both sides; it does not start the program
or carry the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from statepipe.errors import StatepipeError
from statepipe.formats.age.envelope import Wrapped
from statepipe.formats.age.header import HeaderError, Stanza, StanzaParser
from statepipe.typed import Protocol

LINE_LIMIT = 64 << 10
"""Bytes of a line from a plugin at most: a post-quantum share has 1.5 KB."""

SAID_LIMIT = 1 << 20
"""Bytes that a plugin may send in one conversation."""

OK = Stanza("ok", (), b"")
UNSUPPORTED = Stanza("unsupported", (), b"")


class Person(Protocol):
    """The user, whom a plugin may inform or ask."""

    def tell(self, text: str) -> None:
        """Show a message."""

    def ask(self, prompt: str) -> str:
        """Ask for a secret. Raises StatepipeError if there is no terminal to ask on."""


def opening(stanzas: Iterable[Stanza]) -> bytes:
    """Return the stanzas that we send first."""
    return b"".join(map(bytes, [*stanzas, Stanza("done", (), b"")]))


def wrap_file_key(texts: Iterable[str], file_key: bytes) -> bytes:
    """Return the opening of recipient-v1: the recipients to wrap the file key for."""
    asked = [Stanza("add-recipient", (text,), b"") for text in texts]
    return opening([*asked, Stanza("wrap-file-key", (), file_key), Stanza("extension-labels", (), b"")])


def unwrap_file_key(texts: Iterable[str], stanzas: Iterable[Stanza]) -> bytes:
    """Return the opening of identity-v1: the identities, and the stanzas of one file."""
    known = [Stanza("add-identity", (text,), b"") for text in texts]
    found = [Stanza("recipient-stanza", ("0", stanza.kind, *stanza.arguments), stanza.body) for stanza in stanzas]
    return opening([*known, *found])


def stanzas_of(said: Iterator[bytes], name: str) -> Iterator[Stanza]:
    """Yield a plugin's stanzas until its `done`. Raises StatepipeError for an early end and invalid or excess data."""
    parser = StanzaParser()
    try:
        for line in lines_of(said, name):
            stanza = parser.feed(line)
            if stanza and stanza.kind == "done":
                return
            if stanza:
                yield stanza
    except HeaderError as error:
        raise StatepipeError(f"age-plugin-{name} sent something that is not a stanza") from error
    raise StatepipeError(f"age-plugin-{name} ended before it was finished", hint="its own message may be above")


def lines_of(said: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield lines without their line ends. Raises StatepipeError for too many bytes."""
    held, total = b"", 0
    for part in said:
        total += len(part)
        *lines, held = (held + part).split(b"\n")
        if total > SAID_LIMIT or len(held) > LINE_LIMIT:
            raise StatepipeError(
                f"age-plugin-{name} sent too much: more than {SAID_LIMIT} bytes, or a line of {LINE_LIMIT}"
            )
        yield from lines


@dataclass(slots=True)
class Answers:
    """Our side of the second phase: answers each stanza, and collects the plugin's results."""

    name: str
    person: Person
    found: list[Stanza] = field(default_factory=list)
    labels: frozenset[str] = frozenset()
    file_key: bytes | None = field(default=None, repr=False)

    def __call__(self, stanza: Stanza) -> Stanza:
        """Return the answer to `stanza`. Raises StatepipeError if the plugin reports a failure."""
        if stanza.kind == "msg":
            self.person.tell(f"{self.name}: {_text(stanza)}")
        elif stanza.kind in ("request-public", "request-secret"):
            answer = self.person.ask(f"{self.name}: {_text(stanza)}")
            return Stanza("ok", (), answer.encode(errors="surrogateescape"))
        elif stanza.kind == "recipient-stanza":
            if len(stanza.arguments) < 2 or stanza.arguments[0] != "0":
                raise StatepipeError(f"age-plugin-{self.name} sent a stanza for an unknown file")
            self.found.append(Stanza(stanza.arguments[1], stanza.arguments[2:], stanza.body))
        elif stanza.kind == "file-key":
            if stanza.arguments != ("0",) or self.file_key is not None:
                raise StatepipeError(f"age-plugin-{self.name} sent a key for an unknown file")
            self.file_key = stanza.body
        elif stanza.kind == "labels":
            self.labels = frozenset(stanza.arguments)
        elif stanza.kind == "error":
            if stanza.arguments[:1] != ("stanza",):  # an error about a stanza only means damage; others are about a key
                raise StatepipeError(f"age-plugin-{self.name} failed: {_text(stanza)}")
        else:
            return UNSUPPORTED
        return OK

    def wrapped(self) -> Wrapped:
        """Return the result of recipient-v1. Raises StatepipeError if the plugin sent no stanza."""
        if not self.found:
            raise StatepipeError(f"age-plugin-{self.name} made no stanza for its recipient")
        return Wrapped(tuple(self.found), self.labels)


def _text(stanza: Stanza) -> str:
    """Return the text of a message, made safe for a terminal."""
    return stanza.body.decode(errors="replace")[:1000]
