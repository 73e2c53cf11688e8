"""Descriptors that whoever starts us has opened, and names to us: a number, or /dev/fd/N, /dev/stdout and the like.

Nothing else may be meant by such a name. What we open ourselves, a pipe for signals say, has the lowest number that is
free, and so the one that a caller has forgotten to open. It is marked to be closed by exec, as all that Python opens;
what came to us through an exec is not: so the mark tells whose a descriptor is.
"""

from __future__ import annotations

import fcntl
import os
import re

from statepipe.errors import UsageError

_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}

_NUMBERED = re.compile(r"/(?:dev|proc/(?:self|thread-self|(?P<process>[0-9]+)))/fd/(?P<number>[0-9]+)", re.ASCII)

LINKS = 8
"""Symbolic links that are followed to a descriptor: a log that leads to /dev/stdout is one or two."""


def named_by(path: str) -> int | None:
    """The descriptor of ours that a path stands for, open or not; None for a path of any other kind."""
    for _ in range(LINKS):
        whole = os.path.abspath(path)
        if whole in _STANDARD:
            return _STANDARD[whole]
        found = _NUMBERED.fullmatch(whole)
        if found is not None and found["process"] in (None, str(os.getpid())):
            return int(found["number"])
        try:
            path = os.path.join(os.path.dirname(whole), os.readlink(whole))
        except (OSError, ValueError):  # no link; a NUL in it
            return None
    return None


def demand(fd: int) -> None:
    """Raises UsageError unless the descriptor was open when we were started."""
    try:
        ours = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except (OSError, OverflowError):
        ours = True
    if ours:
        raise UsageError(f"descriptor {fd} is not open", hint=f"the shell opens it, with {fd}< FILE or {fd}> FILE")


def look_at(path: str) -> None:
    """Raises UsageError for a path that stands for a descriptor which is not open."""
    if (fd := named_by(path)) is not None:
        demand(fd)
