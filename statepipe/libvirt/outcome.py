"""What a save of a domain makes, a file or an object, as another process than the one that makes it knows it.

The guardian is told by `naming` of the sink what to look for. It asks whether the save has made it, and then keeps it
or takes it back.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from statepipe.ends.naming import is_named, keep, take_back
from statepipe.errors import StatepipeError
from statepipe.objectstore.address import ObjectAddress
from statepipe.recovery.guardian import Notes
from statepipe.typed import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from statepipe.objectstore.claim import Claim


T = TypeVar("T")


class Lost(StatepipeError):
    """It is not known whether it is there, or it could not be taken back."""


class Outcome(Protocol):
    """A file or an object. Each may take as long as a disk or a store does."""

    def is_there(self) -> bool:
        """Return whether the save has made it. If not, nothing makes it any more. Raises Lost."""

    def keep(self) -> None:
        """Do what is left to do."""

    def take_back(self) -> None:
        """Remove it, if it is there and ours; an older file gets its name back. Raises Lost."""


def outcome_in(known: Notes) -> Outcome:
    """Return what the notes of a guardian name."""
    names = known["names"]
    if "claim" not in names:
        return FileOutcome(known["file"], known["place"], names)
    from statepipe.objectstore.claim import Claim

    address, *rest = names["claim"]
    return ObjectOutcome(Claim(ObjectAddress(*address), *rest))


class FileOutcome(NamedTuple):
    """A file: its descriptor and its folder's, and its names (`FileSink.naming`)."""

    file: int
    place: int
    names: dict[str, str]

    def is_there(self) -> bool:
        """Return whether the file has its name."""
        return is_named(self.file, self.place, self.names["base"])

    def keep(self) -> None:
        """Make the name durable, and let the older file go."""
        keep(self.file, self.place, self.names)

    def take_back(self) -> None:
        """Remove the names that the file has. Raises Lost."""
        try:
            take_back(self.file, self.place, self.names)
        except OSError as error:
            raise Lost(os.strerror(error.errno or 0)) from error


LONGEST = 40.0
"""Seconds for all questions to a store, while a guest waits for their end: twice what they take if it answers late.
What finds the credentials, a program perhaps, has no limit of its own."""


class ObjectOutcome(NamedTuple):
    """An object, as `ObjectSink.naming` tells of it."""

    claim: Claim

    def is_there(self) -> bool:
        """Return whether the upload has made the object; if not, it is ended. Raises Lost if nobody knows."""
        return _asked(self.claim.has_made)

    def keep(self) -> None:
        """Does nothing: the store did it all."""

    def take_back(self) -> None:
        """Remove the object that the upload has made. Raises Lost."""
        _asked(self.claim.take_back)


def _asked(question: Callable[[], T]) -> T:
    """Return what the store answers. Raises Lost, whatever fails: the guest waits for what is done then."""
    from statepipe.objectstore.workers import Aside

    try:
        asked = Aside(question)
        if not asked.wait(LONGEST):
            raise Lost(f"the store has not answered for {LONGEST:g} s")
        return asked.result()
    except Lost:
        raise
    except StatepipeError as error:
        raise Lost(str(error)) from error
    except Exception as error:
        raise Lost(f"{type(error).__name__}: {error}") from error
