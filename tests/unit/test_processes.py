"""What a short program writes is read to its end, and one that takes too long is ended with all that it started."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from statepipe.processes import Unavailable, lines_in, output_of, outputs_of, read_lines


def test_what_it_writes_and_how_it_ended_are_known() -> None:
    assert output_of(["sh", "-c", "cat; echo heard; echo lost >&2; exit 3"], 10) == (3, b"heard\n")


def test_one_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    with open(os.open(held, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reading:
        with pytest.raises(Unavailable, match=r"sh took more than 0.2 s"):
            output_of(["sh", "-c", f"exec 3>{held}; echo begun >&3; sleep 60 & exec sleep 60"], 0.2)
        os.set_blocking(reading.fileno(), True)
        assert reading.readall() == b"begun\n"  # its end: nobody holds it open any more


def test_one_that_closes_its_output_and_stays_is_ended_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"took more than 0\.2 s"):
        output_of(["sh", "-c", "echo v; exec >&-; exec sleep 1000"], 0.2)
    assert time.monotonic() - began < 100


def test_one_that_does_not_exist_is_named() -> None:
    with pytest.raises(Unavailable, match="cannot start no-such-program") as raised:
        output_of(["no-such-program"], 10)
    assert raised.value.hint == "is no-such-program installed, in a folder of your PATH?"


def test_a_program_that_writes_without_end_is_ended() -> None:
    with pytest.raises(Unavailable, match="yes wrote more than 65536 bytes"):
        output_of(["yes"], 10, 1 << 16)


SEPARATORS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""What str.splitlines() takes for the end of a line, too; in a name it is none."""


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    assert lines_in(f"a{SEPARATORS}b\n\nc\n") == [f"a{SEPARATORS}b", "c"] and lines_in("") == []
    (tmp_path / "file").write_bytes(f"a{SEPARATORS}b\nc".encode() + b"\xff\n")
    assert read_lines(str(tmp_path / "file"), "surrogateescape") == [f"a{SEPARATORS}b", "c\udcff"]


def test_its_errors_are_apart() -> None:
    script = "echo heard; echo lost >&2; head -c 200000 /dev/zero >&2; echo more; exit 3"
    status, output, errors = outputs_of(["sh", "-c", script], "it", 10)
    assert (status, output, errors[:5], len(errors)) == (3, b"heard\nmore\n", b"lost\n", 200_005)


@pytest.mark.parametrize(
    ("script", "within", "told"), [("exec sleep 60", 0.2, "it took more than 0.2 s"), ("yes >&2", 10, "it wrote more")]
)
def test_it_is_called_by_its_name(script: str, within: float, told: str) -> None:
    with pytest.raises(Unavailable, match=told):
        outputs_of(["sh", "-c", script], "it", within, 1 << 16)
