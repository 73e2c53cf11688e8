"""encrypt and decrypt: age files, sealed and opened on all cores.

The plaintext is cut into age's chunks of 64 KiB, sixteen go to whichever core is free, and come out in order behind
the header. Reading goes the other way: header first, and nothing else until an identity has opened it and its MAC
agrees; then every chunk is opened, and only what did open leaves. A full chunk may be the last one or not, and says
so itself, so that none is held back; what is short is the end or a cut, which the end of the stream decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

from statepipe.formats.age.armor import BEGIN, SPACE_LIMIT, Armor, Dearmor, looks_armored
from statepipe.formats.age.derive import FILE_KEY_SIZE
from statepipe.formats.age.envelope import Identity, Recipient, open_header, seal
from statepipe.formats.age.header import HeaderReader
from statepipe.formats.age.payload import NONCE_SIZE, WRITES_INTO, payload_key
from statepipe.stage import FLUSH, Buffer, Over, Stage, peek
from statepipe.stages.chunks import Batch, Opened, Opener, Sealer, plain_batches, sealed_batches
from statepipe.threads import parallel

WORKERS = None if WRITES_INTO else 1
"""Threads that seal or open: one a core, where they can do so at the same time."""


def encrypt(recipients: Sequence[Recipient]) -> Stage:
    """A stage that writes an age file for these recipients. Raises UsageError if they do not go together."""
    file_key = os.urandom(FILE_KEY_SIZE)
    header = seal(file_key, recipients)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        nonce = os.urandom(NONCE_SIZE)
        yield header + nonce
        sealer = Sealer(payload_key(file_key, nonce))
        with closing(parallel(sealer, Over(upstream, plain_batches(upstream)), WORKERS)) as sealed:
            yield from sealed

    return stage


def encrypt_armored(recipients: Sequence[Recipient]) -> Stage:
    """`encrypt` as text. Raises UsageError."""
    binary = encrypt(recipients)

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        armor = Armor()
        for buffer in binary(upstream):
            yield armor.feed(buffer) if len(buffer) else FLUSH
        yield armor.close()

    return stage


def decrypt(identities: Sequence[Identity]) -> Stage:
    """A stage that opens an age file, armored or not, with the first identity that fits.

    Raises NoKeyError and, with the offset in the age stream, IntegrityError (as HeaderError, MacError, PayloadError,
    ArmorError) and TruncatedError. What left before is what was written.
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
        opener = Opener(payload_key(file_key, reader.rest[:NONCE_SIZE]), header.size + NONCE_SIZE)
        sealed = chain([reader.rest[NONCE_SIZE:]], binary)
        with closing(parallel(opener, Over(upstream, sealed_batches(sealed)), WORKERS)) as opened:
            yield from _checked(opened, opener)

    return stage


def _checked(opened: Iterator[tuple[Batch, Opened] | None], opener: Opener) -> Iterator[Buffer]:
    """The plaintext in order, and at its end the proof that it is the end."""
    ended = False
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
            raise opener.cut_off(batch.number + len(batch.chunks))


def _dearmored(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    """The age file out of its armor, if it wears one."""
    head, whole = peek(upstream, lambda head: len(head.lstrip()) >= len(BEGIN) or len(head) > SPACE_LIMIT)
    yield from _out_of_armor(whole) if looks_armored(head) else whole


def _out_of_armor(text: Iterator[Buffer]) -> Iterator[Buffer]:
    armor = Dearmor()
    for buffer in text:
        if not len(buffer):
            yield FLUSH
        elif data := armor.feed(buffer):
            yield data
    if data := armor.close():
        yield data
