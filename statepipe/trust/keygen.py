"""keygen: create identities in the file format of age-keygen, and show the recipients of existing ones.

Only its owner can read an identity file, and it never replaces another file: without the lost key, encrypted files
could not be opened.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime

from statepipe.ends.fd import failure, write_all
from statepipe.errors import StatepipeError, UsageError
from statepipe.formats.age.envelope import Identity
from statepipe.formats.age.x25519 import X25519Identity
from statepipe.typed import Protocol, runtime_checkable


@runtime_checkable
class NativeIdentity(Protocol):
    """An identity of age's own kinds. Only these can be written as text."""

    @property
    def recipient(self) -> object: ...

    def text(self) -> str: ...


def generate(*, postquantum: bool) -> NativeIdentity:
    """Return a new identity. Raises StatepipeError if the library for its kind is not installed."""
    if postquantum:
        from statepipe.formats.age.hybrid import HybridIdentity

        return HybridIdentity.generate()
    return X25519Identity.generate()


def identity_file(identity: NativeIdentity, created: datetime) -> str:
    """Return the text of an identity file in the format of age-keygen: two comments and the secret key."""
    when = created.isoformat(timespec="seconds")
    return f"# created: {when}\n# public key: {identity.recipient}\n{identity.text()}\n"


def write_new(path: str, text: str) -> None:
    """Create a file with mode 0600. Raises StatepipeError if it exists or cannot be written completely."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise StatepipeError(
            f"{path} exists already", hint="give a new file name: keygen never overwrites a file"
        ) from error
    except OSError as error:
        raise failure(f"create {path}", error) from error
    try:
        write_all(fd, text.encode())
        os.fsync(fd)
    except OSError as error:
        with suppress(OSError):
            os.unlink(path)
        raise failure(f"write {path}", error) from error
    finally:
        os.close(fd)


def recipients_of(identities: list[Identity], path: str) -> list[str]:
    """Return the recipients of these identities. Raises UsageError for identities that are not age's own."""
    native = [each for each in identities if isinstance(each, NativeIdentity)]
    if len(native) != len(identities):
        hint = "use an SSH public key itself as the recipient; a plugin shows its own recipients"
        raise UsageError(f"{path} holds identities that are not age's own", hint=hint)
    return [str(each.recipient) for each in native]
