"""From the options of encrypt and decrypt to recipients and identities: files read, passphrases asked for, keys opened.

All of it happens while the stage is built: whoever must type something does so before a byte flows, and a slip ends
the command before it has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from statepipe.errors import NoKeyError, StatepipeError, UsageError
from statepipe.formats.age.armor import BEGIN, SPACE_LIMIT
from statepipe.formats.age.envelope import Identity, Recipient
from statepipe.formats.age.header import VERSION
from statepipe.formats.age.keys import PluginKey, parse_file, parse_identity, parse_recipient
from statepipe.private import forbid_dumps, read_private
from statepipe.stages.ageplugin import PluginIdentity, PluginRecipient
from statepipe.stages.context import Context, Secret
from statepipe.stages.encrypt import decrypt

KEY_FILE_LIMIT = 1 << 20
"""Bytes of a file of keys: 500 post-quantum recipients."""

PASSPHRASE_LIMIT = 4096
"""Bytes, as of what is typed."""


def recipients(keys: Sequence[str], files: Sequence[str], secret: Secret, context: Context) -> list[Recipient]:
    """Return the recipients that `encrypt` encrypts for. Raises UsageError, and StatepipeError for files."""
    parsed = [parse_recipient(text) for text in keys]
    for path in files:
        parsed += _listed(path, context)
    found: list[Recipient] = [PluginRecipient(key, context) if isinstance(key, PluginKey) else key for key in parsed]
    passphrase = secret()
    if passphrase is not None:
        from statepipe.formats.age.scrypt import PassphraseRecipient

        found.append(PassphraseRecipient(passphrase))
    if not found:
        raise UsageError("encrypt needs a recipient", hint="give -r age1…, -R FILE, or -p for a passphrase")
    return found


def _listed(path: str, context: Context) -> list[Recipient | PluginKey]:
    """The recipients in a file. Raises UsageError where none is left, StatepipeError."""

    def warn(text: str) -> None:
        context.warn(f"encrypt: {text}")

    found = parse_file(_read(path).decode(errors="replace"), path, parse_recipient, warn)
    if not found:
        raise UsageError(f"there is no recipient in {path}", hint="it has one a line: age1… or a public key of ssh")
    return found


def identities(files: Sequence[str], passphrase: bytes | None, context: Context) -> list[Identity]:
    """Return what `decrypt` decrypts with; with nothing, the header is read and tells what it would take.

    Raises UsageError, NoKeyError, and StatepipeError for files.
    """
    found = [identity for path in files for identity in read_identities(path, context)]
    if passphrase is not None:
        found.append(_by_passphrase(passphrase))
    return found


def read_identities(path: str, context: Context) -> list[Identity]:
    """The identities in a file: of age (encrypted or not) or a private key of ssh. Raises StatepipeError."""
    data = _read_identities(path)
    if data.startswith(VERSION) or BEGIN in data[:SPACE_LIMIT]:
        data = _opened(data, path, context)
    elif data.lstrip().startswith(b"-----BEGIN"):
        return [_ssh_identity(data.lstrip(), path, context)]
    return list(parse_identities(data, path, context))


def parse_identities(data: bytes, path: str, context: Context) -> Iterator[Identity]:
    """Those in the lines of an identity file. Raises UsageError."""
    keys = parse_file(data.decode(errors="replace"), path, parse_identity)
    if not keys:
        raise UsageError(f"there is no identity in {path}")
    for key in keys:
        yield PluginIdentity(key, context) if isinstance(key, PluginKey) else key


def _opened(data: bytes, path: str, context: Context) -> bytes:
    """An identity file that is itself encrypted, with a passphrase."""
    passphrase = typed(context, f"passphrase of {path}")
    try:
        return b"".join(decrypt([_by_passphrase(passphrase)])(iter([data])))
    except NoKeyError as error:
        raise NoKeyError(f"the passphrase does not open {path}", hint=error.hint) from error


def _by_passphrase(passphrase: bytes) -> Identity:
    from statepipe.formats.age.scrypt import PassphraseIdentity

    return PassphraseIdentity(lambda: passphrase)


def _ssh_identity(pem: bytes, path: str, context: Context) -> Identity:
    from statepipe.formats.age.ssh import identity_of
    from statepipe.formats.age.sshkey import OPENSSH, load_private, public_part

    try:
        if pem.startswith(OPENSSH):
            public_part(pem)  # a key of a kind that is of no use is told before its passphrase is asked for
        return identity_of(load_private(pem, lambda: typed(context, f"passphrase of {path}")))
    except ValueError as error:
        raise NoKeyError(f"cannot use {path}: {error}") from error


def _read(path: str) -> bytes:
    """A file of keys that everybody may see."""
    return _whole(path, _public)


def read_secret(path: str) -> bytes:
    """A file of keys, or a passphrase, that nobody else may read."""
    return _whole(path, read_private)


def _read_identities(path: str) -> bytes:
    """The same of identities, but for those that are no secret: encrypted ones, and those of a plugin's device."""
    return _whole(path, lambda path, limit: read_private(path, limit, _is_secret))


def _is_secret(data: bytes) -> bool:
    if data.startswith(VERSION) or BEGIN in data[:SPACE_LIMIT]:
        return False
    return b"AGE-SECRET-KEY-" in data.upper() or b"-----BEGIN" in data


def _public(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit + 1)


def _whole(path: str, read: Callable[[str, int], bytes]) -> bytes:
    try:
        data = read(path, KEY_FILE_LIMIT)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no file's name"
        raise StatepipeError(f"cannot read {path}: {reason}", hint="look at the path") from error
    if len(data) > KEY_FILE_LIMIT:
        raise UsageError(f"{path} is too large for a file of keys")
    return data


def first_line(data: bytes) -> bytes:
    """The passphrase in the first line. Raises UsageError for an empty one."""
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise UsageError("the passphrase is empty")
    return line


def typed(context: Context, prompt: str) -> bytes:
    """What a person types at the prompt. Raises StatepipeError where nobody can be asked."""
    forbid_dumps()
    return context.ask(prompt).encode(errors="surrogateescape")
