"""compress, decompress, encrypt and decrypt on files: FILE, -o and -d as zstd and age have them."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import agefiles
from tests.conformance.running import STATEPIPE, assert_one_error, run

DATA = b"what is in the file" * 10_000

KEYS = ["-r", agefiles.RECIPIENT, "-i", str(agefiles.KEY_FILE)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_bytes(DATA)
    return tmp_path / "plain"


@pytest.mark.parametrize("words", [["compress"], ["compress", "zstd:3"], ["compress", "lz4"], ["encrypt", *KEYS]])
def test_tar_reads_and_writes_through_it(words: list[str], plain: Path, tmp_path: Path) -> None:
    program = shlex.join([*STATEPIPE, *words])
    archive, there = str(tmp_path / "archive"), tmp_path / "there"
    there.mkdir()
    where = {"env": os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, "check": True}
    subprocess.run(["tar", "-C", str(tmp_path), "-I", program, "-cf", archive, "plain"], **where)  # type: ignore[call-overload]
    subprocess.run(["tar", "-C", str(there), "-I", program, "-xf", archive], **where)  # type: ignore[call-overload]
    assert (there / "plain").read_bytes() == DATA != Path(archive).read_bytes()


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (["compress", "FROM"], ["decompress", "FROM"]),
        (["compress", "gzip", "FROM"], ["compress", "-d", "FROM"]),
        (["encrypt", agefiles.RECIPIENT, "FROM"], ["decrypt", "-i", str(agefiles.KEY_FILE), "FROM"]),
        (["encrypt", "-r", agefiles.RECIPIENT, "FROM"], ["encrypt", "-d", "-i", str(agefiles.KEY_FILE), "FROM"]),
    ],
)
def test_from_a_file_into_a_file_and_back(there: list[str], back: list[str], plain: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "packed", tmp_path / "again"
    for words, source, target in ((there, plain, packed), (back, packed, again)):
        command = [str(source) if word == "FROM" else word for word in words]
        done = run(*command, "-o", str(target))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert again.read_bytes() == DATA != packed.read_bytes()


@pytest.mark.parametrize(
    "words", [["decompress"], ["decrypt", "-i", str(agefiles.KEY_FILE)]], ids=lambda words: words[0]
)
def test_tar_extracts_through_the_inverse_too(words: list[str], plain: Path, tmp_path: Path) -> None:
    """It gives -d, and that is what is done."""
    there = ["compress"] if words[0] == "decompress" else ["encrypt", agefiles.RECIPIENT]
    assert run(*words, "-d", data=run(*there, data=DATA).stdout).stdout == DATA


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["compress", "none"], "'none' is neither a codec nor a file that exists", "codecs are zstd, gzip"),
        (["compress", "plain", "lz4"], "'plain' is not a codec", "the codec comes before FILE"),
    ],
)
def test_a_file_where_a_codec_is_meant_is_told_so(
    words: list[str], said: str, hint: str, plain: Path, tmp_path: Path
) -> None:
    done = run(*words, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr.decode() and hint in done.stderr.decode()


def test_dashes_stand_for_the_standard_ones() -> None:
    packed = run("compress", "zstd", "-", "-o", "-", data=DATA)
    assert run("decompress", "-", data=packed.stdout).stdout == DATA


def test_an_output_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(run("compress", data=DATA).stdout[:-9])
    (tmp_path / "kept").write_bytes(b"older")
    done = run("decompress", str(tmp_path / "cut"), "-o", str(tmp_path / "kept"))
    assert done.returncode == 3 and (tmp_path / "kept").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"cut", "kept"}


def test_what_is_replaced_keeps_who_may_read_it(plain: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.touch(0o600)
    assert run("compress", str(plain), "-o", str(older)).returncode == 0
    assert older.stat().st_mode & 0o777 == 0o600 and older.read_bytes() != b""


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["compress", "plain", "-o", "./plain"], "-o"),
        (["throttle", "1G", "-o", "link"], "-o"),
        (["checksum", "--to", "plain"], "--to"),
        (["checksum", "plain", "--to", "link"], "--to"),
    ],
    ids=" ".join,
)
def test_the_file_that_is_read_is_not_written(words: list[str], option: str, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("plain")
    with plain.open("rb") as file:
        done = run(*words, stdin=file, cwd=tmp_path)
    assert (done.returncode, done.stdout, plain.read_bytes()) == (2, b"", DATA)
    assert f"error: {option} {words[-1]} is the file that is read".encode() in done.stderr


def test_a_codec_that_is_a_files_name_is_a_codec(tmp_path: Path) -> None:
    (tmp_path / "zstd").write_bytes(b"of the file")
    packed = run("compress", "zstd", data=DATA, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert run("decompress", data=packed.stdout).stdout == DATA
    packed = run("compress", "./zstd", cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert run("decompress", data=packed.stdout).stdout == b"of the file"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["compress", ""], 2, "neither a codec nor a FILE"),
        (["compress", "./none"], 1, "cannot open ./none"),
        (["decompress", "/dev"], 1, "/dev is a folder"),
        (["encrypt", agefiles.RECIPIENT, "/dev/null", "/dev/zero"], 2, "one file at a time"),
        (["decompress", "/dev/fd/77"], 2, "descriptor 77 is not open"),
        (["compress", "/dev/null", "/dev/zero"], 2, "/dev/null and /dev/zero: one file at a time"),
    ],
)
def test_what_cannot_be_read(words: list[str], code: int, told: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert_one_error(done.stderr, words[0], told)


def test_a_word_has_no_file() -> None:
    assert run("pipe", "compress:zstd,o=x", data=DATA).returncode == 2
