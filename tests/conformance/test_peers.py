"""compress, decompress, checksum and verify against the tools that others use for the same."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from statepipe.errors import IntegrityError
from tests.conformance.adapters import filtered, through
from tests.conformance.running import PATIENCE

NOISE = hashlib.shake_128(b"peers").digest(1 << 20)
MIXED = NOISE + bytes(3 << 20) + b"the same line again\n" * 100_000 + NOISE[::-1]
INPUTS = {"empty": b"", "a byte": b"x", "mixed": MIXED}

inputs = pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)


def peer(*command: str | Path, data: bytes, fails: bool = False) -> bytes:
    """What the tool makes of `data`."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout


@inputs
@pytest.mark.parametrize("level", ["zstd", "zstd:1", "3", "-7", "zstd:9"])
def test_zstd_reads_what_we_compress(level: str, data: bytes) -> None:
    packed, said = filtered(data, "compress", level)
    assert peer("zstd", "-dc", data=packed) == data
    assert not said


@inputs
def test_zstd_finds_our_file_whole(data: bytes) -> None:
    peer("zstd", "-tq", data=filtered(data, "compress")[0])


PACKERS = (
    ["zstd", "-1"],
    ["zstd", "-19"],
    ["zstd", "--fast=5"],
    ["zstd", "-3", "--long=27"],
    ["zstd", "-T2", "-1"],
    ["zstd", "-1", "--no-check"],
    ["pzstd", "-c"],
    ["gzip", "-1"],
    ["gzip", "-9"],
    ["pigz", "-1"],
    ["pigz", "-9"],
    ["bzip2", "-1"],
    ["bzip2", "-9"],
    ["pbzip2", "-c"],
    ["lbzip2", "-c"],
    ["xz", "-0"],
    ["xz", "-6"],
    ["xz", "-T2", "-0", "--block-size=1MiB"],
    ["xz", "-0", "--check=sha256"],
    ["xz", "-0", "--x86", "--lzma2=preset=0"],
    ["lz4", "-1"],
    ["lz4", "-9"],
    ["lz4", "-BD", "-B4"],
    ["lz4", "-l"],
)


@inputs
@pytest.mark.parametrize("packer", PACKERS, ids=" ".join)
def test_we_read_what_others_compress(packer: list[str], data: bytes) -> None:
    packed = peer(*packer, data=data)
    if not packed:
        pytest.skip("this version of the tool writes nothing for nothing")
    assert filtered(packed, "decompress") == (data, "")


READERS = (
    ("gzip", ["gzip", "-dc"]),
    ("gzip:6", ["pigz", "-dc"]),
    ("bzip2", ["bzip2", "-dc"]),
    ("bzip2:1", ["pbzip2", "-dc"]),
    ("bzip2:4", ["lbzip2", "-dc"]),
    ("xz:0", ["xz", "-dc"]),
    ("xz:6", ["xz", "-dcT2"]),
    ("lz4", ["lz4", "-dc"]),
    ("lz4:9", ["lz4", "-dc"]),
)


@inputs
@pytest.mark.parametrize(("codec", "reader"), READERS, ids=lambda it: it if isinstance(it, str) else " ".join(it))
def test_others_read_what_we_compress(codec: str, reader: list[str], data: bytes) -> None:
    packed, said = filtered(data, "compress", codec)
    assert packed and peer(*reader, data=packed) == data
    assert not said


JOINERS = (["zstd", "-1"], ["gzip", "-1"], ["bzip2", "-1"], ["xz", "-0"], ["lz4", "-1"])


@pytest.mark.parametrize("packer", JOINERS, ids=" ".join)
def test_we_read_what_others_have_joined(packer: list[str]) -> None:
    packed = peer(*packer, data=NOISE) + peer(*packer, data=b"") + peer(*packer, data=MIXED)
    assert through("decompress", b"", [packed]) == NOISE + MIXED


def test_a_frame_as_large_as_the_file() -> None:
    """`zstd` makes one of a whole pipe: it is decoded as it comes."""
    data = MIXED * 4
    assert through("decompress", data, [peer("zstd", "-1", data=data)]) == data


SUMS = {
    "sha256": "sha256sum",
    "sha512": "sha512sum",
    "sha1": "sha1sum",
    "md5": "md5sum",
    "blake2b": "b2sum",
    "blake3": "b3sum",
}


@inputs
@pytest.mark.parametrize("algorithm", SUMS)
def test_the_tool_agrees_with_our_checksum(algorithm: str, data: bytes, tmp_path: Path) -> None:
    assert filtered(data, "checksum", algorithm, "--to", str(tmp_path / "sum")) == (data, "")
    assert filtered(data, "checksum", algorithm) == (data, (tmp_path / "sum").read_text())
    peer(SUMS[algorithm], "-c", tmp_path / "sum", data=data)


@inputs
@pytest.mark.parametrize("algorithm", SUMS)
def test_we_verify_the_line_of_the_tool(algorithm: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(data)
    for line in (peer(SUMS[algorithm], data=data), peer(SUMS[algorithm], tmp_path / "data", data=b"")):
        (tmp_path / "sum").write_bytes(line)
        arguments = ("verify", "--from", str(tmp_path / "sum"), "--algorithm", algorithm)
        assert filtered(data, *arguments) == (data, "")
        with pytest.raises(IntegrityError, match=f"{algorithm} is "):
            filtered(data + b"y", *arguments)
