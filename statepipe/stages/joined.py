"""Read streams that were joined end to end: the members of gzip, the streams of bzip2 and xz.

They do not say where they end, but their beginnings are easy to recognize. So the input is cut at everything that looks
like a beginning, and the pieces are decoded on all cores. A piece that is not exactly one stream (the data contain a
beginning by chance or malice, a stream is too large to keep, or bytes are damaged) is decoded again, in order, together
with what follows it. So the cuts affect only the speed, never the output.

The plaintext of a small stream is held until its checksum matches; of a larger stream, the last piece is held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.zstdframe import WHOLE_LIMIT
from statepipe.stage import FLUSH, Buffer, Over, Stage
from statepipe.threads import ahead, parallel
from statepipe.typed import Protocol

STEP = 64 << 10
"""Compressed bytes given to a decoder at a time: it copies its unused bytes, and a malicious file can have a stream in
every 20 bytes."""

SLICE = 1 << 20
"""Plain bytes taken from a decoder at a time: three bytes of bzip2 can decode to megabytes."""


class Corrupt(Exception):
    """Raised by our own decoders for damaged data."""


class Decoder(Protocol):
    """Decodes one stream: the interface of bz2.BZ2Decompressor and lzma.LZMADecompressor."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Format:
    """A codec's properties. `begin` makes a decoder, which raises one of `errors` for damaged data.

    `find` returns the first index, from a given one on, that looks like the beginning of a stream, or -1; each stream
    begins with `magic`. `limit`: compressed bytes of a stream that is decoded whole. `padding`: zeros may follow a
    stream in multiples of so many bytes, 0 for none; `padded_last`: only after the last stream. `beyond` returns an
    error if the decoder's error means that the stream needs more memory than allowed.
    """

    name: str
    begin: Callable[[], Decoder]
    errors: tuple[type[Exception], ...]
    find: Callable[[bytes | bytearray, int], int]
    magic: bytes
    limit: int
    padding: int = 0
    padded_last: bool = False
    beyond: Callable[[str, Exception, int], IntegrityError | None] = lambda what, error, offset: None


def reader(form: Format) -> Stage:
    """Return a stage that decodes streams of `form`.

    It raises IntegrityError and TruncatedError with the compressed offset.
    """

    def attempt(piece: _Piece) -> tuple[_Piece, bytes | None]:
        """On a worker: decode a piece if it is exactly one stream, else return None for its plaintext."""
        if piece is None or form.find(piece[:_OVERLAP], 0) != 0:
            return piece, None
        decoder = form.begin()
        try:
            plain = decoder.decompress(piece, WHOLE_LIMIT)
        except form.errors:
            return piece, None  # raised again, with the offset, when its turn comes
        return piece, plain if decoder.eof and not decoder.unused_data else None

    def in_order(tried: Generator[tuple[_Piece, bytes | None], None, None]) -> Iterator[Buffer]:
        streams = _Streams(form)
        with closing(tried):
            for piece, plain in tried:
                if piece is None:
                    yield FLUSH
                elif plain is not None and streams.may_begin:
                    streams.skip(piece)
                    if plain:
                        yield plain
                else:
                    yield from streams.feed(piece)
        streams.close()

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        tried = parallel(attempt, Over(upstream, _split(form, upstream)))
        yield from ahead(Over(upstream, in_order(tried)), 2)

    return stage


_Piece = bytes | None
"""Compressed bytes, or None for a flush mark."""


def _split(form: Format, upstream: Iterator[Buffer]) -> Iterator[_Piece]:
    """Cut at each beginning, at each flush mark, and if a stream becomes too large to keep."""
    held = bytearray()
    for buffer in upstream:
        if not len(buffer):
            yield from ([_take(held, len(held)), None] if held else [None])
            continue
        start = max(len(held) - _OVERLAP, 1)
        held += buffer
        while (at := form.find(held, start)) > 0:
            yield _take(held, at)
            start = 1
        if len(held) > form.limit or (len(held) > _OVERLAP and form.find(held[:_OVERLAP], 0) != 0):
            yield _take(held, len(held) - _OVERLAP)
    if held:
        yield bytes(held)


_OVERLAP = 16
"""Bytes held back if a piece is cut without a beginning: the next stream may begin within them."""


def _take(held: bytearray, count: int) -> bytes:
    taken = bytes(memoryview(held)[:count])
    del held[:count]
    return taken


class _Streams:
    """Decodes pieces in order; keeps the decoder and the compressed offset between them."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._offset = self._begin = 0
        self._decoder: Decoder | None = None
        self._held = Held()
        self._padding = 0

    @property
    def may_begin(self) -> bool:
        """Return whether a stream may begin here."""
        return self._decoder is None and not self._padding

    def skip(self, piece: bytes) -> None:
        """Pass over a stream that a worker has decoded."""
        self._offset += len(piece)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Decode the next bytes; yield plaintext that may leave."""
        for at in range(0, len(piece), STEP):
            data = piece[at : at + STEP]
            while data:
                decoder = self._decoder
                if decoder is None:
                    data = self._skip_padding(data)
                    if not data:
                        break
                    decoder = self._decoder = self._enter(data)
                rest = yield from self._decode(decoder, data)
                self._offset += len(data) - len(rest)
                data = rest

    def _skip_padding(self, data: bytes) -> bytes:
        rest = data.lstrip(b"\0") if self._form.padding and self._offset else data
        self._offset += len(data) - len(rest)
        self._padding += len(data) - len(rest)
        return rest

    def _enter(self, data: bytes) -> Decoder:
        """Begin a stream with `data`. Raises IntegrityError if none can begin with these bytes or here."""
        form = self._form
        misplaced = self._padding and (form.padded_last or self._padding % form.padding)
        if misplaced or not data.startswith(form.magic[: len(data)]):
            what = "trailing garbage after the" if self._offset else "the input is not a"
            raise IntegrityError(f"{what} {form.name} stream", offset=self._offset)
        self._begin, self._padding = self._offset, 0
        return form.begin()

    def _decode(self, decoder: Decoder, data: bytes) -> Generator[bytes, None, bytes]:
        """Decode `data`; yield plaintext that may leave; return the bytes after the end of the stream."""
        while True:
            try:
                plain = decoder.decompress(data, SLICE)
            except self._form.errors as error:
                what = f"the {self._form.name} stream that begins at byte {self._begin}"
                corrupt = IntegrityError(f"{what} is corrupt: {error}", offset=self._offset)
                raise self._form.beyond(what, error, self._offset) or corrupt from error
            yield from self._held.add(plain)
            if decoder.eof:
                self._decoder = None
                yield from self._held.release()
                return decoder.unused_data
            if decoder.needs_input:
                return b""
            data = b""

    def close(self) -> None:
        """Report the end of the input. Raises TruncatedError inside a stream, and before the first."""
        if not self._offset and self._decoder is None:
            raise TruncatedError("the input is empty", offset=0)
        if self._decoder is not None:
            what = f"the {self._form.name} stream that begins at byte {self._begin} stops before its end"
            raise TruncatedError(what, offset=self._offset)
        if self._padding and self._padding % self._form.padding:
            what = f"the padding after the {self._form.name} stream is cut short"
            raise TruncatedError(what, offset=self._offset)


class Held:
    """Holds a stream's plaintext until it is proved: all of it up to WHOLE_LIMIT bytes, beyond that the last piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> list[bytes]:
        """Hold a piece; return the pieces that may leave now."""
        if not piece:
            return []
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size <= WHOLE_LIMIT:
            return []
        leaving, self._pieces = self._pieces[:-1], self._pieces[-1:]
        return leaving

    def release(self) -> list[bytes]:
        """Return everything that is held, because the stream is proved."""
        leaving, self._pieces, self._size = self._pieces, [], 0
        return leaving
