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
from functools import cache

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


@cache
def text() -> bytes:
    return bytes(i * i % 251 for i in range(65521)) * (SIZE // 65521)


@cache
def noise() -> bytes:
    return hashlib.shake_128(b"statepipe").digest(4 << 20)


@cache
def made(pack: Callable[[bytes], bytes]) -> bytes:
    """What a packer makes of the text; of the noise, where it would take long over so much."""
    return pack(noise()[:900_000] if pack in (bz2.compress, xz) else text())


def xz(data: bytes) -> bytes:
    return lzma.compress(data.hex().encode(), preset=0)


def seal(data: bytes) -> bytes:
    return ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), data, None)


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
    return ChaCha20Poly1305(bytes(32)).encrypt_into(bytes(12), text(), None, bytearray(len(text()) + 16))


def open_into() -> object:
    return ChaCha20Poly1305(bytes(32)).decrypt_into(bytes(12), made(seal), None, bytearray(len(text())))


CALLS = {
    "zstd compress": lambda: zstandard.ZstdCompressor(level=12).compress(noise()),
    "zstd decompress": lambda: zstandard.ZstdDecompressor().decompress(made(zstandard.compress)),
    "zstd decompressobj": lambda: zstandard.ZstdDecompressor().decompressobj().decompress(made(zstandard.compress)),
    "ISA-L compress": lambda: igzip_lib.compress(text(), 2, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_SMALL),
    "ISA-L decompress": lambda: igzip_lib.IgzipDecompressor().decompress(made(igzip_lib.compress)),
    "ISA-L crc32": lambda: isal_zlib.crc32(text() * 3),
    "libdeflate": lambda: deflate.deflate_compress(noise(), 6),
    "bzip2 compress": lambda: bz2.compress(noise()[:900_000]),
    "bzip2 decompress": lambda: bz2.BZ2Decompressor().decompress(made(bz2.compress)),
    "xz compress": lambda: lzma.compress(noise()[:900_000], preset=0),
    "xz decompress": lambda: lzma.LZMADecompressor().decompress(made(xz)),
    "lz4 compress": lambda: lz4.block.compress(text()),
    "lz4 decompress": lambda: lz4.block.decompress(made(lz4.block.compress)),
    "xxh32": lambda: xxhash.xxh32_intdigest(text()),
    "xxh32 update": lambda: xxhash.xxh32().update(text()),
    "blake3": lambda: blake3().update(text()),
    "sha256": lambda: hashlib.sha256(text()),
    "blake2b": lambda: hashlib.blake2b(text()),
    "ChaCha20-Poly1305 encrypt": lambda: ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), text(), None),
    "ChaCha20-Poly1305 encrypt_into": seal_into,
    "ChaCha20-Poly1305 decrypt_into": open_into,
    "scrypt": lambda: Scrypt(bytes(16), 32, 1 << 15, 8, 1).derive(b"x"),
}


@pytest.fixture(scope="module", autouse=True)
def inputs() -> None:
    """All are made before any call is watched, and only where these tests run: that takes a second."""
    noise()
    for pack in (zstandard.compress, igzip_lib.compress, lz4.block.compress, bz2.compress, xz, seal):
        made(pack)


@pytest.mark.parametrize("name", CALLS)
def test_another_thread_goes_on_meanwhile(name: str) -> None:
    assert any(steps >= STEPS for steps in steps_of(CALLS[name], TRIALS))


def test_the_criterion_knows_a_call_that_keeps_it() -> None:
    """Not in every trial: on a busy machine the other thread may have its steps just before the call or after it."""
    assert any(steps < STEPS for steps in steps_of(lambda: sum(range(SIZE // 8)), TRIALS))


def test_this_python_has_a_gil() -> None:
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
