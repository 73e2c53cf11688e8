"""An age file read at any offset: only what was asked for is opened, and only after its end was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from statepipe.ends.source import FileSource
from statepipe.errors import IntegrityError, NoKeyError, StatepipeError
from statepipe.formats.age.keys import parse_file, parse_identity
from statepipe.formats.age.x25519 import X25519Identity
from statepipe.state.agefile import READ_CHUNKS, AgeReaderAt
from tests import agefiles

CHUNK = 64 << 10
PLAIN = hashlib.shake_128(b"anywhere").digest((READ_CHUNKS + 3) * CHUNK + 100)
IDENTITIES = parse_file(agefiles.KEY_FILE.read_text(), "key", parse_identity)


class Watched:
    """A file that remembers which of its bytes were read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read: list[range] = []

    def size(self) -> int:
        return len(self.data)

    def tail(self, offset: int, size: int) -> bytes:
        self.read.append(range(offset, offset + size))
        return self.data[offset : offset + size]


def reader(data: bytes) -> AgeReaderAt:
    return AgeReaderAt(Watched(data), IDENTITIES)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, len(PLAIN)])
def test_any_range_is_what_was_written(size: int) -> None:
    plain = PLAIN[:size]
    file = reader(agefiles.sealed(plain))
    assert file.size() == size
    edges = {0, 1, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, size // 2, size - 1, size, size + 1}
    for start in sorted(edge for edge in edges if edge >= 0):
        for length in (0, 1, 100, CHUNK, 2 * CHUNK + 1, size):
            assert file.read(start, length) == plain[start : start + length], (start, length)


def test_what_lies_before_is_not_read() -> None:
    data = agefiles.sealed(PLAIN)
    file = Watched(data)
    opened = AgeReaderAt(file, IDENTITIES)  # type: ignore[arg-type]
    assert opened.read(10 * CHUNK + 5, 10) == PLAIN[10 * CHUNK + 5 :][:10]
    assert sum(map(len, file.read)) < 3 * (CHUNK + 16)
    before = len(file.read)
    assert opened.read(10 * CHUNK + 100, 50) == PLAIN[10 * CHUNK + 100 :][:50]
    assert len(file.read) == before


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK, 3 * CHUNK + 7])
def test_a_cut_is_found_at_once(size: int) -> None:
    data = agefiles.sealed(PLAIN[:size])
    for end in {0, 30, len(data) - 1, len(data) - 17, len(data) - CHUNK - 16, len(data) - size % CHUNK - 16}:
        if 0 <= end < len(data):
            with pytest.raises(IntegrityError):
                reader(data[:end])
    with pytest.raises(IntegrityError):
        reader(data + b"x")


def test_a_flip_is_found_where_it_is_read() -> None:
    data = bytearray(agefiles.sealed(PLAIN[: 3 * CHUNK]))
    data[-2 * (CHUNK + 16) + 100] ^= 1
    file = reader(bytes(data))
    assert file.read(0, CHUNK) == PLAIN[:CHUNK]
    assert file.read(2 * CHUNK, 10) == PLAIN[2 * CHUNK :][:10]
    with pytest.raises(IntegrityError, match="chunk 1 of the payload") as caught:
        file.read(CHUNK - 1, 2)
    assert caught.value.offset == len(data) - 2 * (CHUNK + 16)


def test_a_wrong_key_and_armor_are_told(tmp_path: Path) -> None:
    with pytest.raises(NoKeyError):
        AgeReaderAt(Watched(agefiles.sealed(PLAIN)), [X25519Identity.generate()])  # type: ignore[arg-type]
    with pytest.raises(StatepipeError, match="armored"):
        reader(b"-----BEGIN AGE ENCRYPTED FILE-----\n")


def test_a_real_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(agefiles.sealed(PLAIN))
    with FileSource(str(tmp_path / "file")) as source:
        opened = AgeReaderAt(source, IDENTITIES)  # type: ignore[arg-type]
        assert opened.read(len(PLAIN) - 10, 100) == PLAIN[-10:]
