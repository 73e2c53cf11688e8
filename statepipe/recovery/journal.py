"""The journal of a migration: its state is written down before anything is done about it.

It has a line of JSON for each step, for `resolve` and for people: if the host crashed, its last line is all there is.
So a line that says something new about where the guest may run is on the disk (fsync) before the step's actions begin:
GO above all, after which the source must not run. For the others (WITHOUT_SYNC) the guest need not stand still: the
next fsync takes them along. Then the listeners hear of it, the guardian first, which never reads the file: there need
not be one.
"""

from __future__ import annotations

import enum
import json
import os
import stat
import time
from collections.abc import Callable

from statepipe.ends.fd import failure, write_all
from statepipe.errors import StatepipeError
from statepipe.recovery.handover import WITHOUT_SYNC
from statepipe.shapes import Misshapen, fields, one_of, parse, text, told
from statepipe.typed import Any

StepListener = Callable[[dict[str, Any]], None]

LIMIT = 1 << 20
"""Most bytes of a journal that are read: a migration has a dozen steps."""

_STEP = fields({}, optional={"state": text(64)})
_FACTS = fields({"side": one_of("source", "destination")})


class Journal:
    """Writes steps to a new file `path` (mode 0600), if one is named, and passes them to every listener. Raises
    StatepipeError."""

    def __init__(self, path: str | None, facts: dict[str, Any], listeners: tuple[StepListener, ...] = ()) -> None:
        self._path = path
        self._listeners = listeners
        self._fd: int | None = None
        if path is not None:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except FileExistsError as error:
                hint = "it may be the only record of an earlier migration: read it, then name another file"
                raise StatepipeError(f"the journal {path} already exists", hint=hint) from error
            except OSError as error:
                raise failure(f"create the journal {path}", error) from error
        try:
            self._put(facts)
        except OSError as error:
            self.close()
            raise failure(f"write the journal {path}", error) from error

    def write(self, state: enum.Enum, event: enum.Enum | None = None) -> StatepipeError | None:
        """Write the new state and what led to it; it is durable when this returns, unless it is of WITHOUT_SYNC. Return
        what prevented that.

        After such an error the file is closed, and the listeners have not heard of the state: writing it again passes
        it to them alone.
        """
        try:
            facts = {"state": state.name, "meaning": state.value, "event": event.name if event else None}
            self._put(facts, sync=state not in WITHOUT_SYNC)
        except OSError as error:
            self.close()
            return failure(f"write the journal {self._path}", error)
        return None

    def _put(self, facts: dict[str, Any], *, sync: bool = True) -> None:
        facts = {"time": round(time.time(), 3), **facts}
        if self._fd is not None:
            write_all(self._fd, json.dumps(facts).encode() + b"\n")
            if sync:
                os.fsync(self._fd)
        for listener in self._listeners:
            listener(facts)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_journal(path: str) -> list[dict[str, Any]]:
    """Return the lines of a journal, the facts first, without a last line that a crash cut short.

    Raises StatepipeError if it cannot be read or is not a journal. A pipe or a device is not, and is not waited for.
    """
    wrong = f"{path} is not a journal of a migration"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StatepipeError(f"{wrong}: it is not a regular file")
            letters = file.read(LIMIT + 1)
    except OSError as error:
        raise failure(f"read the journal {path}", error) from error
    if len(letters) > LIMIT:
        raise StatepipeError(f"{wrong}: it has more than {LIMIT} bytes")
    first, *others = letters.split(b"\n")[:-1] or [b""]
    try:
        return [parse(first, _FACTS), *(parse(line, _STEP) for line in others)]
    except Misshapen as error:
        raise StatepipeError(f"{wrong}: {told(error, 200)}") from error
