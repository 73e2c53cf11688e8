"""ps, rate, cancel: ask running statepipes, each at its socket in the runtime folder."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

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

ANSWER_TIME = 5.0
"""Seconds for an answer. One takes a millisecond; a process that is stopped (SIGSTOP) gives none."""

ANSWER_LIMIT = 1 << 20
"""Bytes of an answer: a status has some hundred, and some hundred a stage."""

FORGOTTEN = 60.0
"""Seconds after which a name that no process has finished making is that of a dead one."""

_ID = re.compile(r"[1-9][0-9]{0,9}(-[1-9][0-9]?)?")


_COUNT = whole()
_RAM = fields(
    {"remaining": _COUNT, "total": _COUNT, "dirty-sync-count": _COUNT},
    optional={"dirty-pages-rate": _COUNT, "page-size": _COUNT},
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
        "migration": fields({}, optional={"ram": _RAM, "expected-downtime": _COUNT}),
    },
)
_TUNNEL = fields({"connections": _COUNT, "connections_total": _COUNT, "links": _COUNT})


def _status(value: object, where: str) -> None:
    """A status, as far as `ps` reads it; that of a tunnel tells of its connections."""
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
    """A running statepipe. `status` is None if it gives none; then `trouble` says what it does."""

    id: str
    status: dict[str, Any] | None
    trouble: str = "does not answer"


def find_jobs() -> list[Found]:
    """Every statepipe of this user that has something under way, by its ID. Raises StatepipeError.

    Names that killed processes have left are taken away.
    """
    with _folder() as folder:
        found = [_look(folder, name) for name in sorted(os.listdir(folder), key=_by_number) if _is_ours(folder, name)]
    return [each for each in found if each is not None]


def elsewhere() -> str | None:
    """What to say of the folder that is looked in, if it is not the first that comes to mind."""
    try:
        folder, path = open_runtime_folder()
    except OSError:  # find_jobs tells
        return None
    os.close(folder)
    return passed_over(path)


def set_rate(job: str, rate: int | None) -> None:
    """Give the throttle of `job` (an ID) a rate in bytes a second; None lifts it. Raises StatepipeError."""
    with _asked(job, {"do": "rate", "rate": rate}):
        return


def cancel(job: str) -> None:
    """End `job` (an ID), and return once its process has ended. Raises StatepipeError if it says no."""
    with _asked(job, {"do": "cancel"}) as connection:
        connection.settimeout(None)
        with _process(connection) as process:
            with suppress(ConnectionResetError):  # which is an end as well
                connection.recv(1)
            if process is not None:
                select.select([process], [], [])  # its descriptors close a moment before it is gone


@contextmanager
def _process(connection: socket.socket) -> Iterator[int | None]:
    """A pidfd of the process that listens at the other end; None if it cannot be seen from our pid namespace."""
    try:
        fd = os.pidfd_open(peer_of(connection)[0])
    except OSError:  # also if it has ended already
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _folder() -> Iterator[int]:
    try:
        folder, _ = open_runtime_folder()
    except OSError as error:
        raise StatepipeError(
            f"cannot use the runtime folder {runtime_folder()}: {error.strerror}",
            hint="set XDG_RUNTIME_DIR to a folder of yours, for the statepipe that runs too",
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


def _by_number(name: str) -> tuple[int, str]:
    return int(name.partition("-")[0]) if _ID.fullmatch(name) else 0, name


def _is_ours(folder: int, name: str) -> bool:
    """A name of a job. One that was begun and never finished is taken away."""
    if name.startswith("."):
        with suppress(OSError):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if time.time() - found.st_mtime > FORGOTTEN:
                remove(folder, name, (found.st_dev, found.st_ino))
    return _ID.fullmatch(name) is not None


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
    """It says what is no answer."""


class _Silent(StatepipeError):
    """It is there, and does not answer."""


class _No(StatepipeError):
    """It has ended meanwhile, or says no: to a question for its status, because it is about to end."""


@contextmanager
def _asked(job: str, request: dict[str, Any]) -> Iterator[socket.socket]:
    """The connection to a job that has said yes to the request. Raises StatepipeError."""
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
    """Raises ConnectionRefusedError or FileNotFoundError where nobody listens, StatepipeError for any other reason."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a timeout of Python's, connect would not wait at all where the queue is full.
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
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = _line(connection)
    except TimeoutError as error:
        raise _silent(job) from error
    except OSError as error:
        raise _No(f"{job} has just ended") from error
    return _understand(job, answer)


def _line(connection: socket.socket) -> bytes:
    """A line, or so much of what is none. Raises TimeoutError if it is not there after ANSWER_TIME."""
    line, deadline = bytearray(), time.monotonic() + ANSWER_TIME
    while not line.endswith(b"\n") and len(line) <= ANSWER_LIMIT:
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(ANSWER_LIMIT)
        if not part:
            raise ConnectionResetError
        line += part
    return bytes(line)


def _understand(job: str, answer: bytes) -> Any:
    try:
        said = parse(answer if len(answer) <= ANSWER_LIMIT else b"", _ANSWER)
    except Misshapen as error:
        raise _Odd(f"{job} gave an answer that this version does not know: {told(error, 200)}") from error
    if "error" in said:
        raise _No(f"{job} says: {told(said['error'])}", hint=said["hint"] and told(said["hint"]))
    return said["ok"]


def _silent(job: str) -> _Silent:
    return _Silent(f"{job} does not answer", hint=f"it may be stopped: kill -CONT {job.partition('-')[0]}")
