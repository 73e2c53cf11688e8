"""Which codec a stream is in, by its first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain as concatenate

from statepipe.errors import IntegrityError, TruncatedError
from statepipe.formats.statefile import Checker
from statepipe.stage import Buffer, Over, Stage
from statepipe.stages.compress import unpack
from statepipe.stages.gzip import gunzip

RAW, ZSTD, GZIP = "raw", "zstd", "gzip"

_MAGICS = ((b"\x28\xb5\x2f\xfd", ZSTD), (b"\x1f\x8b", GZIP), (b"QEVM", RAW))


def identify(head: bytes) -> str | None:
    """The codec a stream that begins with `head` (4 bytes or more) is in; RAW is a bare migration stream."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:  # any skippable frame
        return ZSTD
    return next((codec for magic, codec in _MAGICS if head.startswith(magic)), None)


def decompress(checker: Checker | None = None) -> Stage:
    """A stage that decodes whatever codec the stream turns out to be in; `checker` follows one of ours.

    Raises IntegrityError for an unknown or damaged stream, TruncatedError for one that is cut or empty.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        head, whole = peek(upstream)
        codec = identify(head)
        if not head:
            raise TruncatedError("the input is empty", offset=0)
        if codec not in (ZSTD, GZIP):
            raise IntegrityError(f"the input begins with {head.hex()}: neither zstd nor gzip", offset=0)
        decoder = gunzip() if codec == GZIP else unpack(checker or Checker())
        yield from decoder(whole)

    return stage


def peek(upstream: Iterator[Buffer], size: int = 4) -> tuple[bytes, Iterator[Buffer]]:
    """The first `size` bytes (fewer if there are no more), and an iterator that still gives all of them."""
    taken: list[Buffer] = []
    while sum(map(len, taken)) < size and (buffer := next(upstream, None)) is not None:
        taken.append(buffer)
    return b"".join(taken)[:size], Over(upstream, concatenate(taken, upstream))
