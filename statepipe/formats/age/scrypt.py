"""A passphrase as the only recipient: scrypt stretches it with a work factor from the header.

wrapping key = scrypt(passphrase, "age-encryption.org/v1/scrypt" and salt, N = 2 ^ work factor, r = 8, p = 1)
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from statepipe.errors import NoKeyError, StatepipeError
from statepipe.formats.age.derive import check_stanza, decode_argument, unwrap, wrap
from statepipe.formats.age.envelope import PASSPHRASE, Wrapped
from statepipe.formats.age.header import HeaderError, Stanza, encode

LABEL = b"age-encryption.org/v1/scrypt"
SALT_SIZE = 16

WORK_FACTOR = 18
"""The work factor that age writes: 256 MiB of memory and about a second."""

HIGHEST_WORK_FACTOR = 22
"""The limit of age: 4 GiB and 15 seconds. A header with a higher one is refused before memory is allocated."""

_NUMBER = re.compile(r"[1-9][0-9]?")


@dataclass(frozen=True, slots=True)
class PassphraseRecipient:
    """Everyone who knows the passphrase."""

    passphrase: bytes = field(repr=False)
    work_factor: int = WORK_FACTOR

    def wrap(self, file_key: bytes) -> Wrapped:
        """One stanza."""
        salt = secrets.token_bytes(SALT_SIZE)
        body = wrap(stretch(self.passphrase, salt, self.work_factor), file_key)
        return Wrapped((Stanza(PASSPHRASE, (encode(salt), str(self.work_factor)), body),))


@dataclass(frozen=True, slots=True)
class PassphraseIdentity:
    """`passphrase` is called only for a file that was encrypted with a passphrase, because it may ask the user."""

    passphrase: Callable[[], bytes] = field(repr=False)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file key, or None if the file was not encrypted with a passphrase.

        Raises NoKeyError for a wrong passphrase (the file has no other recipient), HeaderError, and StatepipeError
        if memory is lacking.
        """
        stanza = next((each for each in stanzas if each.kind == PASSPHRASE), None)
        if stanza is None:
            return None
        check_stanza(stanza, 2)
        salt = decode_argument(stanza, 0, SALT_SIZE)
        work = stanza.arguments[1]
        if not _NUMBER.fullmatch(work) or int(work) > HIGHEST_WORK_FACTOR:
            raise HeaderError(
                f"the work factor '{work[:20]}' is not a number from 1 to {HIGHEST_WORK_FACTOR}", offset=0
            )
        file_key = unwrap(stretch(self.passphrase(), salt, int(work)), stanza.body)
        if file_key is None:
            hint = "check capital letters, the keyboard layout, and the first line of the passphrase file"
            raise NoKeyError("the passphrase does not open this stream", hint=hint, offset=0)
        return file_key


def stretch(passphrase: bytes, salt: bytes, work_factor: int) -> bytes:
    """Return the wrapping key, using 2 ^ `work_factor` KiB of memory. Raises StatepipeError if memory is lacking."""
    try:
        return Scrypt(LABEL + salt, 32, 1 << work_factor, 8, 1).derive(passphrase)
    except MemoryError as error:
        need = f"the passphrase's work factor {work_factor} needs {(1 << work_factor) >> 10} MiB of memory"
        raise StatepipeError(need, hint="open it on a machine with more memory") from error
