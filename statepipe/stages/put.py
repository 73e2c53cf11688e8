"""put: the end of a pipe, which becomes an object that is there only if all of the stream has come and proved itself.

No bytes come out, but a flush mark for each buffer, so that who pulls keeps control. The object is completed after a
clean end of the stream: of a migration's stream at its own end mark, of a statepipe stream with its trailer's digest.
Any other stream proves nothing, as its producer may have been killed; a file that is read tells its size, which is
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from statepipe.errors import StatepipeError, TruncatedError
from statepipe.stage import FLUSH, Buffer
from statepipe.stages.prove import Proof
from statepipe.telling import Tell
from statepipe.typed import Any, Protocol

UNPROVED = (
    "this stream does not prove that it is whole: if its producer was killed, the object is as short as what came "
    "(a stream of save or compress proves itself)"
)


class Object(Protocol):
    """An object that is being written (objectstore/upload.py), or a file in its place."""

    bytes: int

    def write(self, buffer: Buffer) -> None: ...

    def commit(self) -> None: ...


class Put:
    """The stage. `begin` begins the object, and is given what tells how much will come; `warn` takes a line."""

    def __init__(self, begin: Callable[[Callable[[], int | None]], AbstractContextManager[Object]], warn: Tell) -> None:
        self._begin, self._warn = begin, warn
        self._proof = Proof()
        self._coming: int | None = None
        self._object: Object | None = None

    def expect(self, size: int) -> None:
        """Take the number of bytes that will come, from a source that knows it."""
        self._coming = size

    def __call__(self, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        with self._begun() as made:
            self._object = made
            for buffer in self._proof(upstream):
                if len(buffer):
                    made.write(buffer)
                yield FLUSH
            if self._coming is not None and made.bytes != self._coming:
                what = f"{made.bytes} bytes came of a file that had {self._coming} at the beginning"
                raise TruncatedError(what, hint="something changes the file: wait for it, and start again")
            if not self._proof.holds and self._coming is None:
                self._warn(UNPROVED)
            made.commit()

    def _begun(self) -> AbstractContextManager[Object]:
        try:
            return self._begin(self._expected)
        except StatepipeError as error:
            error.stage = "put"  # no byte has come yet, so none is named
            raise

    def _expected(self) -> int | None:
        """Return about how many bytes will come: those of the file, or by the guest's memory, which the beginning of
        its stream tells; None if nothing does."""
        if self._coming is not None:
            return self._coming
        return self._proof.expected()

    def facts(self) -> dict[str, Any]:
        """Return the figures of the upload."""
        tells = getattr(self._object, "facts", None)
        told: dict[str, Any] = tells() if tells is not None else {}
        return told
