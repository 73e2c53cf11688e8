"""How age and its plugins speak (C2SP age-plugin.md): stanzas over a program's standard input and output.

First we say all there is to do and `done`; then the plugin says, one stanza at a time, what it wants of us or what it
has found, and waits for our answer to each, until its own `done`. Here are the words of both; who starts the program
and carries the bytes is not said here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from statepipe.errors import StatepipeError
from statepipe.formats.age.envelope import Wrapped
from statepipe.formats.age.header import HeaderError, Stanza, StanzaParser

LINE_LIMIT = 64 << 10
"""Bytes of a line of a plugin's: those of a post-quantum share, 1.5 KB, and room."""

SAID_LIMIT = 1 << 20
"""Bytes of stanzas that a plugin may send in one conversation."""

OK = Stanza("ok", (), b"")
UNSUPPORTED = Stanza("unsupported", (), b"")


class Person(Protocol):
    """Whom a plugin may speak to."""

    def tell(self, text: str) -> None:
        """Show a message."""

    def ask(self, prompt: str) -> str:
        """Ask for a secret. Raises StatepipeError where nobody can be asked."""


def opening(stanzas: Iterable[Stanza]) -> bytes:
    """What we say first."""
    return b"".join(map(bytes, [*stanzas, Stanza("done", (), b"")]))


def wrap_file_key(texts: Iterable[str], file_key: bytes) -> bytes:
    """The opening of recipient-v1: whom to wrap the file key for."""
    asked = [Stanza("add-recipient", (text,), b"") for text in texts]
    return opening([*asked, Stanza("wrap-file-key", (), file_key), Stanza("extension-labels", (), b"")])


def unwrap_file_key(texts: Iterable[str], stanzas: Iterable[Stanza]) -> bytes:
    """The opening of identity-v1: identities, and the stanzas of the one file."""
    known = [Stanza("add-identity", (text,), b"") for text in texts]
    found = [Stanza("recipient-stanza", ("0", stanza.kind, *stanza.arguments), stanza.body) for stanza in stanzas]
    return opening([*known, *found])


def stanzas_of(said: Iterator[bytes], name: str) -> Iterator[Stanza]:
    """What a plugin says, until its `done`. Raises StatepipeError if it ends before, or says no stanza, or too much."""
    parser = StanzaParser()
    try:
        for line in lines_of(said, name):
            stanza = parser.feed(line)
            if stanza and stanza.kind == "done":
                return
            if stanza:
                yield stanza
    except HeaderError as error:
        raise StatepipeError(f"age-plugin-{name} says what is no stanza") from error
    raise StatepipeError(f"age-plugin-{name} ended before it was done", hint="its own message may be above")


def lines_of(said: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Lines without their ends. Raises StatepipeError for too many bytes."""
    held, total = b"", 0
    for part in said:
        total += len(part)
        *lines, held = (held + part).split(b"\n")
        if total > SAID_LIMIT or len(held) > LINE_LIMIT:
            raise StatepipeError(f"age-plugin-{name} says more than it should")
        yield from lines


@dataclass(slots=True)
class Answers:
    """Our side of the second phase: an answer to each stanza, and what the plugin has found meanwhile."""

    name: str
    person: Person
    found: list[Stanza] = field(default_factory=list)
    labels: frozenset[str] = frozenset()
    file_key: bytes | None = field(default=None, repr=False)

    def __call__(self, stanza: Stanza) -> Stanza:
        """The answer. Raises StatepipeError if the plugin says that it failed."""
        answer: Callable[[Stanza], Stanza] | None = {
            "msg": self._tell,
            "request-public": self._ask,
            "request-secret": self._ask,
            "recipient-stanza": self._take_stanza,
            "file-key": self._take_file_key,
            "labels": self._take_labels,
            "error": self._fail,
        }.get(stanza.kind)
        return answer(stanza) if answer else UNSUPPORTED

    def wrapped(self) -> Wrapped:
        """What recipient-v1 has come to. Raises StatepipeError if the plugin found nothing."""
        if not self.found:
            raise StatepipeError(f"age-plugin-{self.name} made no stanza for its recipient")
        return Wrapped(tuple(self.found), self.labels)

    def _tell(self, stanza: Stanza) -> Stanza:
        self.person.tell(f"{self.name}: {_text(stanza)}")
        return OK

    def _ask(self, stanza: Stanza) -> Stanza:
        answer = self.person.ask(f"{self.name}: {_text(stanza)}")
        return Stanza("ok", (), answer.encode(errors="surrogateescape"))

    def _take_stanza(self, stanza: Stanza) -> Stanza:
        if len(stanza.arguments) < 2 or stanza.arguments[0] != "0":
            raise StatepipeError(f"age-plugin-{self.name} made a stanza for no file of ours")
        self.found.append(Stanza(stanza.arguments[1], stanza.arguments[2:], stanza.body))
        return OK

    def _take_file_key(self, stanza: Stanza) -> Stanza:
        if stanza.arguments != ("0",) or self.file_key is not None:
            raise StatepipeError(f"age-plugin-{self.name} gave a key for no file of ours")
        self.file_key = stanza.body
        return OK

    def _take_labels(self, stanza: Stanza) -> Stanza:
        self.labels = frozenset(stanza.arguments)
        return OK

    def _fail(self, stanza: Stanza) -> Stanza:
        """An identity or recipient that the plugin cannot use; an error of a stanza only says that it is damaged."""
        if stanza.arguments[:1] == ("stanza",):
            return OK
        raise StatepipeError(f"age-plugin-{self.name} failed: {_text(stanza)}")


def _text(stanza: Stanza) -> str:
    """A message's words, as far as a person can use them."""
    return stanza.body.decode(errors="replace")[:1000]
