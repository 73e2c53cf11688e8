"""ps, rate, cancel: send requests to running statepipes, each at its socket in the runtime folder."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from statepipe.ends.peercred import peer_of
from statepipe.ends.rendezvous import file_of, inside, remove
from statepipe.errors import StatepipeError
from statepipe.pipeline.runtimefolder import open_runtime_folder, passed_over, runtime_folder
from statepipe.shapes import (
    Misshapen,
    Shape,
    anything,
    check,
    either,
    fields,
    many,
    maybe,
    number,
    parse,
    text,
    told,
    whole,
)
from statepipe.typed import Any

ANSWER_TIME = 5.0
"""Seconds for an answer. It takes a millisecond, but a stopped process (SIGSTOP) gives none."""

ANSWER_LIMIT = 1 << 20
"""Bytes of an answer at most: a status has a few hundred, and a few hundred for each stage."""

FORGOTTEN = 60.0
"""Seconds after which an unfinished name belongs to a dead process."""

_ID = re.compile(r"[1-9][0-9]{0,9}(-[1-9][0-9]?)?")

_COUNT = whole()
_RAM = fields(
    {"remaining": _COUNT, "total": _COUNT, "dirty-sync-count": _COUNT},
    optional={"dirty-pages-rate": _COUNT, "page-size": _COUNT},
)
_LAZY = fields(
    dict.fromkeys(("pages", "pages_total", "asked"), _COUNT)
    | {"wait_median_ms": number, "wait_worst_ms": number, "seconds_left": maybe(number)}
)
_COMMON = fields(
    {
        "verb": text(64),
        "what": text(64 << 10),
        "seconds": number,
        "bytes_in": _COUNT,
        "bytes_out": _COUNT,
        "stages": many(fields({"name": text(64)}), most=1000),
    },
    optional={
        "phase": text(64),
        "lazy": _LAZY,
        "migration": fields({}, optional={"ram": _RAM, "expected-downtime": _COUNT}),
    },
)
_TUNNEL = fields({"connections": _COUNT, "connections_total": _COUNT, "links": _COUNT})


def _status(value: object, where: str) -> None:
    """Check a status, as far as `ps` reads it; a tunnel's contains its connections."""
    _COMMON(value, where)
    if isinstance(value, dict) and value.get("connections") is not None:
        _TUNNEL(value, where)


STATUS: Shape = _status

_ANSWER = either(
    fields({"error": text(64 << 10), "hint": maybe(text(64 << 10))}),
    fields({"ok": anything}),
)


@dataclass(frozen=True, slots=True)
class Found:
    """A running statepipe. `status` is None if it gives none; then `trouble` says why."""

    id: str
    status: dict[str, Any] | None
    trouble: str = "does not answer"


def find_jobs() -> list[Found]:
    """Return every statepipe of this user that is at work, by its ID. Raises StatepipeError.

    Removes the names that killed processes have left.
    """
    with _folder() as folder:
        names = os.listdir(folder)
        for name in names:
            if name.startswith("."):  # a socket that does not listen yet
                with suppress(OSError):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if time.time() - found.st_mtime > FORGOTTEN:
                        remove(folder, name, (found.st_dev, found.st_ino))
        ids = sorted(filter(_ID.fullmatch, names), key=lambda name: (int(name.partition("-")[0]), name))
        return [job for name in ids if (job := _look(folder, name)) is not None]


def elsewhere() -> str | None:
    """Return a notice if the folder in use is not the first choice."""
    try:
        folder, path = open_runtime_folder()
    except OSError:  # find_jobs reports it
        return None
    os.close(folder)
    return passed_over(path)


def set_rate(job: str, rate: int | None) -> None:
    """Set the throttle of `job` (an ID) to a rate in bytes a second; None lifts it. Raises StatepipeError."""
    with _asked(job, {"do": "rate", "rate": rate}):
        return


def cancel(job: str) -> None:
    """End `job` (an ID), and return once its process has ended. Raises StatepipeError if it refuses."""
    with _asked(job, {"do": "cancel"}) as connection, ExitStack() as opened:
        connection.settimeout(None)
        process = None
        with suppress(OSError):  # it has ended already, or is outside our pid namespace
            process = os.pidfd_open(peer_of(connection)[0])
            opened.callback(os.close, process)
        with suppress(ConnectionResetError):  # this is an end too
            connection.recv(1)
        if process is not None:
            select.select([process], [], [])  # its descriptors close a moment before it has ended


@contextmanager
def _folder() -> Iterator[int]:
    try:
        folder, _ = open_runtime_folder()
    except OSError as error:
        raise StatepipeError(
            f"cannot use the runtime folder {runtime_folder()}: {error.strerror}",
            hint="set XDG_RUNTIME_DIR to a folder of yours, also for the running statepipe",
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


def _look(folder: int, job: str) -> Found | None:
    file = file_of(folder, job)
    try:
        with _connect(folder, job) as connection:
            return Found(job, check(_ask(connection, job, {"do": "status"}), STATUS))
    except (ConnectionRefusedError, FileNotFoundError):
        remove(folder, job, file)
        return None
    except _Silent:
        return Found(job, None)
    except _No:
        return None
    except (_Odd, Misshapen):
        return Found(job, None, "gives an answer that this version does not know")


class _Odd(StatepipeError):
    """Its answer is malformed."""


class _Silent(StatepipeError):
    """It runs, but does not answer."""


class _No(StatepipeError):
    """It has ended meanwhile, or refuses: a request for its status, because it is about to end."""


@contextmanager
def _asked(job: str, request: dict[str, Any]) -> Iterator[socket.socket]:
    """Give the connection to a job that has accepted the request. Raises StatepipeError."""
    unknown = StatepipeError(f"no running statepipe of yours has the ID '{job}'", hint="see: statepipe ps")
    if not _ID.fullmatch(job):
        raise unknown
    with _folder() as folder:
        try:
            connection = _connect(folder, job)
        except (ConnectionRefusedError, FileNotFoundError):
            raise unknown from None
    with connection:
        _ask(connection, job, request)
        yield connection


def _connect(folder: int, job: str) -> socket.socket:
    """Raises ConnectionRefusedError or FileNotFoundError if nobody listens, StatepipeError for any other reason."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a timeout of Python's, connect would not wait if the queue is full.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(ANSWER_TIME), 0))
        connection.connect(inside(folder, job))
        connection.settimeout(ANSWER_TIME)
    except (ConnectionRefusedError, FileNotFoundError):
        connection.close()
        raise
    except OSError as error:  # its queue is full
        connection.close()
        raise _silent(job) from error
    return connection


def _ask(connection: socket.socket, job: str, request: dict[str, Any]) -> Any:
    """Send a request and return the answer. Raises _Silent, _No, _Odd."""
    line, deadline = bytearray(), time.monotonic() + ANSWER_TIME
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        while not line.endswith(b"\n") and len(line) <= ANSWER_LIMIT:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            connection.settimeout(left)
            if not (part := connection.recv(ANSWER_LIMIT)):
                raise ConnectionResetError
            line += part
    except TimeoutError as error:
        raise _silent(job) from error
    except OSError as error:
        raise _No(f"{job} has just ended") from error
    try:
        said = parse(bytes(line) if len(line) <= ANSWER_LIMIT else b"", _ANSWER)
    except Misshapen as error:
        raise _Odd(f"{job} gave an answer that this version does not know: {told(error, 200)}") from error
    if "error" in said:
        raise _No(f"{job} says: {told(said['error'])}", hint=said["hint"] and told(said["hint"]))
    return said["ok"]


def _silent(job: str) -> _Silent:
    return _Silent(f"{job} does not answer", hint=f"it may be stopped: kill -CONT {job.partition('-')[0]}")
