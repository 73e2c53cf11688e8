"""Recipients and identities as people write them: on a command line, or one a line in a file with comments.

What each kind of key needs is imported with the first key of it: the usual one shall not wait 30 ms for the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from statepipe.errors import UsageError
from statepipe.formats.age import bech32, x25519
from statepipe.formats.age.envelope import Recipient
from statepipe.formats.age.x25519 import X25519Identity, X25519Recipient

if TYPE_CHECKING:
    from statepipe.formats.age.hybrid import HybridIdentity

T = TypeVar("T")

HYBRID_NAME = "age1pq"
HYBRID_SECRET_NAME = "AGE-SECRET-KEY-PQ-"

_PLUGIN_RECIPIENT = re.compile(r"age1([a-z0-9+._-]+)")
_PLUGIN_IDENTITY = re.compile(r"AGE-PLUGIN-([A-Z0-9+._-]+)-")


@dataclass(frozen=True, slots=True)
class PluginKey:
    """A key that only the program age-plugin-NAME understands. An identity's text is a secret."""

    name: str
    text: str = field(repr=False)


def parse_recipient(text: str) -> Recipient | PluginKey:
    """`age1…`, `age1pq1…`, `age1NAME1…`, or a line as in `id_ed25519.pub`. Raises UsageError."""
    try:
        if text.startswith("ssh-"):
            return _parse_ssh(text)
        return _parse_recipient(text)
    except ValueError as error:
        shown = text if len(text) < 80 else f"{text[:60]}…"
        hint = "a recipient is age1… or a public key of ssh"
        if text.upper().startswith("AGE-"):
            raise UsageError("this is a secret key, and no recipient", hint="give the public key") from None
        raise UsageError(f"'{shown}' is no recipient: {error}", hint=hint) from error


def _parse_ssh(text: str) -> Recipient:
    from statepipe.formats.age.ssh import Ed25519Recipient, RsaRecipient
    from statepipe.formats.age.sshkey import ED25519, parse_line

    blob = parse_line(text)
    if not text.startswith(f"{ED25519} "):
        return RsaRecipient(blob)
    recipient = Ed25519Recipient(blob)
    recipient.check()
    return recipient


def _parse_recipient(text: str) -> Recipient | PluginKey:
    name, data = bech32.decode(text)
    if name == x25519.NAME:
        usual = X25519Recipient(_sized(data, 32))
        usual.check()
        return usual
    if name == HYBRID_NAME:
        from statepipe.formats.age.hybrid import PUBLIC_SIZE, HybridRecipient

        recipient = HybridRecipient(_sized(data, PUBLIC_SIZE))
        recipient.check()
        return recipient
    plugin = _PLUGIN_RECIPIENT.fullmatch(name)
    if plugin is None:
        raise ValueError("it is of no kind that is known")
    return PluginKey(plugin[1], text)


def parse_identity(text: str) -> X25519Identity | HybridIdentity | PluginKey:
    """`AGE-SECRET-KEY-1…`, `AGE-SECRET-KEY-PQ-1…`, `AGE-PLUGIN-NAME-1…`. Raises ValueError, which tells no secret."""
    name, data = bech32.decode(text)
    if name == x25519.SECRET_NAME:
        return X25519Identity(_sized(data, 32))
    if name == HYBRID_SECRET_NAME:
        from statepipe.formats.age.hybrid import SEED_SIZE, HybridIdentity

        return HybridIdentity(_sized(data, SEED_SIZE))
    plugin = _PLUGIN_IDENTITY.fullmatch(name)
    if plugin is None:
        raise ValueError("it is of no kind that is known")
    return PluginKey(plugin[1].lower(), text)


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"it holds {len(data)} bytes and not {size}")
    return data


def parse_file(text: str, name: str, parse: Callable[[str], T], warn: Callable[[str], None] | None = None) -> list[T]:
    """One key a line; empty lines and those that begin with # are none. Raises UsageError, which quotes no line.

    With `warn`, public keys of ssh that cannot be encrypted for are told and passed over, as age does: a person's
    file of keys has some of every kind.
    """
    found = []
    for number, line in _lines(text):
        place = f"line {number} of {name}"
        try:
            found.append(_parse_line(line, place, parse))
        except UsageError:
            kind = _ssh_kind(line)
            if warn is None or kind is None:
                raise
            warn(f"{place} is passed over: nobody can encrypt for this key of the kind {kind}")
    return found


def _ssh_kind(line: str) -> str | None:
    """The kind of a public key of ssh that is whole, but not one to encrypt for: of another kind, or too short."""
    from statepipe.formats.age.sshkey import ED25519, kind_of

    try:
        kind = kind_of(line)
    except ValueError:
        return None
    return None if kind == ED25519 else kind


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _parse_line(line: str, place: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(line)
    except ValueError as error:
        raise UsageError(f"{place} is no identity: {error}", hint="see: statepipe keygen --help") from error
    except UsageError as error:
        raise UsageError(f"{place} is no recipient of age", hint=error.hint) from error
