"""gpg.conf must not break our promise: the bytes come back unchanged, or there is an error.

The user chooses keys and ciphers there. Options that affect the data are overridden if gpg has an opposite option
(`OVERRULED`). If it has none, an error names the line before any data are read (`ENCRYPTING`, `DECRYPTING`). Anything
else that another version of gpg may do shows in its output for `SAMPLE`.
"""

from __future__ import annotations

import os
from pathlib import Path

from statepipe.errors import StatepipeError

OVERRULED = (
    *("--no-textmode", "--set-filesize", "0", "--max-output", "0", "--output", "-", "--logger-file", "-"),
    *("--attribute-file", "/dev/null", "--verify-options", "no-show-photos"),
)
"""These come after the options of gpg.conf and win: line ends are not changed, the size is the real one, and the output
goes to our pipe, without gpg's messages or a picture of the signer."""

_STEALING = (
    "logger-fd",
    "passphrase-fd",
    "override-session-key",
    "override-session-key-fd",
    "multifile",
    "command-fd",
    "dry-run",
)

_NUMBERED = ("logger-fd", "passphrase-fd", "override-session-key-fd", "command-fd")
"""Options whose value (a descriptor) the error shows."""

_WORDS = """
card-edit card-status change-passphrase change-pin check-sig check-signatures check-sigs check-trustdb clear-sign
clearsign dearmor dearmour decrypt decrypt-files delete-keys delete-secret-and-public-keys delete-secret-keys
desig-revoke detach-sign edit-card edit-key enarmor enarmour encrypt encrypt-files export export-ownertrust
export-secret-keys export-secret-subkeys export-ssh-key fast-import fetch-keys fix-trustdb full-gen-key
full-generate-key gen-key gen-prime gen-random gen-revoke generate-designated-revocation generate-key
generate-revocation gpgconf-list gpgconf-test import import-ownertrust key-edit list-config list-gcrypt-config
list-key list-keys list-packets list-public-keys list-secret-keys list-sig list-signatures list-sigs list-trustdb
locate-external-keys locate-keys lsign-key passwd print-md print-mds quick-add-key quick-add-uid quick-addkey
quick-adduid quick-gen-key quick-generate-key quick-lsign-key quick-revoke-sig quick-revoke-uid quick-revuid
quick-set-expire quick-set-primary-uid quick-sign-key rebuild-keydb-caches receive-keys recv-keys refresh-keys
search-keys send-keys server show-key show-keys sign sign-key store symmetric tofu-policy update-trustdb verify
verify-files
"""
_COMMANDS = frozenset(_WORDS.split())
"""Commands that gpg would run instead of ours or in addition: with `symmetric` it asks for a passphrase that also opens
the message. All commands of `gpg --dump-options` (2.2.40) that conflict with `--encrypt` or `--decrypt`."""

ENCRYPTING = _COMMANDS.union(("no-literal", "rfc2440", "compliance rfc2440", *_STEALING))
"""Options without an opposite. With the first three, gpg exits with 0 and nobody can read its output; the others mix
messages with the data, or read the input as something else. Each was tried (2.2.40, all options of `gpg
--dump-options`)."""

DECRYPTING = (_COMMANDS - {"decrypt"}).union(("list-only", "unwrap", *_STEALING))
"""The options with which it does not decrypt."""

_SPOILS = "makes gpg lose the data, or write a message that cannot be read"
_DOES_ANOTHER = "is a command, which gpg would run instead of ours"

SAMPLE = b"a line \r\nanother\n\r\0\xff\n\nthe last"
"""Every conversion of text changes this."""


def require_none(names: frozenset[str]) -> None:
    """Raises StatepipeError if one of these options is in a gpg.conf that we can read."""
    home = Path(os.environ.get("GNUPGHOME") or os.path.expanduser("~/.gnupg"))
    for path in (Path("/etc/gnupg/gpg.conf"), *sorted(home.glob("gpg.conf-2*")), home / "gpg.conf"):
        for name, value in _lines(path):
            line = f"{name} {value}" if name == "compliance" else name
            if line in names and (name, value) != ("logger-fd", "2"):  # standard error, where it goes anyway
                line = f"{name} {value}".rstrip() if name in _NUMBERED else line
                what = f"'{line}' in {path} {_DOES_ANOTHER if line in _COMMANDS else _SPOILS}"
                raise StatepipeError(what, hint="remove that line; options that choose keys and ciphers may stay")


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_bytes()
    except OSError:  # it does not exist, or gpg cannot read it either and will say so
        return []
    # A newline ends a line, and ASCII has all white space: what else a text may hold is part of a word, as for gpg.
    lines = [line.split(None, 1) for line in text.split(b"\n") if not line.lstrip().startswith(b"#")]
    words = [[word.decode(errors="replace") for word in line] for line in lines if line]
    return [(each[0].removeprefix("--"), each[1].strip(' \t"') if len(each) > 1 else "") for each in words]
