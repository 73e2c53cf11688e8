"""encrypt and decrypt: age files, sealed and opened on all cores.

To encrypt, the plaintext is cut into age's chunks of 64 KiB. A batch of chunks goes to any free core; the sealed chunks
follow the header in order.

To decrypt, the header is read first, and nothing else until an identity has opened it and its MAC matches. Then every
chunk is opened, and only bytes that were authenticated leave. A full chunk may be the last one: its nonce tells, so no
chunk is held back. A short chunk is the end or a cut, which the end of the stream decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from statepipe.formats.age.armor import BEGIN, SPACE_LIMIT, Armor, Dearmor, looks_armored
from statepipe.formats.age.derive import FILE_KEY_SIZE
from statepipe.formats.age.envelope import Identity, Recipient, open_header, seal
from statepipe.formats.age.header import HeaderReader
from statepipe.formats.age.payload import (
    CHUNK,
    NONCE_SIZE,
    SEALED,
    TAG_SIZE,
    WRITES_INTO,
    PayloadCut,
    PayloadError,
    chunk_nonce,
    open_chunk,
    payload_key,
    seal_chunk,
)
from statepipe.reuse import Buffers
from statepipe.stage import FLUSH, Buffer, Over, Stage, cut, joined, peek
from statepipe.threads import SPARE, cores, parallel
from statepipe.typed import NamedTuple

WORKERS = None if WRITES_INTO else 1
"""Threads that seal or open: one for each core, if cryptography releases the GIL."""

BATCH = 16
"""Chunks that go to a core at once, 1 MiB. Over 900 MB and 2 cores, sealing: 4 took 0.334 s (CPU 0.531), 8 0.315
(0.506), 16 0.306 (0.500), 32 0.319 (0.478), 64 0.308 (0.501); opening: 0.354, 0.312, 0.324, 0.343, 0.346."""


def encrypt(recipients: Sequence[Recipient]) -> Stage:
    """Return a stage that writes an age file for these recipients. Raises UsageError if they cannot be combined."""
    file_key = os.urandom(FILE_KEY_SIZE)
    header = seal(file_key, recipients)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        nonce = os.urandom(NONCE_SIZE)
        yield header + nonce
        batches = _batches(cut(upstream, CHUNK, early=False), keep=1)  # a chunk waits: it may be the last
        sealer = _Sealer(payload_key(file_key, nonce), _buffers())
        with closing(parallel(sealer.seal, Over(upstream, batches), WORKERS, spare=SPARE)) as sealed:
            yield from sealed

    return stage


def encrypt_armored(recipients: Sequence[Recipient]) -> Stage:
    """Return a stage that writes an age file as text. Raises UsageError as `encrypt` does."""
    binary = encrypt(recipients)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        armor = Armor()
        for buffer in binary(upstream):
            yield armor.feed(buffer) if len(buffer) else FLUSH
        yield armor.close()

    return stage


def decrypt(identities: Sequence[Identity]) -> Stage:
    """Return a stage that opens an age file, armored or not, with the first identity that fits.

    Raises NoKeyError and, with the offset in the age stream, IntegrityError (as HeaderError, MacError, PayloadError,
    ArmorError) and TruncatedError. The bytes that left before an error are authentic.
    """

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        binary = _dearmored(upstream)
        reader = HeaderReader(NONCE_SIZE)
        header = None
        while header is None:
            buffer = next(binary, None)
            if buffer is None:
                reader.close()
            elif not len(buffer):
                yield FLUSH
            else:
                header = reader.feed(buffer)
        file_key = open_header(header, identities)
        key = payload_key(file_key, reader.rest[:NONCE_SIZE])
        opener = _Opener(key, header.size + NONCE_SIZE, _buffers())
        batches = _batches(cut(chain([reader.rest[NONCE_SIZE:]], binary), SEALED, early=False), keep=0)
        ended = False
        with closing(parallel(opener.open, Over(upstream, batches), WORKERS, spare=SPARE)) as opened:
            for each in opened:
                if each is None:
                    yield FLUSH
                    continue
                batch, result = each
                if ended and batch.chunks:
                    raise opener.goes_on(batch.number)
                if len(result.plain):
                    yield result.plain
                if result.failure is not None:
                    raise result.failure
                ended = ended or result.ended
                if batch.last and not ended:
                    number = batch.number + len(batch.chunks)
                    what = f"the stream is cut short: it ends before chunk {number} of the payload"
                    raise PayloadCut(what, offset=opener.offset(number))

    return stage


def _dearmored(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    """Remove the armor, if there is one."""
    head, whole = peek(upstream, lambda head: len(head.lstrip()) >= len(BEGIN) or len(head) > SPACE_LIMIT)
    if not looks_armored(head):
        yield from whole
        return
    armor = Dearmor()
    for buffer in whole:
        if not len(buffer):
            yield FLUSH
        elif data := armor.feed(buffer):
            yield data
    if data := armor.close():
        yield data


class _Batch(NamedTuple):
    """Chunks numbered from `number`; `last` if the stream ends with them."""

    number: int
    chunks: list[Buffer]
    last: bool = False


def _batches(pieces: Iterator[list[Buffer]], keep: int) -> Iterator[_Batch | None]:
    """Yield numbered batches of pieces, and None for a flush mark.

    The last `keep` pieces are held back, even at a flush mark, until the next piece or the end.
    """
    held: list[Buffer] = []
    number = 0
    for piece in pieces:
        if piece:
            held.append(joined(piece))
        ready = len(held) - keep
        if ready == BATCH or (ready > 0 and not piece):
            yield _Batch(number, held[:ready])
            number, held = number + ready, held[ready:]
        if not piece:
            yield None
    yield _Batch(number, held, last=True)


def _buffers() -> Buffers:
    """Return memory for batches: those that the workers have, and those that wait for the sink."""
    return Buffers(BATCH * SEALED, cores() + SPARE + 4)


class _Sealer(NamedTuple):
    """Seals a batch, on a worker."""

    key: ChaCha20Poly1305
    buffers: Buffers

    def seal(self, batch: _Batch | None) -> Buffer:
        if batch is None:
            return FLUSH
        chunks = batch.chunks or [b""]
        out = self.buffers.get(sum(map(len, chunks)) + TAG_SIZE * len(chunks))
        view, at = memoryview(out), 0
        final = batch.number + len(chunks) - 1 if batch.last else -1
        for number, chunk in enumerate(chunks, batch.number):
            end = at + len(chunk) + TAG_SIZE
            seal_chunk(self.key, chunk_nonce(number, int(number == final)), chunk, view[at:end])
            at = end
        return out


class _Opened(NamedTuple):
    """The plaintext of a batch up to an error, whether it had the stream's last chunk, and the error."""

    plain: Buffer
    ended: bool = False
    failure: PayloadError | None = None


class _Opener(NamedTuple):
    """Opens a batch, on a worker. `start` is the offset of the first chunk in the stream."""

    key: ChaCha20Poly1305
    start: int
    buffers: Buffers

    def open(self, batch: _Batch | None) -> tuple[_Batch, _Opened] | None:
        if batch is None:
            return None
        out = memoryview(self.buffers.get(sum(map(len, batch.chunks))))
        at = 0
        for number, chunk in enumerate(batch.chunks, batch.number):
            end = at + len(chunk) - TAG_SIZE
            last = None if end < at else open_chunk(self.key, number, chunk, out[at:end])
            if last is None or (end == at and number):
                return batch, _Opened(out[:at], failure=self._unopened(number, chunk))
            at = end
            if last:
                more = number + 1 < batch.number + len(batch.chunks)
                return batch, _Opened(out[:at], ended=True, failure=self.goes_on(number + 1) if more else None)
        return batch, _Opened(out[:at])

    def _unopened(self, number: int, chunk: Buffer) -> PayloadError:
        offset = self.offset(number)
        if len(chunk) == SEALED:
            return PayloadError(f"chunk {number} of the payload is damaged: its authentication failed", offset=offset)
        return PayloadCut(f"the last chunk of the payload, {number}, is cut short or damaged", offset=offset)

    def goes_on(self, number: int) -> PayloadError:
        """Return the error for a stream with a chunk `number` after its last one."""
        return PayloadError("the stream continues after its last chunk", offset=self.offset(number))

    def offset(self, number: int) -> int:
        """Return where a chunk begins in the stream."""
        return self.start + number * SEALED
