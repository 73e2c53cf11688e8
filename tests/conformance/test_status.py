"""progress --status-fd: JSON lines that tell the truth, and a reader who cannot stop the data."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.running import STATEPIPE, run, started, stop

DATA = bytes(range(256)) * 4096


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shell(tmp_path: Path, words: str, data: bytes = DATA) -> tuple[int, list[dict[str, Any]], bytes]:
    """Status, lines and standard error of `pipe` with descriptor 3 open to a file."""
    status = tmp_path / "status"
    with open(status, "wb") as file:
        os.set_inheritable(file.fileno(), True)
        command = words.replace("FD", str(file.fileno()))
        done = run("pipe", *shlex.split(command), data=data, pass_fds=[file.fileno()])
    return done.returncode, told(status), done.stderr


def test_the_last_line_is_the_verdict(tmp_path: Path) -> None:
    code, lines, _ = shell(tmp_path, "compress progress:status-fd=FD")
    assert code == 0 and lines[-1]["verdict"] == "done"
    assert [stage["name"] for stage in lines[-1]["stages"]] == ["compress", "progress"]
    assert lines[-1]["bytes_in"] == lines[-1]["stages"][0]["in"] == len(DATA)
    assert lines[-1]["bytes_out"] == lines[-1]["stages"][1]["out"] > 0
    assert {"time", "pid", "verb", "seconds"} <= set(lines[-1])
    assert {"rate", "average", "eta", "eta_from"} <= set(lines[-1]["stages"][1])
    assert not any("verdict" in line for line in lines[:-1])


def test_a_failure_is_told_with_its_reason(tmp_path: Path) -> None:
    code, lines, said = shell(tmp_path, "progress:status-fd=FD decompress")
    assert (code, lines[-1]["verdict"]) == (3, "failed")
    assert lines[-1]["error"] in said.decode()


def test_the_size_of_a_file_gives_the_time_left(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DATA * 40)
    status = tmp_path / "status"
    with open(tmp_path / "in", "rb") as source, open(status, "wb") as file:
        words = [f"progress:status-fd={file.fileno()}", "throttle:20M"]
        done = run("pipe", *words, stdin=source, pass_fds=[file.fileno()])
    assert done.returncode == 0
    etas = [line["stages"][0]["eta"] for line in told(status)[:-1] if line["bytes_in"]]
    assert etas and all(line["stages"][0]["eta_from"] == "size" for line in told(status) if line["bytes_in"])
    assert told(status)[-1]["stages"][0]["eta"] == 0


@pytest.mark.parametrize("reader", ["gone", "silent"])
def test_a_reader_that_does_not_read_stops_nothing(reader: str) -> None:
    reading, writing = os.pipe()
    try:
        if reader == "gone":
            os.close(reading)
        else:
            os.set_blocking(writing, False)
            try:
                while os.write(writing, bytes(65536)):
                    continue
            except BlockingIOError:
                os.set_blocking(writing, True)
        done = run("pipe", f"progress:status-fd={writing}", data=DATA, pass_fds=[writing])
        assert (done.returncode, done.stdout) == (0, DATA)
    finally:
        os.close(writing)
        if reader != "gone":
            os.close(reading)


def test_lines_go_on_while_nothing_flows() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as lines:
        command = [*STATEPIPE, "pipe", f"progress:status-fd={writing}"]
        with started(command, pass_fds=[writing]) as process:
            os.close(writing)
            first, second = (json.loads(lines.readline()) for _ in range(2))
            assert second["seconds"] > first["seconds"] and second["bytes_in"] == 0
            status, _ = stop(process, signal.SIGTERM)
            assert status == 143
            assert json.loads(lines.readlines()[-1])["verdict"] == "failed"


@pytest.mark.parametrize(("fd", "words"), [("9", "not open"), ("0", "not one to write"), ("x", "is not a descriptor")])
def test_a_descriptor_that_is_none_is_a_slip(fd: str, words: str) -> None:
    done = run("progress", "--status-fd", fd, data=DATA)
    assert (done.returncode, done.stdout, words in done.stderr.decode()) == (2, b"", True), done.stderr
