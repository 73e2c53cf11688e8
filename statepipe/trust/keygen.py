"""keygen: new identities, in the file format of age-keygen, and the recipients of those that there are.

An identity file is made for its owner's eyes only and never in the place of another file: a key that is lost opens
nothing any more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime

from statepipe.ends.fd import failure, write_all
from statepipe.errors import StatepipeError, UsageError
from statepipe.formats.age.envelope import Identity
from statepipe.formats.age.hybrid import HybridIdentity
from statepipe.formats.age.x25519 import X25519Identity


def identity_file(identity: X25519Identity | HybridIdentity, created: datetime) -> str:
    """The text of its file, as age-keygen writes it: two comments, and the secret key."""
    when = created.isoformat(timespec="seconds")
    return f"# created: {when}\n# public key: {identity.recipient}\n{identity.text()}\n"


def write_new(path: str, text: str) -> None:
    """Make a file, mode 0600. Raises StatepipeError if there is one, or if it cannot be made whole."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise StatepipeError(f"{path} is there already", hint="keygen overwrites nothing: name a new file") from error
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
    """The recipients whose files they open. Raises UsageError for identities that are not age's own."""
    native = [each for each in identities if isinstance(each, X25519Identity | HybridIdentity)]
    if len(native) != len(identities):
        hint = "a public key of ssh is a recipient as it is; a plugin tells its own"
        raise UsageError(f"not every identity in {path} is one of age's own", hint=hint)
    return [str(each.recipient) for each in native]
