"""The native libraries release the GIL, on which every placed thread counts (docs/design.md, 2).

A second thread takes a step each half millisecond, and needs the GIL for each. How many steps it takes during one
call of tens of milliseconds tells whether the call kept it; on a busy machine the call only takes longer.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import deflate
import lz4.block
import pytest
import xxhash
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from isal import igzip_lib, isal_zlib

SIZE = 64 << 20
STEPS = 8
"""In one call: one that keeps the GIL lets through the step before it and the one after."""
TRIALS = 20

TEXT = bytes(i * i % 251 for i in range(65521)) * (SIZE // 65521)
PACKED = zstandard.ZstdCompressor(level=1).compress(TEXT)
NOISE = hashlib.shake_128(b"statepipe").digest(4 << 20)
DEFLATED = igzip_lib.compress(TEXT)
BZIPPED = bz2.compress(NOISE[:900_000])
XZ = lzma.compress(NOISE.hex().encode(), preset=0)
LZ4 = lz4.block.compress(TEXT)


@contextmanager
def metronome() -> Iterator[list[int]]:
    """A list whose one item another thread counts up."""
    steps, stopped = [0], threading.Event()

    def count() -> None:
        while not stopped.is_set():
            time.sleep(0.0005)
            steps[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield steps
    finally:
        stopped.set()
        thread.join()


def steps_of(call: Callable[[], object], trials: int) -> Iterator[int]:
    """How many steps another thread took during a call, for each of so many trials."""
    with metronome() as steps:
        for _ in range(trials):
            before = steps[0]
            call()
            yield steps[0] - before


def seal_into() -> object:
    return ChaCha20Poly1305(bytes(32)).encrypt_into(bytes(12), TEXT, None, bytearray(len(TEXT) + 16))


SEALED = ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), TEXT, None)


def open_into() -> object:
    return ChaCha20Poly1305(bytes(32)).decrypt_into(bytes(12), SEALED, None, bytearray(len(TEXT)))


CALLS = {
    "zstd compress": lambda: zstandard.ZstdCompressor(level=12).compress(NOISE),
    "zstd decompress": lambda: zstandard.ZstdDecompressor().decompress(PACKED),
    "zstd decompressobj": lambda: zstandard.ZstdDecompressor().decompressobj().decompress(PACKED),
    "ISA-L compress": lambda: igzip_lib.compress(TEXT, 2, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_SMALL),
    "ISA-L decompress": lambda: igzip_lib.IgzipDecompressor().decompress(DEFLATED),
    "ISA-L crc32": lambda: isal_zlib.crc32(TEXT * 8),
    "libdeflate": lambda: deflate.deflate_compress(NOISE, 6),
    "bzip2 compress": lambda: bz2.compress(NOISE[:900_000]),
    "bzip2 decompress": lambda: bz2.BZ2Decompressor().decompress(BZIPPED),
    "xz compress": lambda: lzma.compress(NOISE, preset=0),
    "xz decompress": lambda: lzma.LZMADecompressor().decompress(XZ),
    "lz4 compress": lambda: lz4.block.compress(TEXT),
    "lz4 decompress": lambda: lz4.block.decompress(LZ4),
    "xxh32": lambda: xxhash.xxh32_intdigest(TEXT),
    "xxh32 update": lambda: xxhash.xxh32().update(TEXT),
    "blake3": lambda: blake3().update(TEXT),
    "sha256": lambda: hashlib.sha256(TEXT),
    "blake2b": lambda: hashlib.blake2b(TEXT),
    "ChaCha20-Poly1305 encrypt": lambda: ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), TEXT, None),
    "ChaCha20-Poly1305 encrypt_into": seal_into,
    "ChaCha20-Poly1305 decrypt_into": open_into,
    "scrypt": lambda: Scrypt(bytes(16), 32, 1 << 17, 8, 1).derive(b"x"),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_thread_goes_on_meanwhile(name: str) -> None:
    assert any(steps >= STEPS for steps in steps_of(CALLS[name], TRIALS))


def test_the_criterion_knows_a_call_that_keeps_it() -> None:
    """Not in every trial: on a busy machine the other thread may have its steps just before the call or after it."""
    assert any(steps < STEPS for steps in steps_of(lambda: sum(range(SIZE // 8)), TRIALS))


def test_this_python_has_a_gil() -> None:
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
