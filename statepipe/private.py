"""Secrets: check the files that hold them, as ssh does, and prevent core dumps of a process that has read one.

A private key that others can read is not private. So the mode of a file is checked before its key is used, and the
error says how to fix it. Pipes and descriptors (`/dev/fd/3`, `<(…)`) are not checked, nor are the files that systemd
gives a service (`$CREDENTIALS_DIRECTORY`, protected by systemd). A file that belongs to root may be readable by its
group, as the administrator chose: QEMU's keys are often readable by QEMU's group.

A process that has read a secret is marked as not dumpable (PR_SET_DUMPABLE): RLIMIT_CORE does not help if cores are
piped to a program (core(5)), and programs that we start would inherit it. The mark also keeps other processes of the
same user from reading its memory.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable

from statepipe.descriptors import named_by
from statepipe.errors import StatepipeError

PR_SET_DUMPABLE = 4
"""prctl(2), for which Python has no function."""


def read_private(path: str, limit: int, is_secret: Callable[[bytes], bool] = bool) -> bytes:
    """Read at most `limit` + 1 bytes of a file that may hold a secret. This forbids core dumps of this process.

    `is_secret` decides whether the bytes are a secret. Raises OSError, and StatepipeError for a secret in a file that
    others can read or write.
    """
    with open(path, "rb") as file:
        forbid_dumps()
        data = file.read(limit + 1)
        if is_secret(data):
            refuse_open(path, os.fstat(file.fileno()))
        return data


def refuse_open(path: str, status: os.stat_result) -> None:
    """Raises StatepipeError for a regular file that users other than its owner can read or write."""
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


_is_ours = False


def own_process() -> None:
    """Say that this process is the command's own. Until then `forbid_dumps` does nothing: it would change a program
    that only uses the library."""
    global _is_ours
    _is_ours = True


def forbid_dumps() -> None:
    """Forbid core dumps of this process, if it is our own. Exec ends that: programs that we start are not affected."""
    if not _is_ours:
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # cannot fail with these values
