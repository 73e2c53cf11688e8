"""ps, rate, cancel and SIGUSR1 against statepipes that run: blocked in a read, in a write, in QEMU's place."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.conformance.running import (
    PATIENCE,
    STATEPIPE,
    STREAM,
    assert_one_error,
    run,
    started,
    stop,
    wait,
    wait_until_full,
    wait_until_read,
)
from tests.hurried import hurried

Process = subprocess.Popen[bytes]


@contextmanager
def reading(*words: str, data: bytes = b"data", **options: Any) -> Iterator[Process]:
    """A statepipe that waits for more input, with its name in place."""
    with started([*STATEPIPE, *words], **options) as process:
        assert process.stdin
        process.stdin.write(data)
        wait_until_read(process)
        wait(process, lambda: socket_of(process).exists())
        yield process


@contextmanager
def writing(*words: str) -> Iterator[Process]:
    """A statepipe whose reader takes nothing: the main thread is blocked in write."""
    with open("/dev/zero", "rb") as zeros, started([*STATEPIPE, *words], stdin=zeros) as process:
        wait_until_full(process, 1 << 20)
        yield process


def socket_of(process: Process) -> Path:
    return Path(os.environ["XDG_RUNTIME_DIR"], "statepipe", str(process.pid))


def listed(statepipe: Sequence[str] = STATEPIPE) -> dict[str, Any]:
    done = warm.run([*statepipe, "ps", "--json"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return {row["id"]: row for row in json.loads(done.stdout)}


def test_ps_shows_nothing_where_nothing_runs() -> None:
    done = run("ps")
    assert (done.stdout.split(), done.returncode) == (b"ID VERB TIME IN OUT RATE WHAT STAGES".split(), 0)


def test_ps_shows_what_each_is_at(tmp_path: Path) -> None:
    vm1 = str(tmp_path / "vm1.state")
    with reading("pipe", "checksum:md5", "compress:zstd:3") as pipe, reading("save", vm1, data=STREAM[:-1]) as save:
        rows = listed()
        assert set(rows) == {str(pipe.pid), str(save.pid)}
        row = rows[str(pipe.pid)]
        assert (row["pid"], row["verb"], row["what"], row["bytes_in"]) == (pipe.pid, "pipe", "", 4)
        assert row["stages"][0] == {"name": "checksum", "in": 4, "out": 4}
        assert rows[str(save.pid)]["what"] == vm1
        lines = run("ps").stdout.decode().splitlines()
    line = next(line.split() for line in lines if line.startswith(str(pipe.pid)))
    assert (line[1], line[3:5], line[-2:]) == ("pipe", ["4", "B"], ["checksum", "compress"])
    assert f" {vm1}  compress" in "".join(lines)


def test_watch_goes_on_until_it_is_interrupted() -> None:
    with reading("compress") as job, started([*STATEPIPE, "ps", "--watch", "0.1", "--json"]) as watch:
        assert watch.stdout
        for _ in range(3):
            assert json.loads(watch.stdout.readline())[0]["id"] == str(job.pid)
        assert stop(watch, signal.SIGINT)[0] == 130


@pytest.mark.parametrize("words", [("ps", "3"), ("ps", "--watch", "x"), ("ps", "--watch", "0"), ("rate", "1", "x")])
def test_usage(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert_one_error(done.stderr, words[0])


@pytest.mark.parametrize("where", [reading, writing])
def test_cancel_ends_it_and_returns_then(where: Any) -> None:
    with where("checksum") as job:
        path = socket_of(job)
        done = run("cancel", str(job.pid))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert job.poll() == 143
        assert job.stderr
        assert_one_error(job.stderr.read(), "checksum", "cancelled by statepipe cancel")
        assert not path.exists()


def test_cancel_undoes_a_save(tmp_path: Path) -> None:
    with started([*STATEPIPE, "save", str(tmp_path / "vm1.state")]) as job:
        assert job.stdin
        job.stdin.write(STREAM[:-1])
        wait_until_read(job)
        wait(job, lambda: socket_of(job).exists())
        assert run("cancel", str(job.pid)).returncode == 0
        assert job.wait(PATIENCE) == 143
    assert os.listdir(tmp_path) == []


def test_cancel_of_one_that_ignores_sigterm() -> None:
    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    with reading("compress", preexec_fn=deaf) as job:
        done = run("cancel", str(job.pid))
        assert done.returncode == 1
        assert_one_error(done.stderr, "cancel", "it was started with SIGTERM ignored")
        assert str(job.pid) in listed()


@pytest.mark.parametrize("job", ["4194304", "0", "../../etc/passwd", "x", "-5", "1-1000"])
def test_an_unknown_id(job: str) -> None:
    for words in (("cancel", job), ("rate", job, "5M")):
        done = run(words[0], "--", *words[1:])
        assert done.returncode == 1
        assert_one_error(done.stderr, words[0], f"no running statepipe of yours has the ID '{job}'")
        assert b"hint: see: statepipe ps" in done.stderr


def test_a_rate_for_one_without_throttle() -> None:
    with reading("compress") as job:
        done = run("rate", str(job.pid), "5M")
        assert done.returncode == 1
        assert_one_error(done.stderr, "rate", f"{job.pid} says: there is no throttle in this pipeline")
        assert b"hint: start it with the word throttle:RATE" in done.stderr


def test_what_a_killed_one_left_is_taken_away() -> None:
    with reading("compress") as job:
        path = socket_of(job)
        job.kill()
        job.wait()
        assert path.exists()
        assert listed() == {}
        assert not path.exists()


def test_one_that_is_stopped_does_not_keep_ps_waiting_for_ever() -> None:
    with reading("compress") as job, reading("compress") as other:
        job.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, job.pid, os.WSTOPPED)
        soon = hurried("pipeline.jobs.ANSWER_TIME=2")
        rows = listed(soon)
        assert rows[str(job.pid)] == {"id": str(job.pid), "error": "does not answer"}
        assert rows[str(other.pid)]["verb"] == "compress"
        assert f"{job.pid}  ?".encode() in subprocess.run([*soon, "ps"], capture_output=True).stdout
        done = subprocess.run([*soon, "cancel", str(job.pid)], capture_output=True)
        assert_one_error(done.stderr, "cancel", f"{job.pid} does not answer")
        assert f"kill -CONT {job.pid}".encode() in done.stderr
        job.send_signal(signal.SIGCONT)


def test_many_start_at_once(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    jobs = [warm.Popen([*STATEPIPE, "compress"], **pipes) for _ in range(12)]
    try:
        for job in jobs:
            wait(job, lambda job=job: socket_of(job).exists())
        assert set(listed()) == {str(job.pid) for job in jobs}
    finally:
        for job in jobs:
            job.communicate(b"")
    assert [job.returncode for job in jobs] == [0] * 12
    assert os.listdir(runtime) == []


def test_a_folder_that_cannot_be_used_is_no_reason_to_fail(runtime: Path) -> None:
    runtime.write_text("a file stands in the way")
    done = run("compress", data=b"data")
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("ps")
    assert done.returncode == 1
    assert_one_error(done.stderr, "ps", "cannot use the runtime folder", "Not a directory")


def test_a_person_is_told_why_ps_will_not_show_it(runtime: Path) -> None:
    runtime.write_text("a file stands in the way")
    ours, theirs = pty.openpty()
    try:
        assert run("compress", data=b"data", stderr=theirs).returncode == 0
        assert b"warning: 'statepipe ps' will not show this: Not a directory" in os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)


def test_clients_of_all_kinds_do_not_touch_the_data() -> None:
    noise = os.urandom(8 << 20)
    done = threading.Event()

    def pester(path: Path) -> None:
        while not done.is_set():
            for part in (b"", b"garbage\n", b'{"do": "status"}\n', b'{"do":', bytes(1 << 16)):
                with socket.socket(socket.AF_UNIX) as client:
                    try:
                        client.connect(str(path))
                        client.sendall(part)
                    except OSError:  # it has ended, or had enough
                        continue

    with reading("pipe", "compress", "decompress") as job:
        thread = threading.Thread(target=pester, args=(socket_of(job),))
        thread.start()
        out, said = job.communicate(noise)
        done.set()
        thread.join()
        assert (job.returncode, out, said) == (0, b"data" + noise, b"")


# --- SIGUSR1


def said_of(process: Process) -> bytes:
    """The next line on its standard error."""
    assert process.stderr
    line: bytes = process.stderr.readline()
    return line


@pytest.mark.parametrize("where", [reading, writing])
def test_sigusr1_tells_how_far_it_is(where: Any) -> None:
    with where("checksum") as job:
        for _ in range(3):
            job.send_signal(signal.SIGUSR1)
            line = said_of(job)
            assert line.startswith(b"statepipe: checksum: 0:00:0") and b" in, " in line and b"; checksum " in line
        assert stop(job, signal.SIGTERM)[0] == 143


def test_sigusr1_does_not_disturb_the_data() -> None:
    noise = os.urandom(16 << 20)
    with started([*STATEPIPE, "pipe", "compress", "decompress"]) as job:
        assert job.stdin and job.stdout
        wait(job, lambda: socket_of(job).exists())
        feeder = threading.Thread(target=lambda: (job.stdin.write(noise), job.stdin.close()))
        feeder.start()
        out = bytearray()
        while part := job.stdout.read(1 << 20):
            out += part
            job.send_signal(signal.SIGUSR1)
        feeder.join()
        assert job.wait(PATIENCE) == 0
        assert out == noise
        assert job.stderr
        told = re.compile(rb"statepipe: (pipe: (0:00:..*|no bytes are being transferred now)|starting: no .*)")
        lines = job.stderr.read().splitlines()
        assert lines and all(told.fullmatch(line) for line in lines)
        job.stdin = None


def test_sigusr1_waits_for_nobody_who_reads_no_messages() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    try:
        with pytest.raises(BlockingIOError):
            while True:
                os.write(theirs, bytes(4096))
        os.set_blocking(theirs, True)
        with reading("compress", stderr=theirs) as job:
            job.send_signal(signal.SIGUSR1)
            out, _ = job.communicate(b"")
        assert job.returncode == 0 and out
    finally:
        os.close(ours)
        os.close(theirs)
