"""The pinned peers as files: add, list and remove certificates in `peers/NAME.pem`.

A lock on the folder makes changes exclusive, so that what is reported about a new or removed pin is true.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from statepipe.ends.config import config_folder
from statepipe.ends.fd import failure
from statepipe.ends.file import FileSink, sync_folder
from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.telling import Tell

PEM_LIMIT = 64 << 10
"""Bytes of a pinned certificate's file at most."""

_NAME = re.compile(r"[A-Za-z0-9_:](?:[A-Za-z0-9_.:-]{0,126}[A-Za-z0-9_:])?")
"""A peer's name is also a file name. It is a name or an address (IPv6 may begin or end with colons), and can neither
hide the file nor lead to another folder."""

SHOWN = 5
"""Names of pinned peers in a hint at most."""


def shown(names: list[str]) -> str:
    """Return the first few names, for a hint."""
    return ", ".join(names[:SHOWN]) + (", ..." if names[SHOWN:] else "")


def name_of(path: str) -> str:
    """Return the name of the peer that a file belongs to."""
    return os.path.basename(path).removesuffix(".pem")


def pin_files() -> list[str]:
    """Return the files of the pinned peers, sorted by name. Raises StatepipeError."""
    folder = os.path.join(config_folder(), "peers")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise failure(f"read {folder}", error) from error
    return [os.path.join(folder, name) for name in names if name.endswith(".pem") and name[0] != "."]


def pin_of(name: str) -> str:
    """Return the path of a peer's certificate. Raises UsageError for an invalid name."""
    return os.path.join(config_folder(), "peers", f"{check_name(name)}.pem")


def pins(tell: Tell) -> dict[str, str]:
    """Return the fingerprint of each pinned peer's key, by name. Raises StatepipeError.

    A peer whose file cannot be read is left out, because no handshake trusts it; `tell` receives the reason.
    """
    keys = {name_of(path): _key_in(path, tell) for path in pin_files()}
    return {name: key for name, key in keys.items() if key is not None}


def unpin(name: str, tell: Tell) -> str | None:
    """Remove a peer's pin; return its key's fingerprint, or None if the pin could not be read, which `tell` receives.

    This also removes a file that a person put there under a name that pairing would refuse. Raises StatepipeError if
    no such peer is pinned, or if the file cannot be removed.
    """
    folder = os.path.join(config_folder(), "peers")
    if not os.path.isdir(folder):
        raise _unknown(name, [])
    with alone(folder):
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
    hint = f"pinned here: {shown(known)}" if known else "no peer is pinned here"
    return StatepipeError(f"no peer is pinned here as '{name}'", hint=hint)


def _key_in(path: str, tell: Tell) -> str | None:
    """Return the fingerprint of the key in a pin; None if it cannot be read, which `tell` receives."""
    from statepipe.trust.certificates import fingerprint

    text = ""
    try:
        text = read_pem(path)
        return fingerprint(text.encode())
    except OSError as error:
        why = os.strerror(error.errno or 0)
    except IntegrityError:
        why = _bad_line(text)
    tell(f"the pinned certificate of {name_of(path)} cannot be read ({path}: {why}): this peer is not trusted")
    return None


_PEM_LINE = re.compile(r"-----(BEGIN|END) CERTIFICATE-----|[A-Za-z0-9+/]{1,76}={0,2}")


def _bad_line(text: str) -> str:
    """Return why a text is not a certificate in PEM, with the line if that can be found."""
    lines = text.strip().splitlines()
    bad = (number for number, line in enumerate(lines, 1) if not _PEM_LINE.fullmatch(line.strip()))
    if (number := next(bad, None)) is not None:
        return f"line {number} is not a certificate's"
    if not lines:
        return "it is empty"
    return "it is not a certificate in PEM" if lines[-1].startswith("-----END") else f"it ends after line {len(lines)}"


LOCK_WAIT = 10.0
"""Seconds to wait while another process changes a pin or its own key. That takes milliseconds, unless the process was
stopped."""

LOCK_PAUSE = 0.02
"""Seconds between two checks whether it has finished."""


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Hold the lock on the folder, if its file system has locks, so that no other process changes what is in it.

    Raises StatepipeError. The wait is limited, because signals may be held meanwhile.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(f"open {folder}", error) from error
    try:
        deadline = time.monotonic() + LOCK_WAIT
        while not _is_locked(fd):
            if time.monotonic() > deadline:
                hint = f"that process may be stopped; find it with: fuser -v {shlex.quote(folder)}"
                raise StatepipeError(f"another statepipe has held the lock on {folder} for {LOCK_WAIT:g} s", hint=hint)
            time.sleep(LOCK_PAUSE)
        yield
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Return whether we have the lock, or the file system has none: then we work without it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def pinning(name: str, certificate: str) -> Iterator[Callable[[], Callable[[], None]]]:
    """Prepare to pin a peer's certificate under a name. Yield a function that pins it and returns one that undoes that.

    Both check again what is pinned under the name, because another process may have changed it meanwhile. Raises
    UsageError, and StatepipeError if another key is pinned under the name or the file cannot be written.
    """
    path = pin_of(name)
    folder = os.path.dirname(path)
    with ExitStack() as opened:
        is_there = _is_pinned(path, certificate)
        make_folder(folder)
        ready = None if is_there else opened.enter_context(_written(path, certificate))

        def keep() -> Callable[[], None]:
            with alone(folder):
                if _is_pinned(path, certificate):
                    return lambda: None
                sink = ready or opened.enter_context(_written(path, certificate))
                sink.commit()

            def take_back() -> None:
                with alone(folder):
                    if os.path.exists(path) and read(path) == certificate:  # else it was removed or replaced meanwhile
                        sink.withdraw()

            return take_back

        yield keep


@contextmanager
def _written(path: str, certificate: str) -> Iterator[FileSink]:
    """Yield the file, written to the disk but not yet named. Raises StatepipeError."""
    with FileSink(path) as sink:
        sink.write(certificate.encode())
        sink.sync()
        yield sink


def _is_pinned(path: str, certificate: str) -> bool:
    """Return whether this certificate is already pinned. Raises StatepipeError if the name has another one."""
    if not os.path.exists(path):
        return False
    if read(path) != certificate:
        name = name_of(path)
        hint = f"if the peer really has a new key, run statepipe pair --remove {name} and pair again"
        raise StatepipeError(
            f"another key is pinned here as '{name}'", hint=f"{hint}; else choose another name with --name"
        )
    return True


def check_name(name: str) -> str:
    """Return the name if it is valid for a peer and its file. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a peer's name", hint="use letters, digits, '.', ':', '_' and '-'")
    return name.lower()


def read(path: str) -> str:
    """Read a certificate's file. Raises StatepipeError."""
    try:
        return read_pem(path)
    except OSError as error:
        raise failure(f"read {path}", error) from error


def read_pem(path: str) -> str:
    """Read a certificate's file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    with open(fd, "rb") as file:
        return (file.read(PEM_LIMIT) or b"").decode("ascii", "replace")


def make_folder(folder: str) -> None:
    """Create the folder unless it exists. Raises StatepipeError."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise failure(f"make {folder}", error) from error
