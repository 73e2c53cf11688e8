"""Secrets: the files that hold them, as ssh looks at them, and a process that does, of which no core is ever written.

A private key that others may read is none. So of a file its mode is looked at before it is believed, with the word that
mends it; a pipe or a descriptor (`/dev/fd/3`, `<(…)`) is whoever made it's own affair, and so are the files that
systemd hands a service (`$CREDENTIALS_DIRECTORY`, kept by its own rules). The group of a file that is root's is the
administrator's choice: QEMU's own keys are often its group's to read.

A process that has read a secret may not be dumped (PR_SET_DUMPABLE): RLIMIT_CORE, which is left to programs that we
start, counts for nothing where cores go to a program (core(5)). Nor may other processes of the same user look into it.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable

from statepipe.descriptors import named_by
from statepipe.errors import StatepipeError

PR_SET_DUMPABLE = 4
"""prctl(2); Python has no call of its own for it."""


def read_private(path: str, limit: int, is_secret: Callable[[bytes], bool] = bool) -> bytes:
    """The bytes of a file that may hold a secret, `limit` + 1 at the most. From now on this process is not dumped.

    `is_secret` tells of the bytes whether they are one. Raises OSError, and StatepipeError for a secret in a file that
    others may read or write.
    """
    with open(path, "rb") as file:
        forbid_dumps()
        data = file.read(limit + 1)
        if is_secret(data):
            refuse_open(path, os.fstat(file.fileno()))
        return data


def refuse_open(path: str, status: os.stat_result) -> None:
    """Raises StatepipeError for a regular file that others than its owner may read or write."""
    if not stat.S_ISREG(status.st_mode) or _is_credential(path) or named_by(path) is not None:
        return
    others = 0o027 if status.st_uid == 0 else 0o077
    if status.st_mode & others and os.geteuid() in (0, status.st_uid):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        what = f"{path} can be read or written by others: its mode is {mode}"
        raise StatepipeError(what, hint=f"chmod 600 {shlex.quote(path)}")


def _is_credential(path: str) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return os.path.isabs(folder) and os.path.dirname(os.path.abspath(path)) == os.path.normpath(folder)


def forbid_dumps() -> None:
    """No core of this process is written from now on. It ends with exec: what we start is not touched."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # it fails for no value that there is
