"""Parse recipients and identities from a command line, or from a file with one a line and comments.

The modules for a kind of key are imported with the first such key, so that the usual kind does not wait 30 ms for
the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from statepipe.errors import UsageError
from statepipe.formats.age import bech32, x25519
from statepipe.formats.age.envelope import Recipient
from statepipe.formats.age.x25519 import X25519Identity, X25519Recipient
from statepipe.typed import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from statepipe.formats.age.hybrid import HybridIdentity

T = TypeVar("T")

HYBRID_NAME = "age1pq"
HYBRID_SECRET_NAME = "AGE-SECRET-KEY-PQ-"

_PLUGIN_RECIPIENT = re.compile(r"age1([a-z0-9+._-]+)")
_PLUGIN_IDENTITY = re.compile(r"AGE-PLUGIN-([A-Z0-9+._-]+)-")


class PluginKey(NamedTuple):
    """A key that only the program age-plugin-NAME understands. The text of an identity is secret."""

    name: str
    text: str

    def __repr__(self) -> str:
        return f"PluginKey(name={self.name!r})"


def parse_recipient(text: str) -> Recipient | PluginKey:
    """Parse `age1…`, `age1pq1…`, `age1NAME1…`, or a line as in `id_ed25519.pub`. Raises UsageError."""
    try:
        if text.startswith("ssh-"):
            from statepipe.formats.age.ssh import Ed25519Recipient, RsaRecipient
            from statepipe.formats.age.sshkey import ED25519, parse_line

            blob = parse_line(text)
            if not text.startswith(f"{ED25519} "):
                return RsaRecipient(blob)
            login = Ed25519Recipient(blob)
            login.check()
            return login
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
            raise ValueError("its kind is unknown")
        return PluginKey(plugin[1], text)
    except ValueError as error:
        shown = text if len(text) < 80 else f"{text[:60]}…"
        hint = "a recipient is age1… or an SSH public key"
        if text.upper().startswith("AGE-"):
            raise UsageError("this is a secret key, not a recipient", hint="give the public key") from None
        if text.endswith(("…", "...")):  # as documents shorten it
            hint = "write the whole public key: keygen prints it, and the file of the secret key has it"
        raise UsageError(f"'{shown}' is not a recipient: {error}", hint=hint) from error


def parse_identity(text: str) -> X25519Identity | HybridIdentity | PluginKey:
    """Parse `AGE-SECRET-KEY-1…`, `AGE-SECRET-KEY-PQ-1…` or `AGE-PLUGIN-NAME-1…`. The ValueError hides the text."""
    name, data = bech32.decode(text)
    if name == x25519.SECRET_NAME:
        return X25519Identity(_sized(data, 32))
    if name == HYBRID_SECRET_NAME:
        from statepipe.formats.age.hybrid import SEED_SIZE, HybridIdentity

        return HybridIdentity(_sized(data, SEED_SIZE))
    plugin = _PLUGIN_IDENTITY.fullmatch(name)
    if plugin is None:
        raise ValueError("its kind is unknown")
    return PluginKey(plugin[1].lower(), text)


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"it has {len(data)} bytes, expected {size}")
    return data


def parse_file(text: str, name: str, parse: Callable[[str], T], warn: Callable[[str], None] | None = None) -> list[T]:
    """Parse one key a line; skip empty lines and those that begin with #. Raises UsageError that quotes no line.

    With `warn`, SSH public keys that age cannot encrypt for are reported and skipped, as age does, because a person's
    file of keys often holds several kinds.
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("#") or not (line := line.strip()):
            continue
        place = f"line {number} of {name}"
        try:
            found.append(parse(line))
        except ValueError as error:
            raise UsageError(f"{place} is not an identity: {error}", hint="see: statepipe keygen --help") from error
        except UsageError as error:
            kind = None if warn is None else _ssh_kind(line)
            if warn is None or kind is None:
                raise UsageError(f"{place} is not a recipient of age", hint=error.hint) from error
            warn(f"{place} is skipped: age cannot encrypt for a key of the kind {kind}")
    return found


def _ssh_kind(line: str) -> str | None:
    """Return the kind of a valid SSH public key that age cannot encrypt for (another kind, or too short), or None."""
    from statepipe.formats.age.sshkey import ED25519, kind_of

    try:
        kind = kind_of(line)
    except ValueError:
        return None
    return None if kind == ED25519 else kind
