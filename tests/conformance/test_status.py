"""progress --status-fd: JSON lines that tell the truth, and a reader who cannot stop the data."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statepipe.pipeline.statuslines import StatusLines, line_of
from tests.conformance.running import PATIENCE, STATEPIPE, run, started, stop

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


@pytest.mark.parametrize("words", ["tee:/none/x", "verify:from=/none", "external:/none"])
def test_a_failure_before_the_beginning_has_the_same_keys(words: str, tmp_path: Path) -> None:
    _, whole, _ = shell(tmp_path, "progress:status-fd=FD")
    code, lines, _ = shell(tmp_path, f"progress:status-fd=FD {words}")
    assert code == 1 and lines[-1].keys() == whole[-1].keys() | {"error"}


@pytest.mark.parametrize(("words", "ratio"), [("progress compress", None), ("compress progress", "ratio 1.0")])
def test_a_ratio_is_told_once_it_is_true(words: str, ratio: str | None) -> None:
    """What a codec has taken and not put out yet is no part of it."""
    said = run("pipe", *words.split(), data=os.urandom(500 << 10)).stderr.decode()
    assert ("ratio" not in said) if ratio is None else (ratio in said)


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


def test_a_reader_that_is_gone_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("pipe", f"progress:status-fd={writing}", data=DATA, pass_fds=[writing])
        assert (done.returncode, done.stdout) == (0, DATA)
    finally:
        os.close(writing)


def fill(fd: int) -> None:
    """Until it takes nothing more."""
    os.set_blocking(fd, False)
    for size in (65536, 1):
        with suppress(BlockingIOError):
            while os.write(fd, b"\n" * size):
                continue
    os.set_blocking(fd, True)


@contextmanager
def waiting_to_tell() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command that has done all, but for its verdict: somebody else has filled the pipe. And the pipe's other end."""
    reading, writing = os.pipe()
    try:
        fill(writing)
        with started([*STATEPIPE, "pipe", f"progress:status-fd={writing}"], pass_fds=[writing]) as process:
            os.close(writing)
            process.stdin.write(b"data")
            process.stdin.close()
            assert process.stdout.read(4) == b"data"
            with pytest.raises(subprocess.TimeoutExpired):  # a slow machine makes this no shorter
                process.wait(3)
            yield process, reading
    finally:
        with suppress(OSError):
            os.close(reading)


def test_the_verdict_waits_for_a_late_reader() -> None:
    with waiting_to_tell() as (process, reading):
        with open(os.dup(reading), "rb") as file:
            lines = [line for line in file if line.strip()]
        assert json.loads(lines[-1])["verdict"] == "done"
        assert process.wait(PATIENCE) == 0


def test_a_signal_ends_the_wait_of_a_verdict_and_does_not_deny_it() -> None:
    with waiting_to_tell() as (process, _):
        assert stop(process, signal.SIGTERM)[0] == 0


def test_a_reader_that_leaves_ends_the_wait_of_a_verdict() -> None:
    with waiting_to_tell() as (process, reading):
        os.close(reading)
        assert process.wait(PATIENCE) == 0


def ends(kind: str) -> tuple[int, int]:
    """Two descriptors: what is written to the second comes out of the first."""
    if kind == "terminal":
        master, slave = os.openpty()
        tty.setraw(slave)
        return master, slave
    if kind == "socket":
        one, other = socket.socketpair()
        return one.detach(), other.detach()
    return os.pipe()


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
@pytest.mark.parametrize("waits", [True, False])
def test_the_verdict_of_a_failure_that_says_much_comes_whole_and_last(kind: str, waits: bool) -> None:
    reading, writing = ends(kind)
    try:
        os.set_blocking(writing, waits)  # as whoever shares it may have done
        done = run("pipe", f"progress:status-fd={writing}", "tee:/" + "long/" * 20000, data=DATA, pass_fds=[writing])
        last = os.read(reading, 65536).splitlines(keepends=True)[-1]
        assert os.get_blocking(writing) == waits
    finally:
        os.close(reading)
        os.close(writing)
    told = json.loads(last)
    assert done.returncode == 1 and told["verdict"] == "failed" and last.endswith(b"\n") and len(last) <= 4096
    assert told["error"].endswith("…") and told["error"][:-1] in done.stderr.decode()


@pytest.mark.parametrize("kind", ["pipe", "one page", "socket"])
def test_lines_that_nobody_reads_leave_room_for_the_verdict(kind: str) -> None:
    reading, writing = ends(kind)
    if kind == "one page":
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    report = StatusLines(writing, lambda: {"figures": "x" * 1000})
    os.close(writing)
    told: list[bytes] = []

    def read() -> None:
        with open(reading, "rb") as file:
            told.extend(file)

    reader = threading.Thread(target=read, daemon=True)
    for number in range(300):
        report.tell({"state": number, "why": "y" * 500})
    if kind == "pipe":
        report.close(None)
        reader.start()
    else:  # it has room for no more than what is unread: the verdict waits
        reader.start()
        report.close(None)
    reader.join(PATIENCE)
    assert json.loads(told[-1])["verdict"] == "done"
    steps = [json.loads(line)["step"]["state"] for line in told[:-1]]
    assert steps == list(range(len(steps))) and 1 <= len(steps) < 300


def test_lines_of_two_jobs_never_mix() -> None:
    reading, writing = os.pipe()
    reports = [StatusLines(writing, dict) for _ in range(2)]
    os.close(writing)

    def work(report: StatusLines, size: int) -> None:
        for _ in range(300):
            report.tell({"state": "x" * size, "more": ["y"] * 500})
        report.close(None)

    workers = [
        threading.Thread(target=work, args=(report, 200 + 37 * n), daemon=True) for n, report in enumerate(reports)
    ]
    for worker in workers:
        worker.start()
    with open(reading, "rb") as file:
        lines = [json.loads(line) for line in file]
    for worker in workers:
        worker.join(PATIENCE)
    assert sum("verdict" in line for line in lines) == 2


def test_a_line_keeps_what_matters_when_it_has_to_be_short() -> None:
    stages = [{"name": "x" * 100} for _ in range(100)]
    line = line_of({"pid": 1, "verb": "save", "what": "/a" * 4000, "stages": stages, "verdict": "done", "seconds": 3})
    told = json.loads(line)
    assert len(line) <= 4096 and told.pop("time") > 0
    assert told == {"pid": 1, "verb": "save", "verdict": "done", "seconds": 3, "shortened": True}


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


@pytest.mark.parametrize(
    ("fd", "words"),
    [
        ("9", "not open"),
        ("0", "cannot write the status"),
        ("x", "is not a descriptor"),
        ("\uff14", "is not a descriptor"),
    ],
)
def test_a_descriptor_that_is_none_is_a_slip(fd: str, words: str) -> None:
    done = run("progress", "--status-fd", fd, data=DATA)
    assert (done.returncode, done.stdout, words in done.stderr.decode()) == (2, b"", True), done.stderr
