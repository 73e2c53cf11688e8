"""checksum, verify, throttle and progress on files: FILE and -o, by the command line and in this process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from statepipe.cli.main import main

Captured = pytest.CaptureFixture[bytes]

NAMES = ["plain", "a name", "back\\slash", "line\nbreak", "caf\udce9"]
"""Of files that sha256sum lists: the last is no UTF-8."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command runs in: a file of each name, whose content is the name."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).write_bytes(name.encode(errors="surrogateescape") * 9)
    return tmp_path


def test_digests_are_printed_as_sha256sum_prints_them(folder: Path, capfdbinary: Captured) -> None:
    known = subprocess.run(["sha256sum", *NAMES], capture_output=True, check=True).stdout
    assert main(["checksum", *NAMES]) == 0
    assert capfdbinary.readouterr() == (known, b"")
    assert main(["checksum", "sha256", *NAMES, "--to", "sums"]) == 0
    assert (folder / "sums").read_bytes() == known


@pytest.mark.parametrize("name", NAMES)
def test_verify_takes_the_line_of_its_file(name: str, folder: Path, capfdbinary: Captured) -> None:
    assert main(["checksum", *NAMES, "--to", "sums"]) == 0
    assert main(["verify", "--from", "sums", name]) == 0
    assert capfdbinary.readouterr() == (Path(name).read_bytes(), b"")


def test_a_digest_of_blake3_that_is_compared_as_sha256_is_explained(folder: Path, capfdbinary: Captured) -> None:
    assert main(["checksum", "blake3", "plain", "--to", "sum"]) == 0
    assert main(["verify", "--from", "sum", "plain"]) == 3
    assert b"if the digest is of blake3, give --algorithm blake3\n" in capfdbinary.readouterr().err
    assert main(["verify", "--from", "sum", "--algorithm", "blake3", "plain"]) == 0


@pytest.mark.parametrize(("algorithm", "name"), [("blake3", "sum.b3"), ("md5", "sum.md5"), ("blake2b", "sum.b2")])
def test_a_digest_s_file_can_hint_at_its_algorithm(
    algorithm: str, name: str, folder: Path, capfdbinary: Captured
) -> None:
    assert main(["checksum", algorithm, "plain", "--to", name]) == 0
    assert main(["verify", "--from", name, "plain"]) in (2, 3)
    hint = f"hint: the name of {name} suggests {algorithm}: give --algorithm {algorithm}\n"
    assert hint.encode() in capfdbinary.readouterr().err
    assert main(["verify", "--from", name, "--algorithm", algorithm, "plain"]) == 0


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_read(folder: Path, capfdbinary: Captured) -> None:
    assert main(["checksum", "blake3", "./none", "plain", "--to", "sums"]) == 1
    assert not (folder / "sums").exists()
    assert main(["checksum", "blake3", "./none", "plain"]) == 1
    out, err = capfdbinary.readouterr()
    assert out.endswith(b"  plain\n") and err.count(b"cannot open ./none: No such file") == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["verify", "RIGHT", "plain"], 0),
        (["verify", "--from", "sum", "plain"], 0),
        (["throttle", "unlimited", "plain"], 0),
        (["progress", "plain"], 0),
        (["checksum", "plain"], 0),
        (["checksum", "md5", "plain", "--to", "sum"], 0),
        (["verify", "0" * 64, "plain"], 3),
        (["throttle", "1G", "./none"], 1),
    ],
)
def test_an_output_is_there_whole_or_not(words: list[str], code: int, folder: Path) -> None:
    assert main(["checksum", "plain", "--to", "sum"]) == 0
    right = (folder / "sum").read_text().split()[0]
    (folder / "out").write_bytes(b"older")
    assert main([right if word == "RIGHT" else word for word in words] + ["-o", "out"]) == code
    assert (folder / "out").read_bytes() == ((folder / "plain").read_bytes() if code == 0 else b"older")
    assert {path.name for path in folder.iterdir()} >= {"out", "sum"} and not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["checksum", "sha3"], b"'sha3' is neither an algorithm nor a file that exists"),
        (["checksum", ""], b"neither an algorithm nor a FILE"),
        (["checksum", "plain", "sum", "-o", "out"], b"-o takes one FILE"),
        (["checksum", "-", "-"], b"standard input can be read only once"),
        (["verify", "--from", "sums", "sums"], b"sums has several digests, but none for sums"),
        (["verify", "--from", "sums", "0" * 64], b"and not both"),
        (["verify", "plain"], b"'plain' is not a digest"),
    ],
)
def test_what_is_wrong_with_the_line(words: list[str], told: bytes, folder: Path, capfdbinary: Captured) -> None:
    assert main(["checksum", *NAMES, "--to", "sums"]) == 0
    assert main(words) == 2
    assert told in capfdbinary.readouterr().err
