"""The pinned peers as files: each one's certificate in `peers/NAME.pem`, kept, listed, and taken away again.

Whoever changes a pin does it alone, by a lock on the folder: what is told of a pin made or removed is true of it.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from statepipe.ends.config import config_folder
from statepipe.ends.fd import failure
from statepipe.ends.file import FileSink, sync_folder
from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.telling import Tell

PEM_LIMIT = 64 << 10
"""Bytes of a pinned certificate's file."""

_NAME = re.compile(r"[A-Za-z0-9_:](?:[A-Za-z0-9_.:-]{0,126}[A-Za-z0-9_:])?")
"""A name or an address, which of IPv6 may begin or end with colons, is a file's name too: it hides none, and leads
nowhere."""

SHOWN = 5
"""Names of pinned peers that a hint tells, at the most."""


def shown(names: list[str]) -> str:
    """Some of the names, for a hint."""
    return ", ".join(names[:SHOWN]) + (", ..." if names[SHOWN:] else "")


def name_of(path: str) -> str:
    """The name of the peer whose file it is."""
    return os.path.basename(path).removesuffix(".pem")


def pin_files() -> list[str]:
    """The pinned peers' files, in order of their names. Raises StatepipeError."""
    folder = os.path.join(config_folder(), "peers")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise failure(f"read {folder}", error) from error
    return [os.path.join(folder, name) for name in names if name.endswith(".pem") and name[0] != "."]


def pin_of(name: str) -> str:
    """The file with a peer's certificate. Raises UsageError for what cannot be its name."""
    return os.path.join(config_folder(), "peers", f"{check_name(name)}.pem")


def pins(tell: Tell) -> dict[str, str]:
    """The peers that are pinned here, by name: each one's key's fingerprint. Raises StatepipeError.

    One whose file cannot be read is not among them, as no handshake believes it; `tell` is told of it, and why.
    """
    keys = {name_of(path): _key_in(path, tell) for path in pin_files()}
    return {name: key for name, key in keys.items() if key is not None}


def unpin(name: str, tell: Tell) -> str | None:
    """Take a peer's pin away for good; its key's fingerprint, None where `tell` is told why it could not be read.

    Also one that a person put there, under a name that nobody can be paired as. Raises StatepipeError where nobody is
    pinned so, or the file cannot be removed.
    """
    folder = os.path.join(config_folder(), "peers")
    if not os.path.isdir(folder):
        raise _unknown(name, [])
    with _alone(folder):
        files = {name_of(path): path for path in pin_files()}
        path = files.get(name) or files.get(name.lower())
        if path is None:
            raise _unknown(name, list(files))
        key = _key_in(path, tell)
        try:
            os.unlink(path)
            sync_folder(folder)
        except OSError as error:
            raise failure(f"remove {path}", error) from error
    return key


def _unknown(name: str, known: list[str]) -> StatepipeError:
    hint = f"pinned here: {shown(known)}" if known else "nobody is pinned here"
    return StatepipeError(f"no peer is pinned here as '{name}'", hint=hint)


def _key_in(path: str, tell: Tell) -> str | None:
    """The fingerprint of the key in a pin; None where `tell` is told why it cannot be read."""
    from statepipe.trust.certificates import fingerprint

    try:
        return fingerprint(read_pem(path).encode())
    except OSError as error:
        why = os.strerror(error.errno or 0)
    except IntegrityError as error:
        why = str(error)
    tell(f"the pinned certificate of {name_of(path)} cannot be read ({why}): this peer is not believed")
    return None


WAIT = 10.0
"""Seconds that another may take to change the pins: it needs milliseconds, unless it was stopped in the midst of it."""

LOOK = 0.02
"""Seconds between two looks at whether it is done."""


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """While nobody else pins or removes a pin in the folder, where its file system has locks. Raises StatepipeError.

    The wait has an end, as signals may be held meanwhile.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(f"open {folder}", error) from error
    try:
        deadline = time.monotonic() + WAIT
        while not _is_locked(fd):
            if time.monotonic() > deadline:
                hint = f"one that was stopped, perhaps: fuser -v {folder}"
                raise StatepipeError(f"another statepipe has been changing the pins for {WAIT:g} s", hint=hint)
            time.sleep(LOOK)
        yield
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether the lock is ours now, or there are none here: it is a help."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def pinning(name: str, certificate: str) -> Iterator[Callable[[], Callable[[], None]]]:
    """Make ready to pin a peer's certificate under a name; what is given pins it, and gives what takes that back.

    Both look anew what is pinned so: others may have paired, or removed a pin, while the two hosts talked. Raises
    UsageError, and StatepipeError where another's key is pinned so, or it could not be kept.
    """
    path = pin_of(name)
    folder = os.path.dirname(path)
    with ExitStack() as opened:
        is_there = _is_pinned(path, certificate)
        make_folder(folder)
        ready = None if is_there else opened.enter_context(_written(path, certificate))

        def keep() -> Callable[[], None]:
            with _alone(folder):
                if _is_pinned(path, certificate):
                    return lambda: None
                sink = ready or opened.enter_context(_written(path, certificate))
                sink.commit()
            return lambda: _take_back(sink, path, certificate)

        yield keep


@contextmanager
def _written(path: str, certificate: str) -> Iterator[FileSink]:
    """The file, on the disk and without its name. Raises StatepipeError."""
    with FileSink(path) as sink:
        sink.write(certificate.encode())
        sink.sync()
        yield sink


def _take_back(sink: FileSink, path: str, certificate: str) -> None:
    """Undo what was pinned, unless it was removed, or another was pinned so, meanwhile. Raises StatepipeError."""
    with _alone(os.path.dirname(path)):
        if os.path.exists(path) and read(path) == certificate:
            sink.withdraw()


def _is_pinned(path: str, certificate: str) -> bool:
    """Whether it is the peer's already. Raises StatepipeError where another's is."""
    if not os.path.exists(path):
        return False
    if read(path) != certificate:
        name = name_of(path)
        hint = f"if its key has changed indeed, statepipe pair --remove {name} and pair again"
        raise StatepipeError(f"another key is pinned here as '{name}'", hint=f"{hint}; else give another --name")
    return True


def check_name(name: str) -> str:
    """The name, if it can be a peer's (it names a file). Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a peer's name", hint="letters, digits, '.', ':', '_' and '-'")
    return name.lower()


def read(path: str) -> str:
    """A certificate's file. Raises StatepipeError."""
    try:
        return read_pem(path)
    except OSError as error:
        raise failure(f"read {path}", error) from error


def read_pem(path: str) -> str:
    """The same. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(PEM_LIMIT).decode("ascii", "replace")


def make_folder(folder: str) -> None:
    """Raises StatepipeError."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise failure(f"make {folder}", error) from error
