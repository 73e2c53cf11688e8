"""What the server starts is a process like any other: nothing tells it from one that was started afresh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

STATEPIPE = (sys.executable, "-m", "statepipe")


def is_warm(process: warm.Popen) -> bool:
    """Whether /proc tells of the server's own start."""
    return b"warm.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes()


def test_it_is_a_child_of_ours_with_its_own_folder_environment_and_descriptors(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    words = ["pipe", "compress", "decompress", f"progress:status-fd={writing}", "tee:copy", "external:shell=cat; env"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with warm.Popen(
        [*STATEPIPE, *words], cwd=tmp_path, env=os.environ | {"MARK": "é"}, pass_fds=[writing], **pipes
    ) as process:
        os.close(writing)
        assert is_warm(process)
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert int(status["PPid"]) == os.getpid() and os.getpgid(process.pid) == os.getpgid(0)
        assert {os.readlink(f"/proc/{process.pid}/fd/{n}")[:5] for n in range(3)} == {"pipe:"}
        out, _ = process.communicate(b"data")
    assert "MARK=é" in out.decode().splitlines()
    assert (tmp_path / "copy").read_bytes() == b"data"
    with os.fdopen(reading) as told:
        assert told.read().splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    with warm.Popen([*STATEPIPE, "compress"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=-1) as process:
        assert process.stdout and process.stdin
        process.stdout.read(1)  # it is at work
        process.send_signal(number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 128 + number)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (STATEPIPE, {"fresh": True}),
        (STATEPIPE, {"env": os.environ | {"PYTHONUTF8": "1"}}),
        (STATEPIPE, {"umask": 0o77}),
        (["sh", "-c", 'exec "$@"', "sh", *STATEPIPE], {}),
    ],
)
def test_what_the_server_is_not_for_starts_as_always(command: list[str], options: dict[str, object]) -> None:
    with warm.Popen([*command, "compress"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, **options) as process:
        assert not is_warm(process)


def test_a_limit_of_ours_is_not_the_servers() -> None:
    """It was started before: so the program starts afresh, under the limit."""
    warm.run([*STATEPIPE, "--version"], stdout=subprocess.DEVNULL)
    before = os.umask(0o77)
    try:
        with warm.Popen([*STATEPIPE, "compress"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            assert not is_warm(process)
    finally:
        os.umask(before)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("fd", "status", "word"), [(0, 2, b"is not open for reading"), (1, 1, b"Bad file descriptor"), (2, 3, b"")]
)
def test_a_descriptor_is_closed(fd: int, status: int, word: bytes, fresh: bool) -> None:
    """The two that data goes through cannot be used; into the third goes no word of the failure."""
    words = ["decompress" if fd == 2 else "compress"]
    with open("/proc/version", "rb") as file:
        done = warm.run([*STATEPIPE, *words], stdin=file, capture_output=True, fresh=fresh, closed=fd)
    assert done.returncode == status
    assert word in done.stderr and bool(word) is bool(done.stderr)


def test_run_is_that_of_subprocess() -> None:
    done = warm.run([*STATEPIPE, "decompress"], input="none", capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout == "" and done.stderr.startswith("statepipe: decompress: error: ")
    with pytest.raises(subprocess.CalledProcessError):
        warm.run([*STATEPIPE, "no-verb"], check=True, stderr=subprocess.DEVNULL)
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing), pytest.raises(subprocess.TimeoutExpired):
        warm.run([*STATEPIPE, "compress"], stdin=reading, stdout=subprocess.DEVNULL, timeout=0.2)
