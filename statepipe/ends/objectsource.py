"""An object as the source of a pipeline, and read at any offset, as ends.file.FileSource is of a file."""

from __future__ import annotations

from collections.abc import Iterator

from statepipe.ends.configfile import load_endpoint
from statepipe.errors import IntegrityError
from statepipe.objectstore.address import parse_object
from statepipe.objectstore.open import open_store
from statepipe.objectstore.reader import ObjectReader
from statepipe.objectstore.settings import Reading, Settings
from statepipe.objectstore.workers import aside
from statepipe.stage import Cancelled
from statepipe.typed import Self


def open_object(text: str, how: Reading) -> ObjectSource:
    """Return the object at an address. Raises UsageError; StatepipeError if it is not there, or cannot be read."""
    address = parse_object(text)
    settings = Settings(load_endpoint(), how.retry)
    store = aside(lambda: open_store(address, settings))
    return ObjectSource(str(address), ObjectReader(store, address, how))


class ObjectSource:
    """Buffers from an object, from its beginning. Raises StatepipeError, Cancelled after `cancel`.

    `is_ours`: the reader is closed with it.
    """

    sealed: str | None = None

    def __init__(self, name: str, reader: ObjectReader, *, is_ours: bool = True) -> None:
        self.name, self._reader, self._is_ours = name, reader, is_ours
        self.bytes = 0
        self._is_cancelled = False
        self._flow: Iterator[bytes] | None = None

    def again(self) -> ObjectSource:
        """Return the same object from its beginning."""
        return ObjectSource(self.name, self._reader, is_ours=False)

    def __iter__(self) -> ObjectSource:
        return self

    def __next__(self) -> bytes:
        if self._is_cancelled:
            raise Cancelled
        if self._flow is None:
            self._flow = self._reader.in_order(lambda: self._is_cancelled)
        buffer = next(self._flow)
        self.bytes += len(buffer)
        return buffer

    @property
    def expected(self) -> int:
        """Bytes from here to the end, for whoever shows the progress."""
        return self.size() - self.bytes

    def cancel(self) -> None:
        """Wake a thread that waits for the next buffer."""
        self._is_cancelled = True
        self._reader.ring()

    def tail(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`, or fewer at the end, without moving the reading position."""
        return self._reader.read(offset, size)

    def size(self) -> int:
        """Return the object's size in bytes."""
        return self._reader.size

    def stored(self) -> int:
        """Return `size`: the bytes that are read are those in the store."""
        return self.size()

    def has_name(self) -> bool:
        """Return True: an object that was removed is an error of the next read, here and in another process."""
        return True

    @property
    def beside(self) -> str | None:
        """The path in the cache to which the names of files that belong to it are added; None without a cache."""
        return self._reader.beside

    def doubt(self, offset: int, size: int) -> bool:
        """Note that these bytes are not what was written; return whether to read them again may help."""
        return self._reader.doubt(offset, size)

    def give_up(self) -> None:
        """Have every thread that reads, now or later, raise Cancelled."""
        self._reader.give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close it. If it is not what was written, nothing of it stays in the cache: it may be right in the store."""
        if not self._is_ours:
            return
        for each in error:
            if isinstance(each, IntegrityError):
                self.doubt(0, self.size())
                each.advise(f"it was read from {self.name}, and may have changed on its way: read it once more")
        self._reader.close()
