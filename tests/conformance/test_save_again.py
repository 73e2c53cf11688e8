"""A stream that was saved with a return path is saved again, out of a file or a pipe: nobody waits for its answer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.hurried import hurried
from tests.qemu.harness import PATIENCE, run_statepipe, statepipe_command
from tests.statefiles import load
from tests.streams import command, whole

STREAM = whole()
assert command(1) in STREAM, "it opens its return path"


def assert_saved(file: Path) -> None:
    assert run_statepipe("verify-state", file).returncode == 0
    assert load(file).data == STREAM


def save(
    file: Path, statepipe: Sequence[str] = tuple(statepipe_command()), **ends: Any
) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | ends
    return warm.run([*statepipe, "save", file], text=True, timeout=PATIENCE, **options)


@contextmanager
def poured(data: bytes) -> Iterator[int]:
    """The reading end of a pipe that another program pours the data into."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin and cat.stdout
        cat.stdin.write(data)
        cat.stdin.close()
        yield cat.stdout.fileno()


def test_out_of_a_file(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(STREAM)
    with raw.open("rb") as given:
        done = save(tmp_path / "state", stdin=given, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert_saved(tmp_path / "state")


def test_out_of_a_pipe_beside_a_terminal(tmp_path: Path) -> None:
    master, terminal = os.openpty()
    try:
        with poured(STREAM) as given:
            done = save(tmp_path / "state", stdin=given, stdout=terminal)
        assert done.returncode == 0, done.stderr
    finally:
        os.close(master)
        os.close(terminal)
    assert_saved(tmp_path / "state")


@pytest.mark.parametrize("stdout", ["file", "nowhere", "the log"])
def test_out_of_a_pipe_where_nobody_hears_an_answer(tmp_path: Path, stdout: str) -> None:
    log = tmp_path / "log"
    with poured(STREAM) as given, log.open("w") as file:
        ends: dict[str, dict[str, Any]] = {
            "file": {"stdout": file},
            "nowhere": {"stdout": subprocess.DEVNULL},
            "the log": {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        }
        done = save(tmp_path / "state", stdin=given, **ends[stdout])
    assert done.returncode == 0, done.stderr
    assert log.read_text() == ""
    assert not done.stdout or done.stdout.startswith("statepipe: ")
    assert_saved(tmp_path / "state")


def test_cut_or_longer_than_its_end_it_is_refused(tmp_path: Path) -> None:
    for data in (STREAM[:-1], STREAM + b"more"):
        with poured(data) as given:
            assert save(tmp_path / "state", stdin=given).returncode == 3
        assert not (tmp_path / "state").exists()


def test_an_end_before_a_reader_was_answered_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Beside another pipe it may be a QEMU whose migration was cancelled at the last moment."""
    with poured(STREAM) as given:
        done = save(tmp_path / "state", stdin=given, stdout=subprocess.PIPE)
    assert done.returncode == 3
    assert "/dev/null" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_source_that_waits_for_an_answer_that_cannot_come_is_told(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, STREAM)
        done = save(tmp_path / "state", hurried("state.saving.MUTE=1"), stdin=reading)
        assert done.returncode == 1
        assert "QEMU waits for an answer" in done.stderr
        assert not (tmp_path / "state").exists()
    finally:
        os.close(reading)
        os.close(writing)
