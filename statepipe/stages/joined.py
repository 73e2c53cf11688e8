"""Reading streams that were joined end to end: the members of gzip, the streams of bzip2 and of xz.

None of them says where it ends, but a beginning is easy to see. So the input is cut at what looks like one, and the
pieces are decoded on all cores. A piece that is not one whole stream (chance or malice wrote a beginning into the
data, a stream is too large to keep, the bytes are damaged) is decoded once more, in order and with what follows it.
So the cuts decide the speed alone, never what comes out.

A stream that decodes to little is held until its checksum has agreed. Of a larger one the last piece is held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import FLUSH, Buffer, Over, Stage
from statepipe.threads import ahead, parallel

WHOLE_LIMIT = 8 << 20
"""Plain bytes of a stream that is decoded whole and held until it is proved, as with zstd's frames."""

STEP = 64 << 10
"""Compressed bytes given to a decoder at a time: it copies what it leaves over, and a hostile file has a stream in
every 20 bytes."""

SLICE = 1 << 20
"""Plain bytes taken from a decoder at a time: three bytes of bzip2 may be megabytes."""


class Corrupt(Exception):
    """What a decoder of ours found wrong."""


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
    """What is to be known of a codec. `begin` makes a decoder, which raises one of `errors` on damage.

    `find` gives the first place, from an index on, that looks like the beginning of a stream, or -1. `magic` is what
    each begins with. `limit`: compressed bytes of a stream that is decoded whole. `padding`: zeros may follow a stream
    in multiples of so many bytes, or not at all (0), and `padded_last`: nothing follows them. `beyond` tells,
    by its name and the error, of a stream that is not damaged but needs more memory than is allowed.
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
    """A stage that decodes streams of `form`. Raises IntegrityError and TruncatedError with the compressed offset."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        tried = parallel(_Attempt(form), Over(upstream, _split(form, upstream)))
        yield from ahead(Over(upstream, _in_order(form, tried)), 2)

    return stage


_Piece = bytes | None
"""None stands for a flush mark."""


def _split(form: Format, upstream: Iterator[Buffer]) -> Iterator[_Piece]:
    """Cut at each beginning, at each flush mark, and where a stream grows too large to keep."""
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
"""Bytes kept back when a piece is cut where nothing begins: the next beginning may have begun in them."""


def _take(held: bytearray, count: int) -> bytes:
    taken = bytes(memoryview(held)[:count])
    del held[:count]
    return taken


class _Attempt:
    """On a worker: what a piece decodes to if it is one whole stream and nothing more, else None."""

    def __init__(self, form: Format) -> None:
        self._form = form

    def __call__(self, piece: _Piece) -> tuple[_Piece, bytes | None]:
        if piece is None or self._form.find(piece[:_OVERLAP], 0) != 0:
            return piece, None
        decoder = self._form.begin()
        try:
            plain = decoder.decompress(piece, WHOLE_LIMIT)
        except self._form.errors:
            return piece, None  # it is raised again when its turn comes, and says where
        return piece, plain if decoder.eof and not decoder.unused_data else None


def _in_order(form: Format, tried: Generator[tuple[_Piece, bytes | None], None, None]) -> Iterator[Buffer]:
    """What was decoded whole, where a stream may begin; the rest is decoded here."""
    streams = _Streams(form)
    with closing(tried):
        for piece, plain in tried:
            if piece is None:
                yield FLUSH
            elif plain is not None and streams.may_begin:
                streams.skip(piece)
                yield from (plain,) if plain else ()
            else:
                yield from streams.feed(piece)
    streams.close()


class _Streams:
    """The state between pieces: the stream being decoded, and the compressed offset."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._offset = self._begin = 0
        self._decoder: Decoder | None = None
        self._held = Held()
        self._padding = 0

    @property
    def may_begin(self) -> bool:
        """Whether a stream may begin here."""
        return self._decoder is None and not self._padding

    def skip(self, piece: bytes) -> None:
        """A whole stream was decoded elsewhere."""
        self._offset += len(piece)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Decode the next bytes; yield what may leave."""
        for at in range(0, len(piece), STEP):
            data = piece[at : at + STEP]
            while data:
                if self._decoder is None:
                    data = self._skip_padding(data)
                    self._enter(data)
                if data:
                    rest = yield from self._decode(data)
                    self._offset += len(data) - len(rest)
                    data = rest

    def _skip_padding(self, data: bytes) -> bytes:
        rest = data.lstrip(b"\0") if self._form.padding and self._offset else data
        self._offset += len(data) - len(rest)
        self._padding += len(data) - len(rest)
        return rest

    def _enter(self, data: bytes) -> None:
        """Begin a stream with `data`, unless they are none. Raises IntegrityError for what cannot be one."""
        if not data:
            return
        form = self._form
        misplaced = self._padding and (form.padded_last or self._padding % form.padding)
        if misplaced or not data.startswith(form.magic[: len(data)]):
            what = "trailing garbage after the" if self._offset else "this is no"
            raise IntegrityError(f"{what} {form.name} stream", offset=self._offset)
        self._begin, self._padding = self._offset, 0
        self._decoder = form.begin()

    def _decode(self, data: bytes) -> Generator[bytes, None, bytes]:
        """Give `data` to the decoder and yield what may leave; what follows the stream's end is given back."""
        decoder = self._decoder
        assert decoder is not None
        while True:
            yield from self._held.add(self._next(decoder, data))
            if decoder.eof:
                self._decoder = None
                yield from self._held.release()
                return decoder.unused_data
            if decoder.needs_input:
                return b""
            data = b""

    def _next(self, decoder: Decoder, data: bytes) -> bytes:
        try:
            return decoder.decompress(data, SLICE)
        except self._form.errors as error:
            what = f"the {self._form.name} stream that begins at byte {self._begin}"
            corrupt = IntegrityError(f"{what} is corrupt: {error}", offset=self._offset)
            raise self._form.beyond(what, error, self._offset) or corrupt from error

    def close(self) -> None:
        """The input has ended: raises TruncatedError inside a stream or before the first."""
        if not self._offset and self._decoder is None:
            raise TruncatedError("the input is empty", offset=0)
        if self._decoder is not None:
            what = f"the {self._form.name} stream that begins at byte {self._begin} stops before its end"
            raise TruncatedError(what, offset=self._offset)
        if self._padding and self._padding % self._form.padding:
            raise TruncatedError(f"the padding after the {self._form.name} stream is cut", offset=self._offset)


class Held:
    """What a stream has decoded to and is not yet proved: all of it up to WHOLE_LIMIT bytes, beyond that the last
    piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> list[bytes]:
        """Hold a piece; the pieces that may leave for it."""
        if not piece:
            return []
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size <= WHOLE_LIMIT:
            return []
        leaving, self._pieces = self._pieces[:-1], self._pieces[-1:]
        return leaving

    def release(self) -> list[bytes]:
        """The stream is proved: the rest may leave."""
        leaving, self._pieces, self._size = self._pieces, [], 0
        return leaving
