"""Descriptors that whoever starts us has opened, and names to us: a number, or /dev/fd/N, /dev/stdout and the like.

Nothing else may be meant by such a name. What we open ourselves, a pipe for signals say, has the lowest number that is
free, and so the one that a caller has forgotten to open. It is marked to be closed by exec, as all that Python opens;
what came to us through an exec is not: so the mark tells whose a descriptor is.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat

from statepipe.errors import UsageError

_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}

_NUMBERED = re.compile(r"/proc/(?P<process>[0-9]+)(?:/task/[0-9]+)?/fd/(?P<number>[0-9]+)", re.ASCII)
"""What every other spelling comes to without links."""

_OWN = re.compile(r"/(?:dev|proc/self|proc/thread-self)/fd/(?P<number>[0-9]{1,9})", re.ASCII)
"""Where there is no /proc, or one of another PID namespace, these lead nowhere, and mean the same."""

DIGITS = 9
"""Of the largest number that a descriptor can have, and a few more."""

LINKS = 8
"""Symbolic links that are followed to a descriptor: a log that leads to /dev/stdout is one or two."""


def named_by(path: str) -> int | None:
    """The descriptor of ours that a path stands for, open or not; None for a path of any other kind.

    So also for one that another user's link in a folder like /tmp would make stand for one: ends/place.py refuses it.
    """
    for _ in range(LINKS):
        try:
            path = os.path.abspath(path)
            if (own := _OWN.fullmatch(path)) is not None:
                return int(own["number"])
            folder, name = os.path.split(path)
            folder = os.path.realpath(folder)
            whole = f"{folder.rstrip('/')}/{name}"
            if whole in _STANDARD:
                return _STANDARD[whole]
            found = _NUMBERED.fullmatch(whole)
            if found is not None and found["process"] == os.readlink("/proc/self"):
                return int(found["number"])
            target = os.readlink(whole)
            if is_strangers(os.lstat(whole), os.stat(folder)):
                return None
        except (OSError, ValueError):  # no link; a NUL in it
            return None
        path = os.path.join(folder, target)
    return None


def is_strangers(link: os.stat_result, around: os.stat_result) -> bool:
    """Whether a link in a folder (`around`) that everybody may write to is another user's: it leads where he likes."""
    return bool(around.st_mode & stat.S_IWOTH) and link.st_uid not in (os.geteuid(), 0, around.st_uid)


def demand(fd: int) -> None:
    """Raises UsageError unless the descriptor was open when we were started."""
    try:
        ours = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except (OSError, OverflowError):
        ours = True
    if ours:
        raise UsageError(f"descriptor {fd} is not open", hint=f"the shell opens it, with {fd}< FILE or {fd}> FILE")


def demand_numbered(text: str) -> None:
    """The same of a number as it was typed; one that is none, its option refuses. Raises UsageError."""
    if len(text) > DIGITS and text.isdecimal():
        raise UsageError(f"descriptor {text[:DIGITS]}... is not open: no number is as large")
    if text.isdecimal():  # whatever int() takes
        demand(int(text))


def look_at(path: str) -> None:
    """Raises UsageError for a path that stands for a descriptor which is not open."""
    if (fd := named_by(path)) is not None:
        demand(fd)
