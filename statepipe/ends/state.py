"""A saved state as a file that may be encrypted: told by its first bytes, opened only if there is need."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self

from statepipe.ends.file import FileSource
from statepipe.stage import Buffer

if TYPE_CHECKING:
    from statepipe.formats.age.envelope import Identity

Identities = Callable[[], "Sequence[Identity]"]
"""Asked for only once the file turns out to be encrypted: keys are read, and passphrases typed, for nothing else."""

AGE, ARMORED = b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----"
"""How age's two kinds of file begin (age.md). Their readers are imported only for one of them: they cost 25 ms."""


class StateFile(Protocol):
    """A file that is read at both its ends and from its beginning; what it gives is plain.

    `sealed` says how it lies on the disk ("age", "age, armored"), if it is encrypted.
    """

    name: str
    bytes: int
    sealed: str | None

    def __iter__(self) -> Iterator[Buffer]: ...

    def __next__(self) -> Buffer: ...

    def cancel(self) -> None: ...

    def tail(self, offset: int, size: int) -> builtins.bytes: ...

    def size(self) -> int: ...

    def stored(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_state(path: str, identities: Identities) -> StateFile:
    """Open a file that may be encrypted. Raises StatepipeError, NoKeyError, IntegrityError."""
    file = FileSource(path)
    try:
        sealed = _how_sealed(file.tail(0, max(len(AGE), len(ARMORED))))
        if sealed is None:
            return file
        from statepipe.ends.sealed import SealedFile

        return SealedFile(file, sealed, identities())
    except BaseException:
        file.__exit__()
        raise


def _how_sealed(head: bytes) -> str | None:
    if head.startswith(AGE):
        return "age"
    return "age, armored" if head.startswith(ARMORED) else None
