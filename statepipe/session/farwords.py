"""Arguments for a program that another host's shell starts, in a form that no shell interprets.

Shells differ in what quotes protect: fish interprets a backslash inside them, csh and tcsh an exclamation mark, a line
feed and bytes that are not text. So nothing is quoted. Arguments of letters, digits and harmless signs pass unchanged.
If one contains anything else, all of them are percent-encoded (RFC 3986, 2.1) after MARK, and our program over there
decodes them first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

MARK = "--percent"
"""Precedes percent-encoded arguments."""

_PLAIN = re.compile(r"[\w@:./-][\w@+=:./,-]*", re.ASCII)
"""Excludes zsh's =NAME and fish's %NAME too."""

_EMPTY = "%00"
"""An empty argument: no shell passes one without quotes, and no argument contains a NUL."""


def far_words(words: Sequence[str]) -> list[str]:
    """Return the arguments in characters that no shell interprets."""
    if words[:1] != [MARK] and all(map(_PLAIN.fullmatch, words)):
        return list(words)
    from urllib.parse import quote  # this import takes 10 ms, as does the one below

    return [MARK, *(quote(os.fsencode(word), safe="/").replace("~", "%7E") or _EMPTY for word in words)]


def meant_words(words: Sequence[str]) -> list[str]:
    """Return the original arguments of `far_words`."""
    if words[:1] != [MARK]:
        return list(words)
    from urllib.parse import unquote_to_bytes

    return [os.fsdecode(unquote_to_bytes(word).replace(b"\0", b"")) for word in words[1:]]
