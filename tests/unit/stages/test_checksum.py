"""checksum and verify: the digest, its line, and what is held back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from blake3 import blake3

from statepipe.ends.file import FileSink
from statepipe.errors import IntegrityError, StatepipeError, UsageError
from statepipe.stage import FLUSH
from statepipe.stages.checksum import ALGORITHMS, Digest, checksum, new_hash, parse_digest, read_digest, verify

HEX = hashlib.sha256(b"abcdef").hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_digest_is_that_of_the_library(algorithm: str) -> None:
    digest = Digest(algorithm)
    assert list(digest(iter([b"abc", FLUSH, b"def"]))) == [b"abc", FLUSH, b"def"]
    known = blake3(b"abcdef") if algorithm == "blake3" else hashlib.new(algorithm, b"abcdef")
    assert digest.value == known.hexdigest()


@pytest.mark.parametrize("algorithm", ["", "crc32", "SHA256", "sha3_256"])
def test_an_unknown_algorithm(algorithm: str) -> None:
    with pytest.raises(UsageError, match="unknown checksum") as caught:
        new_hash(algorithm)
    assert "blake3" in (caught.value.hint or "")


def test_the_line_comes_after_the_last_byte() -> None:
    said: list[str] = []
    flow = checksum(said.append, FileSink)(iter([b"abc", b"def"]))
    assert [next(flow), next(flow)] == [b"abc", b"def"]
    assert not said
    assert list(flow) == []
    assert said == [f"{HEX}  -\n"]


def test_no_line_for_a_stream_that_breaks(tmp_path: Path) -> None:
    def broken() -> object:
        yield b"abc"
        raise StatepipeError("no more")

    with pytest.raises(StatepipeError, match="no more"):
        list(checksum(pytest.fail, FileSink, to=str(tmp_path / "sum"))(broken()))  # type: ignore[arg-type]
    assert not os.listdir(tmp_path)


def test_a_place_that_takes_no_line(tmp_path: Path) -> None:
    with pytest.raises(StatepipeError, match=r"cannot create .*: No such file or directory"):
        list(checksum(pytest.fail, FileSink, to=str(tmp_path / "no" / "sum"))(iter([b"abc"])))
    with open("/dev/full", "w", buffering=1) as full:
        with pytest.raises(StatepipeError, match="standard error: No space left"):
            list(checksum(full.write, FileSink)(iter([b"abc"])))
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), full.fileno())  # so that its close succeeds


LINES = [HEX, HEX.upper(), f"{HEX}  -", f"{HEX} *name", f"{HEX}  a name  with spaces", f"\\{HEX}  a\\nb"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_holds_a_digest(line: str, tmp_path: Path) -> None:
    assert parse_digest(line) == HEX
    (tmp_path / "sum").write_text(f"{line}\n0000  another\n")
    assert read_digest(str(tmp_path / "sum")) == HEX


@pytest.mark.parametrize("line", ["", "abc", HEX + "0" * 65, f"{HEX}x", f"x{HEX}", "g" * 64, f"SHA256 (f) = {HEX}"])
def test_a_line_that_holds_none(line: str, tmp_path: Path) -> None:
    (tmp_path / "sum").write_bytes(line.encode() + b"\n")
    with pytest.raises(UsageError, match="is not a digest"):
        read_digest(str(tmp_path / "sum"))


def test_a_file_of_digests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StatepipeError, match=r"cannot read .*: Is a directory"):
        read_digest(str(tmp_path))
    with pytest.raises(StatepipeError, match=r"cannot read .*: No such file"):
        read_digest(str(tmp_path / "none"))
    (tmp_path / "sum").write_bytes(b"\xff\xfe\0" * 3000)
    with pytest.raises(UsageError, match="is not a digest"):
        read_digest(str(tmp_path / "sum"))


def test_the_last_buffer_waits_for_the_verdict() -> None:
    flow = verify("0" * 64)(iter([b"abc", b"def", FLUSH]))
    assert next(flow) == b"abc"
    assert next(flow) == FLUSH
    with pytest.raises(IntegrityError, match=f"sha256 is {HEX}, expected 0{{64}}"):
        next(flow)


@pytest.mark.parametrize(("algorithm", "hint"), [(None, "give --algorithm blake3"), ("sha256", ""), ("blake3", "")])
def test_a_digest_of_the_same_length_may_be_of_another_algorithm(algorithm: str | None, hint: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        list(verify("0" * 64, algorithm)(iter([b"abc"])))
    assert (caught.value.hint or "").endswith(hint) and bool(caught.value.hint) == bool(hint)


def test_all_of_it_passes_where_the_digest_agrees() -> None:
    assert b"".join(verify(HEX.upper())(iter([b"abc", FLUSH, b"def"]))) == b"abcdef"


def test_a_buffer_of_zeros_is_data() -> None:
    """Not to be taken for an empty one, whatever type it is of."""
    for kind in (bytes, bytearray, memoryview):
        data = kind(bytes(3))
        assert b"".join(verify(hashlib.sha256(bytes(6)).hexdigest())(iter([data, data]))) == bytes(6)


def test_a_digest_of_another_algorithm_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="has 64 digits, but sha512 has 128"):
        verify(HEX, "sha512")
