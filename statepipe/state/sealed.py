"""Read an encrypted state as if it were not encrypted: at any offset, and from its beginning to its end.

An age file can be decrypted at any offset (agefile.py), so its trailer is read before any byte leaves. Armor and
OpenPGP cannot: such a file is decrypted twice, first to see both ends and that all of it decrypts, then for its bytes.
No plaintext is ever kept on a disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from statepipe.errors import StatepipeError
from statepipe.formats.age.envelope import Identity
from statepipe.formats.metadata import META_LIMIT
from statepipe.formats.seektable import SEEK_TABLE_LIMIT
from statepipe.stage import Buffer, Over, Stage, cancel, chain, close
from statepipe.state.agefile import AgeReaderAt
from statepipe.state.source import Openable
from statepipe.typed import Protocol, Self

HEAD_LIMIT, TAIL_LIMIT = 2 * (META_LIMIT + 8), META_LIMIT + SEEK_TABLE_LIMIT
"""What is kept of both ends of a file that is decrypted twice: a header and a domain, and a trailer with its seek
table."""

SPARE = 4 << 20
"""Bytes above that limit after which the oldest are dropped."""


def sealed_by_age(file: Openable, sealed: str, identities: Sequence[Identity]) -> SealedFile:
    """Return the plaintext of an open age file; `sealed` says if it is armored. Raises NoKeyError, IntegrityError."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        from statepipe.stages.encrypt import decrypt  # it takes 6 ms, which a lazy load need not pay

        yield from decrypt(identities)(upstream)

    reader = AgeReaderAt(file, identities) if sealed == "age" else ReadThrough(file, stage)
    return SealedFile(file, sealed, stage, reader)


def sealed_by_openpgp(file: Openable, sealed: str, stage: Stage) -> SealedFile:
    """Return the plaintext of an open OpenPGP file. Its proof is at its end, so all of it is decrypted first."""
    return SealedFile(file, sealed, stage, ReadThrough(file, stage))


class SealedFile:
    """The plaintext of an encrypted file; `bytes` counts what was read. Raises what decrypt raises."""

    def __init__(self, file: Openable, sealed: str, stage: Stage, reader: Reader) -> None:
        self.name = file.name
        self.bytes = 0
        self.sealed: str | None = sealed
        self._file = file
        self._reader = reader
        self._flow = chain(file, [("decrypt", stage)])

    def __iter__(self) -> SealedFile:
        return self

    def __next__(self) -> Buffer:
        buffer = next(self._flow)
        self.bytes += len(buffer)
        return buffer

    def cancel(self) -> None:
        cancel(self._flow)

    def tail(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of plaintext at `offset`, without moving the reading position."""
        return self._reader.read(offset, size)

    def size(self) -> int:
        """Bytes of plaintext."""
        return self._reader.size()

    def stored(self) -> int:
        """Bytes on the disk."""
        return self._file.stored()

    def has_name(self) -> bool:
        """Return False once the file was removed."""
        return self._file.has_name()

    @property
    def beside(self) -> str | None:
        """The path to which the names of files that belong to it are added."""
        return self._file.beside

    def doubt(self, offset: int, size: int) -> bool:
        """Note that these bytes are not what was written; return whether to read them again may help."""
        return self._reader.doubt(offset, size)

    def give_up(self) -> None:
        """Have threads that wait for bytes raise Cancelled."""
        self._file.give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            cancel(self._flow)
            close(self._flow)
        finally:
            self._file.__exit__(*error)


class Reader(Protocol):
    """Reads plaintext at any offset."""

    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes: ...

    def doubt(self, offset: int, size: int) -> bool: ...


class ReadThrough:
    """Both ends of a plaintext that cannot be read at an offset, found by decrypting all of it once."""

    def __init__(self, sealed: Openable, stage: Stage) -> None:
        self._name = sealed.name
        self._head, self._tail = bytearray(), bytearray()
        self._size = 0
        with sealed.again() as file, closing(Over(file, chain(file, [("decrypt", stage)]))) as flow:
            for buffer in flow:
                self._size += len(buffer)
                self._head += buffer[: HEAD_LIMIT - len(self._head)]
                self._tail += buffer
                if len(self._tail) > TAIL_LIMIT + SPARE:
                    del self._tail[:-TAIL_LIMIT]

    def size(self) -> int:
        """Bytes of plaintext."""
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there. Raises StatepipeError for a place that is at neither end."""
        end = min(offset + size, self._size)
        if end <= len(self._head):
            return bytes(self._head[offset:end])
        start = offset - (self._size - len(self._tail))
        if start < 0:
            raise StatepipeError(f"{self._name} can only be read from its beginning", offset=offset)
        return bytes(self._tail[start : start + max(end - offset, 0)])

    def doubt(self, offset: int, size: int) -> bool:
        """Return False: what was read is kept."""
        return False
