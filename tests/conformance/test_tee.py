"""tee: the copy exists only if it is whole, and what follows if it cannot be is as was asked."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from statepipe.ends.file import FileSink
from statepipe.errors import IntegrityError, InterruptedBySignal, StatepipeError
from statepipe.stage import FLUSH, Buffer, close
from statepipe.stages.tee import tee
from tests.conformance.running import PATIENCE, STATEPIPE, assert_one_error, run, started, stop, wait_until_read

DATA = bytes(range(256)) * 8000


def test_the_copy_is_the_stream(tmp_path: Path) -> None:
    done = run("tee", str(tmp_path / "copy"), data=DATA)
    assert (done.returncode, done.stdout, done.stderr) == (0, DATA, b"")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert os.stat(tmp_path / "copy").st_mode & 0o777 == 0o600


def test_a_copy_that_is_there_is_replaced_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"older")
    assert run("tee", str(tmp_path / "copy"), data=DATA).stdout == DATA
    assert (tmp_path / "copy").read_bytes() == DATA


def test_an_empty_stream_is_an_empty_file(tmp_path: Path) -> None:
    assert run("tee", str(tmp_path / "copy")).returncode == 0
    assert (tmp_path / "copy").read_bytes() == b""


def test_two_copies_of_two_things(tmp_path: Path) -> None:
    words = [f"tee:{tmp_path}/plain", "compress", f"tee:{tmp_path}/packed"]
    done = run("pipe", *words, data=DATA)
    assert done.returncode == 0
    assert (tmp_path / "plain").read_bytes() == DATA
    assert (tmp_path / "packed").read_bytes() == done.stdout


def test_a_signal_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"older")
    with started([*STATEPIPE, "tee", "--on-error", "warn", str(tmp_path / "copy")]) as process:
        assert process.stdin
        process.stdin.write(DATA[:1000])
        wait_until_read(process)
        status, said = stop(process, signal.SIGTERM)
    assert status == 143
    assert_one_error(said, "tee", "stopped by SIGTERM")
    assert os.listdir(tmp_path) == ["copy"]
    assert (tmp_path / "copy").read_bytes() == b"older"


def test_a_reader_that_leaves_is_no_clean_end(tmp_path: Path) -> None:
    with started([*STATEPIPE, "tee", str(tmp_path / "copy")]) as process:
        assert process.stdin and process.stdout
        process.stdout.close()
        process.stdin.write(b"data")
        assert process.wait(PATIENCE) == 141
    assert os.listdir(tmp_path) == []


def limited(limit: int, *words: str) -> list[str]:
    """A command whose files may not grow beyond `limit` KiB: the nearest thing to a full disk."""
    return ["/bin/bash", "-c", f'trap "" XFSZ; ulimit -f {limit}; exec "$@"', "bash", *STATEPIPE, *words]


@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_a_disk_that_is_full(policy: str, tmp_path: Path) -> None:
    with started(limited(1000, "tee", "--on-error", policy, str(tmp_path / "copy"))) as process:
        out, said = process.communicate(DATA, PATIENCE)
    assert os.listdir(tmp_path) == []
    if policy == "fail":
        assert process.returncode == 1
        assert_one_error(said, "tee", f"cannot write {tmp_path}/copy at byte", "File too large")
        assert len(out) < len(DATA)
    else:
        assert (process.returncode, out) == (0, DATA)
        assert said.decode().startswith(f"statepipe: warning: the copy is abandoned: cannot write {tmp_path}/copy")
        assert said.count(b"\n") == 1


@pytest.mark.parametrize("kind", ["fifo", "/dev/null", "folder", "missing/copy"])
def test_what_cannot_be_a_copy(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mkdir(tmp_path / "folder")
    path = str(tmp_path / kind)
    refused = run("tee", path, data=DATA)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert_one_error(refused.stderr, "tee", path)
    warned = run("tee", "--on-error=warn", path, data=DATA)
    assert (warned.returncode, warned.stdout, warned.stderr.count(b"\n")) == (0, DATA, 1)
    assert set(os.listdir(tmp_path)) == {"fifo", "folder"}


def test_a_failure_above_leaves_no_copy(tmp_path: Path) -> None:
    def source() -> Iterator[Buffer]:
        yield DATA
        yield FLUSH
        raise IntegrityError("it is corrupt")

    flow = tee(str(tmp_path / "copy"), FileSink)(source())
    assert (next(flow), next(flow)) == (DATA, FLUSH)
    with pytest.raises(IntegrityError):
        next(flow)
    assert os.listdir(tmp_path) == []


class Interrupted(FileSink):
    """A file during whose writing a signal comes."""

    def write(self, buffer: Buffer) -> None:
        raise InterruptedBySignal(signal.SIGINT)


class Unfinished(FileSink):
    """A file that cannot be completed."""

    def commit(self) -> None:
        raise StatepipeError("the disk has gone")


def test_a_signal_is_no_failure_of_the_copy(tmp_path: Path) -> None:
    said: list[str] = []
    flow = tee(str(tmp_path / "copy"), Interrupted, said.append)(iter([DATA]))
    with pytest.raises(InterruptedBySignal):
        next(flow)
    close(flow)
    assert said == [] and os.listdir(tmp_path) == []


def test_a_copy_that_cannot_be_completed(tmp_path: Path) -> None:
    said: list[str] = []
    assert list(tee(str(tmp_path / "copy"), Unfinished, said.append)(iter([DATA]))) == [DATA]
    assert said == ["the copy is abandoned: the disk has gone"]
    with pytest.raises(StatepipeError, match="the disk has gone"):
        list(tee(str(tmp_path / "copy"), Unfinished)(iter([DATA])))
    assert os.listdir(tmp_path) == []
