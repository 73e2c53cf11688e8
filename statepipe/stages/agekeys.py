"""Turn the options of encrypt and decrypt into recipients and identities: read files, ask for passphrases, open keys.

This happens while the stage is built: the user types a passphrase before any data flows, and a mistake ends the command
before it has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from statepipe.errors import NoKeyError, StatepipeError, UsageError
from statepipe.formats.age.armor import BEGIN, SPACE_LIMIT
from statepipe.formats.age.envelope import Identity, Recipient
from statepipe.formats.age.header import VERSION
from statepipe.formats.age.keys import PluginKey, parse_file, parse_identity, parse_recipient
from statepipe.private import forbid_dumps, read_private
from statepipe.stages.context import Context, Secret

KEY_FILE_LIMIT = 1 << 20
"""Bytes of a key file: 500 post-quantum recipients."""

PASSPHRASE_LIMIT = 4096
"""Bytes of a passphrase in a file, the same as of one that is typed."""


def recipients(keys: Sequence[str], files: Sequence[str], secret: Secret, context: Context) -> list[Recipient]:
    """Return the recipients that `encrypt` encrypts for. Raises UsageError, and StatepipeError for files."""

    def warn(text: str) -> None:
        context.warn(f"encrypt: {text}")

    parsed = [parse_recipient(text) for text in keys]
    for path in files:
        listed = parse_file(_read(path, None).decode(errors="replace"), path, parse_recipient, warn)
        if not listed:
            hint = "write one recipient on each line: age1… or an ssh public key"
            raise UsageError(f"{path} contains no recipient", hint=hint)
        parsed += listed
    found = [_recipient(key, context) for key in parsed]
    passphrase = secret()
    if passphrase is not None:
        from statepipe.formats.age.scrypt import PassphraseRecipient

        found.append(PassphraseRecipient(passphrase))
    if not found:
        raise UsageError("encrypt needs a recipient", hint="give -r age1…, -R FILE, or -p for a passphrase")
    return found


def identities(files: Sequence[str], passphrase: bytes | None, context: Context) -> list[Identity]:
    """Return the identities that `decrypt` tries. With none, the error for the header tells what it needs.

    Raises UsageError, NoKeyError, and StatepipeError for files.
    """
    found = [identity for path in files for identity in read_identities(path, context)]
    if passphrase is not None:
        found.append(_by_passphrase(passphrase))
    return found


def read_identities(path: str, context: Context) -> list[Identity]:
    """Return the identities in a file: age identities (encrypted or not), or an ssh private key.

    Raises UsageError, NoKeyError, StatepipeError.
    """
    data = _read(path, _is_secret)
    if _is_encrypted(data):
        from statepipe.stages.encrypt import decrypt

        passphrase = typed(context, f"passphrase of {path}")
        try:
            data = b"".join(decrypt([_by_passphrase(passphrase)])(iter([data])))
        except NoKeyError as error:
            raise NoKeyError(f"the passphrase does not open {path}", hint=error.hint) from error
    elif (pem := data.lstrip()).startswith(b"-----BEGIN"):
        from statepipe.formats.age.ssh import identity_of
        from statepipe.formats.age.sshkey import OPENSSH, load_private, public_part

        try:
            if pem.startswith(OPENSSH):
                public_part(pem)  # reports an unusable kind of key before its passphrase is asked for
            return [identity_of(load_private(pem, lambda: typed(context, f"passphrase of {path}")))]
        except ValueError as error:
            raise NoKeyError(f"cannot use {path}: {error}") from error
    return list(parse_identities(data, path, context))


def parse_identities(data: bytes, path: str, context: Context) -> Iterator[Identity]:
    """Yield the identities in the lines of an identity file. Raises UsageError."""
    keys = parse_file(data.decode(errors="replace"), path, parse_identity)
    if not keys:
        raise UsageError(f"{path} contains no identity")
    for key in keys:
        yield _identity(key, context)


def _recipient(key: Recipient | PluginKey, context: Context) -> Recipient:
    if isinstance(key, PluginKey):
        from statepipe.stages.ageplugin import PluginRecipient

        return PluginRecipient(key, context)
    return key


def _identity(key: Identity | PluginKey, context: Context) -> Identity:
    if isinstance(key, PluginKey):
        from statepipe.stages.ageplugin import PluginIdentity  # it takes 3 ms

        return PluginIdentity(key, context)
    return key


def _by_passphrase(passphrase: bytes) -> Identity:
    from statepipe.formats.age.scrypt import PassphraseIdentity

    return PassphraseIdentity(lambda: passphrase)


def _is_encrypted(data: bytes) -> bool:
    return data.startswith(VERSION) or BEGIN in data[:SPACE_LIMIT]


def _is_secret(data: bytes) -> bool:
    """Return whether an identity file must be private: not if it is encrypted, or if a plugin's device has the key."""
    return not _is_encrypted(data) and (b"AGE-SECRET-KEY-" in data.upper() or b"-----BEGIN" in data)


def read_secret(path: str) -> bytes:
    """Read a file of keys or a passphrase. Raises UsageError, and StatepipeError also if others can read it."""
    return _read(path, bool)


def _read(path: str, is_secret: Callable[[bytes], bool] | None) -> bytes:
    """Read a key file; without `is_secret`, anyone may read it."""
    try:
        if is_secret is None:
            with open(path, "rb") as file:
                data = file.read(KEY_FILE_LIMIT + 1)
        else:
            data = read_private(path, KEY_FILE_LIMIT, is_secret)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid file name"
        raise StatepipeError(f"cannot read {path}: {reason}", hint="check the path") from error
    if len(data) > KEY_FILE_LIMIT:
        raise UsageError(f"{path} is too large for a key file: the limit is 1 MiB")
    return data


def first_line(data: bytes) -> bytes:
    """Return the passphrase in the first line. Raises UsageError if it is empty."""
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise UsageError("the passphrase is empty")
    return line


def typed(context: Context, prompt: str) -> bytes:
    """Return what the user types at the prompt. Raises StatepipeError if there is no terminal."""
    forbid_dumps()
    return context.ask(prompt).encode(errors="surrogateescape")
