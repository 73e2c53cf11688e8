"""gpg.conf must not change what we promise: the bytes come back as they were, or it is an error.

Its owner sets there which keys and ciphers are used, and that is followed. What touches the data is overruled where
gpg has a word for that (`OVERRULED`). Where it has none, the line in the file is named and nothing is read
(`ENCRYPTING`, `DECRYPTING`). What another version of gpg may do besides is seen in what it makes of `SAMPLE`.
"""

from __future__ import annotations

import os
from pathlib import Path

from statepipe.errors import StatepipeError

OVERRULED = ("--no-textmode", "--set-filesize", "0", "--max-output", "0", "--output", "-", "--logger-file", "-")
"""Given after the options of gpg.conf, these count: no line ends are changed, nothing is counted but what is there,
and what comes out goes to us, and no message of gpg's with it."""

_STEALING = (
    "logger-fd 1",
    "passphrase-fd",
    "override-session-key",
    "override-session-key-fd",
    "multifile",
    "command-fd",
)

ENCRYPTING = frozenset(("no-literal", "rfc2440", "compliance rfc2440", *_STEALING))
"""Options without an opposite. With the first three gpg ends with 0 and nobody can read what it wrote; the others put
messages among the data, or read the input as something else. Each was tried (2.2.40, all options of `gpg
--dump-options`)."""

DECRYPTING = frozenset(("list-only", "unwrap", *_STEALING))
"""And those with which it does not decrypt."""

SAMPLE = b"a line \r\nanother\n\r\0\xff\n\nthe last"
"""No way of treating text leaves this as it is."""


def require_none(names: frozenset[str]) -> None:
    """Raise StatepipeError if one of these options is in a gpg.conf that we can read."""
    home = Path(os.environ.get("GNUPGHOME") or os.path.expanduser("~/.gnupg"))
    for path in (Path("/etc/gnupg/gpg.conf"), *sorted(home.glob("gpg.conf-2*")), home / "gpg.conf"):
        for name, value in _lines(path):
            line = f"{name} {value}" if name in ("compliance", "logger-fd") else name
            if line in names:
                what = f"'{line}' in {path} makes gpg lose the data, or write what cannot be read"
                raise StatepipeError(what, hint="take that line out; which keys and ciphers are used may stand there")


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(errors="replace")
    except OSError:  # none, or gpg cannot read it either, and says so
        return []
    words = [line.split(None, 1) for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [(each[0].removeprefix("--"), each[1].strip() if len(each) > 1 else "") for each in words if each]
