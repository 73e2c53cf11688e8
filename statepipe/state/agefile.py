"""Read an age file at any offset of its plaintext, without what is before it.

The last chunk is opened first: only that proves that the file was not cut short. Each chunk that is read later proves
itself and its place.
"""

from __future__ import annotations

from collections.abc import Iterable

from statepipe.errors import StatepipeError
from statepipe.formats.age.armor import looks_armored
from statepipe.formats.age.envelope import Identity, open_header
from statepipe.formats.age.header import Header, HeaderReader
from statepipe.formats.age.payload import (
    CHUNK,
    NONCE_SIZE,
    SEALED,
    TAG_SIZE,
    Layout,
    PayloadError,
    open_chunk,
    payload_key,
)
from statepipe.typed import Protocol

HEADER_READ = 4 << 10
"""Bytes to read at a time to find the header: one read is enough for two post-quantum recipients."""

READ_CHUNKS = 16
"""Encrypted chunks that are in memory at once: 1 MiB."""


class ReadableAt(Protocol):
    """A file that can be read at any offset, as ends.file.FileSource."""

    def size(self) -> int: ...

    def tail(self, offset: int, size: int) -> bytes: ...

    def doubt(self, offset: int, size: int) -> bool: ...


class AgeReaderAt:
    """The plaintext of an age file, opened by the first identity that fits.

    Raises NoKeyError, IntegrityError with the offset in the file, and StatepipeError for armor, which cannot be read at
    an offset. Keeps the last chunk, so that consecutive small reads open it once. Several threads may read.
    """

    def __init__(self, file: ReadableAt, identities: Iterable[Identity]) -> None:
        self._file = file
        header, nonce = self._read_header()
        self._key = payload_key(open_header(header, identities), nonce)
        self._layout = Layout(header.size + NONCE_SIZE, file.size())
        last = self._layout.chunks - 1
        self._kept = last, self._open(last, memoryview(file.tail(*self._layout.sealed(last))))

    def _read_header(self) -> tuple[Header, bytes]:
        reader = HeaderReader(NONCE_SIZE)
        offset, header = 0, None
        while header is None:
            data = self._file.tail(offset, HEADER_READ)
            if not offset and looks_armored(data):
                raise StatepipeError(
                    "an armored age file can only be read from its beginning",
                    hint="remove the armor: decrypt it with age -d, and encrypt it again without --armor",
                )
            if not data:
                reader.close()
            header = reader.feed(data)
            offset += len(data)
        return header, reader.rest[:NONCE_SIZE]

    def size(self) -> int:
        """Return the bytes of plaintext."""
        return self._layout.size

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of plaintext from `offset` on, fewer at its end. Raises IntegrityError."""
        end = min(offset + size, self.size())
        numbers = self._layout.covering(offset, size)
        out = []
        for first in range(numbers.start, numbers.stop, READ_CHUNKS):
            for number, plain in self._chunks(range(first, min(first + READ_CHUNKS, numbers.stop))):
                start = number * CHUNK
                out.append(plain[max(offset - start, 0) : end - start])
        return b"".join(out)

    def doubt(self, offset: int, size: int) -> bool:
        """Note that these bytes are not what was written; return whether to read them again may help."""
        numbers = self._layout.covering(offset, size)
        if not numbers:
            return False
        start, _ = self._layout.sealed(numbers[0])
        last, length = self._layout.sealed(numbers[-1])
        return self._file.doubt(start, last + length - start)

    def _chunks(self, numbers: range) -> Iterable[tuple[int, memoryview]]:
        """Yield consecutive chunks after one read; or the one that is kept."""
        kept = self._kept  # another thread may replace it
        if numbers == range(kept[0], kept[0] + 1):
            yield kept
            return
        start, _ = self._layout.sealed(numbers.start)
        last, size = self._layout.sealed(numbers.stop - 1)
        sealed = memoryview(self._file.tail(start, last + size - start))
        for number in numbers:
            at = (number - numbers.start) * SEALED
            self._kept = kept = number, self._open(number, sealed[at : at + SEALED])
            yield kept

    def _open(self, number: int, sealed: memoryview) -> memoryview:
        is_last = int(number == self._layout.chunks - 1)
        plain = memoryview(bytearray(max(len(sealed) - TAG_SIZE, 0)))
        if len(sealed) < TAG_SIZE or open_chunk(self._key, number, sealed, plain) != is_last:
            offset = self._layout.sealed(number)[0]
            what = "the file is cut short or damaged: its last chunk" if is_last else f"chunk {number} of the payload"
            raise PayloadError(f"{what} cannot be decrypted", offset=offset)
        return plain
