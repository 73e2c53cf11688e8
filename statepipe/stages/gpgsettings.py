"""gpg.conf must not change what we promise: the bytes come back as they were, or it is an error.

Its owner sets there which keys and ciphers are used, and that is followed. What touches the data is overruled where
gpg has a word for that (`OVERRULED`). Where it has none, the line in the file is named and nothing is read
(`ENCRYPTING`, `DECRYPTING`). What another version of gpg may do besides is seen in what it makes of `SAMPLE`.
"""

from __future__ import annotations

import os
from pathlib import Path

from statepipe.errors import StatepipeError

OVERRULED = (
    *("--no-textmode", "--set-filesize", "0", "--max-output", "0", "--output", "-", "--logger-file", "-"),
    *("--attribute-file", "/dev/null", "--verify-options", "no-show-photos"),
)
"""Given after the options of gpg.conf, these count: no line ends are changed, nothing is counted but what is there,
and what comes out goes to us, and with it no message of gpg's, and no picture of the signer's."""

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
"""Which descriptor it is, a person needs to know."""

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
"""What gpg would do in the place of what it is told, or beside it: of `symmetric` it asks for a passphrase that opens
the message, too. Those that do not go with both `--encrypt` and `--decrypt` (2.2.40, all of `gpg --dump-options`)."""

ENCRYPTING = _COMMANDS.union(("no-literal", "rfc2440", "compliance rfc2440", *_STEALING))
"""Options without an opposite. With the first three gpg ends with 0 and nobody can read what it wrote; the others put
messages among the data, or read the input as something else. Each was tried (2.2.40, all options of `gpg
--dump-options`)."""

DECRYPTING = (_COMMANDS - {"decrypt"}).union(("list-only", "unwrap", *_STEALING))
"""And those with which it does not decrypt."""

_SPOILS = "makes gpg lose the data, or write what cannot be read"
_DOES_ANOTHER = "is a command: gpg would carry out that one"

SAMPLE = b"a line \r\nanother\n\r\0\xff\n\nthe last"
"""No way of treating text leaves this as it is."""


def require_none(names: frozenset[str]) -> None:
    """Raise StatepipeError if one of these options is in a gpg.conf that we can read."""
    home = Path(os.environ.get("GNUPGHOME") or os.path.expanduser("~/.gnupg"))
    for path in (Path("/etc/gnupg/gpg.conf"), *sorted(home.glob("gpg.conf-2*")), home / "gpg.conf"):
        for name, value in _lines(path):
            line = f"{name} {value}" if name == "compliance" else name
            if line in names and (name, value) != ("logger-fd", "2"):  # standard error, where it goes anyway
                line = f"{name} {value}".rstrip() if name in _NUMBERED else line
                what = f"'{line}' in {path} {_DOES_ANOTHER if line in _COMMANDS else _SPOILS}"
                raise StatepipeError(what, hint="take that line out; which keys and ciphers are used may stand there")


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(errors="replace")
    except OSError:  # none, or gpg cannot read it either, and says so
        return []
    words = [line.split(None, 1) for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [(each[0].removeprefix("--"), each[1].strip(' \t"') if len(each) > 1 else "") for each in words if each]
