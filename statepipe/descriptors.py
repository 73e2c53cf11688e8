"""Descriptors that our caller opened and names on the command line: a number, /dev/fd/N, /dev/stdout and the like.

Such a name must not mean a descriptor of our own. Those get the lowest free number, which can be the one that a caller
forgot to open. Python marks them close-on-exec, and descriptors inherited through exec do not have that mark, so the
mark tells them apart.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat

from statepipe.errors import UsageError

_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}

_NUMBERED = re.compile(r"/proc/(?P<process>[0-9]+)(?:/task/[0-9]+)?/fd/(?P<number>[0-9]+)", re.ASCII)
"""The form of every other spelling after links are resolved."""

_OWN = re.compile(r"/(?:dev|proc/self|proc/thread-self)/fd/(?P<number>[0-9]{1,9})", re.ASCII)
"""The same names, for a system whose /proc is missing or belongs to another PID namespace: they are not resolved."""

DIGITS = 9
"""Digits of the largest descriptor number, and a few more."""

LINKS = 8
"""Symbolic links followed to a descriptor at most: a log that links to /dev/stdout needs one or two."""


def named_by(path: str) -> int | None:
    """Return the descriptor that a path names, open or not; None for any other path.

    Also None if the path leads there through another user's link in a folder like /tmp: ends/place.py refuses that.
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
        except (OSError, ValueError):  # not a link; a NUL in the path
            return None
        path = os.path.join(folder, target)
    return None


def is_strangers(link: os.stat_result, around: os.stat_result) -> bool:
    """Return whether a link in a world-writable folder (`around`) belongs to another user, who chooses its target."""
    return bool(around.st_mode & stat.S_IWOTH) and link.st_uid not in (os.geteuid(), 0, around.st_uid)


def demand(fd: int) -> None:
    """Raises UsageError unless the descriptor was open when we started."""
    try:
        ours = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except (OSError, OverflowError):
        ours = True
    if ours:
        raise UsageError(f"descriptor {fd} is not open", hint=f"open it in the shell with {fd}< FILE or {fd}> FILE")


def demand_readable(fd: int, name: str) -> None:
    """Raises UsageError for an open descriptor that nothing can be read from, as it is open for writing."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_PATH:
        raise UsageError(f"{name} is not open for reading", hint=f"for example: {fd}< FILE")


def demand_numbered(text: str) -> None:
    """As `demand`, for a number as text; the option itself refuses other text. Raises UsageError."""
    if len(text) > DIGITS and text.isdecimal():
        raise UsageError(f"descriptor {text[:DIGITS]}... is not open: the number is too large")
    if text.isdecimal():  # what int() accepts
        demand(int(text))


def look_at(path: str) -> None:
    """Raises UsageError for a path that names a descriptor that is not open."""
    if (fd := named_by(path)) is not None:
        demand(fd)
