"""Words for a program that another host's shell starts, as that shell must not read them.

Shells differ in what a quote holds together: fish reads a backslash within it, csh and tcsh an exclamation mark and the
end of a line, and bytes that are no text. So nothing is quoted. Words of letters, digits and what no shell takes for
its own pass as they are; where one has anything else, all of them pass percent-encoded (RFC 3986, 2.1) behind MARK, and
our program over there decodes them before it looks at anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

MARK = "--percent"
"""Says that the words after it are percent-encoded."""

_PLAIN = re.compile(r"[\w@:./-][\w@+=:./,-]*", re.ASCII)
"""Neither of zsh's =NAME nor of fish's %NAME."""

_EMPTY = "%00"
"""An empty word: no shell would pass one that is not quoted, and no argument holds a NUL."""


def far_words(words: Sequence[str]) -> list[str]:
    """The words as they are given to a shell there, of characters that all shells leave alone."""
    if words[:1] != [MARK] and all(map(_PLAIN.fullmatch, words)):
        return list(words)
    return [MARK, *map(_encoded, words)]


def _encoded(word: str) -> str:
    from urllib.parse import quote  # and unquote below: 10 ms, which no other start need pay

    return quote(os.fsencode(word), safe="/").replace("~", "%7E") or _EMPTY


def meant_words(words: Sequence[str]) -> list[str]:
    """The words that were meant, here where they arrive."""
    if words[:1] != [MARK]:
        return list(words)
    from urllib.parse import unquote_to_bytes

    return [os.fsdecode(unquote_to_bytes(word).replace(b"\0", b"")) for word in words[1:]]
