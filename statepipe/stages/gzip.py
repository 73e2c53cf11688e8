"""Reading gzip (RFC 1952): members one after another, each proved by its checksum, nothing after them but zeros."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.stage import FLUSH, Buffer, Stage

_GZIP = 16 + zlib.MAX_WBITS
_SLICE = 1 << 20


def gunzip() -> Stage:
    """A stage that decodes gzip. Raises IntegrityError and TruncatedError with the compressed offset."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        members = _Members()
        for buffer in upstream:
            yield from members.feed(buffer) if len(buffer) else (FLUSH,)
        members.close()

    return stage


class _Members:
    """The state between buffers: the member being decoded, and the compressed offset."""

    def __init__(self) -> None:
        self._offset = 0
        self._member: zlib._Decompress | None = None
        self._padding = False

    def feed(self, buffer: Buffer) -> Iterator[bytes]:
        data = bytes(buffer)
        while data:
            if self._between(data):
                return
            plain, rest = self._decode(data)
            self._offset += len(data) - len(rest)
            data = rest
            if plain:
                yield plain

    def _between(self, data: bytes) -> bool:
        """Between members: True if all of `data` is zero padding (some tapes and gzip -l know it)."""
        if self._member is not None:
            return False
        if self._offset and (self._padding or data[0] == 0):
            self._padding = True
            if data.strip(b"\0"):
                raise IntegrityError("trailing garbage after the gzip stream", offset=self._offset)
            self._offset += len(data)
            return True
        self._member = zlib.decompressobj(_GZIP)
        return False

    def _decode(self, data: bytes) -> tuple[bytes, bytes]:
        assert self._member is not None
        try:
            plain = self._member.decompress(data, _SLICE)
        except zlib.error as error:
            raise IntegrityError(f"corrupt gzip stream: {error}", offset=self._offset) from error
        if not self._member.eof:
            return plain, self._member.unconsumed_tail
        rest = self._member.unused_data
        self._member = None
        return plain, rest

    def close(self) -> None:
        """The input has ended: raises TruncatedError inside a member or before the first."""
        if self._member is not None or not self._offset:
            raise TruncatedError("the gzip stream stops before its end", offset=self._offset)
