"""What every reader of a state reads from, whether the state is plain, encrypted, or in a save image of libvirt's, in a
file or in an object of a store."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager

from statepipe.errors import ANOTHER_COPY, IntegrityError
from statepipe.stage import Buffer
from statepipe.typed import Protocol, Self


class StateFile(Protocol):
    """A file that can be read at both ends and from its beginning, as plaintext.

    `sealed` says how it is encrypted on the disk ("age", "age, armored"), None if it is not. `beside` is the path to
    which the names of files that belong to it are added; None if there is no place for them.
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

    def has_name(self) -> bool: ...

    @property
    def beside(self) -> str | None: ...

    def doubt(self, offset: int, size: int) -> bool:
        """Note that these bytes are not what was written. Return whether to read them again may help."""

    def give_up(self) -> None:
        """Have threads that wait for bytes from elsewhere raise Cancelled, now and later."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Openable(StateFile, Protocol):
    """A file as it is stored, which can be read again from its beginning."""

    def again(self) -> Openable: ...


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """During the context, the file `name` is read: an IntegrityError names it, and what to do if it has no hint. The
    stage that found the damage knows neither."""
    try:
        yield
    except IntegrityError as error:
        if not str(error).startswith((f"{name}: ", f"{name} ")):
            error.args = (f"{name}: {error}",)
        error.hint = error.hint or ANOTHER_COPY
        raise
