"""The header holds the file key once for each recipient, and any matching identity can open it.

To open a header, an identity finds the file key, and then the MAC is checked. So a changed header is found before
anything in it is used and before the payload is read.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from statepipe.errors import IntegrityError, NoKeyError, UsageError
from statepipe.formats.age.derive import FILE_KEY_SIZE, header_mac
from statepipe.formats.age.header import HEADER_LIMIT, STANZA_LIMIT, Header, HeaderError, Stanza, covered, written
from statepipe.typed import NamedTuple, Protocol

PASSPHRASE = "scrypt"
"""The kind of stanza that must be the only one in its header, so that it proves that the sender knew the passphrase."""


class MacError(IntegrityError):
    """The header was changed by someone who does not have the file key."""


class Wrapped(NamedTuple):
    """The stanzas of one recipient, and its labels. Recipients can be combined only if their labels are equal."""

    stanzas: tuple[Stanza, ...]
    labels: frozenset[str] = frozenset()


class Recipient(Protocol):
    """A key or passphrase that a file is encrypted for."""

    def wrap(self, file_key: bytes) -> Wrapped:
        """Return stanzas from which only this recipient's identity can recover the file key."""


class Identity(Protocol):
    """A secret that opens a file."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if no stanza is for this identity. Raises HeaderError."""


def seal(file_key: bytes, recipients: Iterable[Recipient]) -> bytes:
    """Return a header for these recipients. Raises UsageError if they cannot be combined or are too many."""
    wrapped = [recipient.wrap(file_key) for recipient in recipients]
    stanzas = [stanza for each in wrapped for stanza in each.stanzas]
    if len(wrapped) > 1 and any(stanza.kind == PASSPHRASE for stanza in stanzas):
        raise UsageError(
            "a passphrase cannot be combined with other recipients", hint="encrypt for a passphrase or for keys"
        )
    if len({each.labels for each in wrapped}) > 1:
        labels = ", ".join(sorted(frozenset[str]().union(*(each.labels for each in wrapped))))
        raise UsageError(
            f"these recipients cannot be combined: some are {labels}, others are not",
            hint="give recipients of one kind, because the weakest key decides who can read a file",
        )
    header = written(stanzas, header_mac(file_key, covered(stanzas)))
    if len(stanzas) > STANZA_LIMIT or len(header) > HEADER_LIMIT:
        raise UsageError("too many recipients for one header", hint="encrypt for a key that they share")
    return header


def open_header(header: Header, identities: Iterable[Identity]) -> bytes:
    """Return the file key, after checking the MAC. Raises HeaderError, NoKeyError and MacError."""
    kinds = [stanza.kind for stanza in header.stanzas]
    if PASSPHRASE in kinds and len(kinds) > 1:
        raise HeaderError("the age header combines a passphrase with other recipients", offset=0)
    given = list(identities)
    for identity in given:
        file_key = identity.unwrap(header.stanzas)
        if file_key is None:
            continue
        if len(file_key) != FILE_KEY_SIZE:
            raise HeaderError(f"the file key has {len(file_key)} bytes, expected {FILE_KEY_SIZE}", offset=0)
        if not hmac.compare_digest(header_mac(file_key, header.covered), header.mac):
            raise MacError("MAC mismatch: the age header was changed", offset=0)
        return file_key
    hint = "it was encrypted with a passphrase: give it with -p or --passphrase-file"
    if kinds != [PASSPHRASE]:
        more = "give the right one with -i" if given else "give it with -i FILE"
        listed = ", ".join(sorted(set(kinds)))[:200]
        hint = f"it was encrypted for {'another' if given else 'a'} key, of the kind {listed}: {more}"
    raise NoKeyError("no identity opens this stream", hint=hint, offset=0)
