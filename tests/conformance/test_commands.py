"""What every filter must do as a process: how it ends, what it says, and what it leaves."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import socket
import subprocess
from functools import cache
from pathlib import Path

import pytest

from statepipe.cli.filtertable import find
from tests.conformance.adapters import ADAPTERS, filter_of, thinned
from tests.conformance.running import (
    PATIENCE,
    STATEPIPE,
    assert_one_error,
    children,
    run,
    started,
    stop,
    wait_until_full,
    wait_until_read,
)

NAMES = [name for name in ADAPTERS if not (find(filter_of(name)).is_first or find(filter_of(name)).is_last)]
"""Those that read what comes in and write what goes out: `get` and `put` are struck in tests/object."""

every_filter = pytest.mark.parametrize("name", NAMES)

NOISE = hashlib.shake_128(b"commands").digest(3 << 20)
HALF_THIN = NOISE[: 3 << 19] + thinned(NOISE[3 << 19 :])

BAR = re.compile(rb"[^\n]*\r[^\n]*\n?|^progress: [^\n]*\n", re.MULTILINE)
"""What progress shows: a bar that is drawn over itself, or lines."""


def plain(name: str) -> bytes:
    """Three mebibytes; a slow filter is soon through with most of them, and still has more to say than a pipe holds."""
    return HALF_THIN if ADAPTERS[name].slow else NOISE


@cache
def fed(name: str) -> bytes:
    """The filter's input for them."""
    return ADAPTERS[name].feed(plain(name))


def command(name: str) -> list[str]:
    return [filter_of(name), *ADAPTERS[name].arguments(plain(name))]


def without_bar(said: bytes) -> bytes:
    return BAR.sub(b"", said)


@every_filter
def test_it_succeeds_quietly(name: str) -> None:
    done = run(*command(name), data=fed(name))
    assert done.returncode == 0
    assert ADAPTERS[name].undo(done.stdout) == plain(name)
    assert ADAPTERS[name].speaks or not done.stderr


@every_filter
def test_from_file_to_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(fed(name))
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        assert run(*command(name), stdin=source, stdout=sink).returncode == 0
    assert ADAPTERS[name].undo((tmp_path / "out").read_bytes()) == plain(name)


@every_filter
def test_descriptors_that_do_not_block(name: str, tmp_path: Path) -> None:
    """Sockets, as from a server, whose other side is slow: read and write give up, and are tried again."""
    (tmp_path / "fed").write_bytes(fed(name))
    source, feeder = socket.socketpair()
    sink, reader = socket.socketpair()
    source.setblocking(False)
    sink.setblocking(False)
    with reader, started([*STATEPIPE, *command(name)], stdin=source, stdout=sink) as process:
        source.close()
        sink.close()
        with started(["dd", f"if={tmp_path}/fed", "bs=5000"], stdin=None, stdout=feeder):
            feeder.close()
            out = b"".join(iter(lambda: reader.recv(7000), b""))
        assert process.wait(PATIENCE) == 0
    assert ADAPTERS[name].undo(out) == plain(name)


@every_filter
def test_a_producer_that_is_killed_is_an_end_of_file(name: str, tmp_path: Path) -> None:
    """QEMU and every pipe see the same: what was complete stays complete, what was cut is found to be."""
    for data, whole in ((fed(name), True), (fed(name)[:-1], False)):
        (tmp_path / "fed").write_bytes(data)
        producer = ["/bin/sh", "-c", 'cat "$0"; kill -9 $$', tmp_path / "fed"]
        with started(producer, stdin=None) as killed:
            done = run(*command(name), stdin=killed.stdout)
            assert killed.wait(PATIENCE) == -signal.SIGKILL
        assert done.returncode == (0 if whole or filter_of(name) not in ("decompress", "verify", "decrypt") else 3)


@every_filter
def test_a_consumer_that_dies_ends_it_quietly(name: str) -> None:
    with started([*STATEPIPE, *command(name)], stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        feeder = ["/bin/sh", "-c", "cat"]
        with started(feeder, stdin=subprocess.PIPE, stdout=process.stdin) as cat:
            assert cat.stdin
            process.stdin.close()
            cat.stdin.write(fed(name)[: 300 << 10])
            if filter_of(name) == "decompress":
                process.stdout.read(1)
            process.stdout.close()
            try:
                cat.stdin.write(fed(name)[300 << 10 :])
                cat.stdin.close()
            except BrokenPipeError:
                cat.stdin = None
            assert process.wait(PATIENCE) == 141
        assert without_bar(process.stderr.read()) == b""


@every_filter
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_waits_for_more(name: str, number: signal.Signals) -> None:
    with started([*STATEPIPE, *command(name)], stdout=subprocess.DEVNULL) as process:
        assert process.stdin
        for part in (fed(name)[:1], fed(name)[1:700_000]):
            process.stdin.write(part)
            wait_until_read(process)
        assert bool(children(process.pid)) == ADAPTERS[name].runs
        status, said = stop(process, number)
    assert status == 128 + number
    assert_one_error(without_bar(said), filter_of(name), f"stopped by {number.name}")


@every_filter
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_its_reader_is_slow(name: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "fed").write_bytes(fed(name))
    with open(tmp_path / "fed", "rb") as file, started([*STATEPIPE, *command(name)], stdin=file) as process:
        wait_until_full(process, 700_000)
        status, said = stop(process, number)
    assert status == 128 + number
    assert_one_error(without_bar(said), filter_of(name), f"stopped by {number.name}")


@every_filter
def test_a_signal_as_its_reader_leaves(name: str, tmp_path: Path) -> None:
    """Ctrl-C ends both at once: whichever is noticed first counts. Of a reader that left nothing is told."""
    (tmp_path / "fed").write_bytes(fed(name))
    for _ in range(2):
        with open(tmp_path / "fed", "rb") as file, started([*STATEPIPE, *command(name)], stdin=file) as process:
            assert process.stdout
            wait_until_full(process, 500_000)
            process.stdout.close()
            status, said = stop(process, signal.SIGINT)
        assert status in (130, 141)
        said = without_bar(said)
        assert said == b"" if status == 141 else assert_one_error(said, filter_of(name), "SIGINT") is None


@every_filter
def test_a_disk_that_is_full(name: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*command(name), data=fed(name), stdout=full)
    assert done.returncode == 1
    assert_one_error(without_bar(done.stderr), filter_of(name), "cannot write standard output: No space left on device")


@every_filter
@pytest.mark.parametrize(("fd", "status", "word"), [(0, 2, "is not open for reading"), (1, 1, "Bad file descriptor")])
def test_a_descriptor_that_is_closed(name: str, fd: int, status: int, word: str, tmp_path: Path) -> None:
    """It is not given to the next file that is opened."""
    (tmp_path / "fed").write_bytes(fed(name))
    with open(tmp_path / "fed", "rb") as file:
        done = run(*command(name), stdin=file, closed=fd)
    assert done.returncode == status
    assert_one_error(without_bar(done.stderr), filter_of(name), word)


@every_filter
def test_nobody_to_hear(name: str, tmp_path: Path) -> None:
    """With standard error closed or full, no word goes among the data, and the exit code still speaks."""
    (tmp_path / "fed").write_bytes(fed(name))
    with open("/dev/full", "wb") as full:
        for way in ({"closed": 2}, {"stderr": full}):
            with open(tmp_path / "fed", "rb") as file:
                done = run(*command(name), stdin=file, **way)
            assert ADAPTERS[name].undo(done.stdout) == plain(name)
            assert done.returncode == (1 if name == "checksum" and "stderr" in way else 0)


@every_filter
def test_a_device_that_fails(name: str, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    file = tmp_path / "fed"
    file.write_bytes(fed(name))
    failing = ["-e", "inject=read:error=EIO:when=3", "-e", "inject=splice:error=EIO"]
    inject = ["strace", "-f", "-q", "-o", tmp_path / "log", "-P", file, *failing]
    with open(file, "rb") as source:
        done = subprocess.run([*inject, *STATEPIPE, *command(name)], stdin=source, capture_output=True)
    assert done.returncode == 1
    said = re.sub(rb"strace: [^\n]*\n", b"", without_bar(done.stderr))
    assert_one_error(said, filter_of(name), "cannot read standard input: Input/output error", "at byte")
