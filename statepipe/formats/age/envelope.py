"""The file key goes into the header once for each recipient, and comes out of it for whoever has an identity.

An identity first, then the MAC: a header that someone has changed is found before anything in it is believed, and
no byte of the payload is touched before.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from statepipe.errors import IntegrityError, NoKeyError, UsageError
from statepipe.formats.age.derive import FILE_KEY_SIZE, header_mac
from statepipe.formats.age.header import HEADER_LIMIT, STANZA_LIMIT, Header, HeaderError, Stanza, covered, written

PASSPHRASE = "scrypt"
"""The kind of stanza that is alone in its header: whoever knows the passphrase knows that its sender did as well."""


class MacError(IntegrityError):
    """The header was changed by someone who has not the file key."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """Stanzas of one recipient, and labels: recipients go together only if theirs are the same."""

    stanzas: tuple[Stanza, ...]
    labels: frozenset[str] = frozenset()


class Recipient(Protocol):
    """Whom a file is for."""

    def wrap(self, file_key: bytes) -> Wrapped:
        """Stanzas from which only they find the file key again."""


class Identity(Protocol):
    """What opens a file."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """The file key, or None if no stanza is for this identity. Raises HeaderError."""


def seal(file_key: bytes, recipients: Iterable[Recipient]) -> bytes:
    """A header for these recipients. Raises UsageError if they do not go together or are too many."""
    wrapped = [recipient.wrap(file_key) for recipient in recipients]
    stanzas = [stanza for each in wrapped for stanza in each.stanzas]
    if len(wrapped) > 1 and any(stanza.kind == PASSPHRASE for stanza in stanzas):
        raise UsageError("a passphrase goes with no other recipient", hint="encrypt for a passphrase or for keys")
    if len({each.labels for each in wrapped}) > 1:
        labels = ", ".join(sorted(frozenset[str]().union(*(each.labels for each in wrapped))))
        raise UsageError(
            f"these recipients do not go together: some are {labels}, others are not",
            hint="the weakest key decides who can read a file: give recipients of one kind",
        )
    header = written(stanzas, header_mac(file_key, covered(stanzas)))
    if len(stanzas) > STANZA_LIMIT or len(header) > HEADER_LIMIT:
        raise UsageError("there are too many recipients for one header", hint="encrypt for a key that they share")
    return header


def open_header(header: Header, identities: Iterable[Identity]) -> bytes:
    """The file key, once the MAC agrees. Raises HeaderError, NoKeyError and MacError."""
    kinds = [stanza.kind for stanza in header.stanzas]
    if PASSPHRASE in kinds and len(kinds) > 1:
        raise HeaderError("a passphrase stanza is not alone in the age header", offset=0)
    file_key = _find_key(header, identities)
    if not hmac.compare_digest(header_mac(file_key, header.covered), header.mac):
        raise MacError("the MAC of the age header does not agree: the header was changed", offset=0)
    return file_key


def _find_key(header: Header, identities: Iterable[Identity]) -> bytes:
    for identity in identities:
        file_key = identity.unwrap(header.stanzas)
        if file_key is None:
            continue
        if len(file_key) != FILE_KEY_SIZE:
            raise HeaderError(f"the file key has {len(file_key)} bytes and not {FILE_KEY_SIZE}", offset=0)
        return file_key
    raise NoKeyError("no identity opens this stream", hint=_for_whom(header), offset=0)


def _for_whom(header: Header) -> str:
    kinds = sorted({stanza.kind for stanza in header.stanzas})
    if kinds == [PASSPHRASE]:
        return "it was encrypted with a passphrase: give that one, by -p or --passphrase-file"
    return f"it was encrypted for recipients of the kinds {', '.join(kinds)[:200]}: give an identity by -i"
