"""Pipelines that fail: which stage, at which byte, why, and with which status, however much fails in its wake."""

from __future__ import annotations

import hashlib
import os
import random
import re
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zstandard

from tests.conformance.running import (
    PATIENCE,
    STATEPIPE,
    assert_none_left,
    assert_one_error,
    left,
    run,
    started,
    wait,
    wait_until_full,
    wait_until_read,
)
from tests.conformance.test_endings import runtime_of

NOISE = hashlib.shake_128(b"first cause").digest(4 << 20)
PACKED = b"".join(
    zstandard.ZstdCompressor(write_checksum=True).compress(NOISE[at : at + (1 << 20)])
    for at in range(0, 4 << 20, 1 << 20)
)
BAD = bytearray(PACKED)
BAD[(5 << 19)] ^= 1
"""Its third frame is damaged."""


@pytest.fixture(name="mark")
def give_mark() -> Iterator[str]:
    """Something in the environment by which every process that descends from ours is found; none may be left."""
    mark = f"STATEPIPE_TEST_MARK={uuid.uuid4()}"
    yield mark
    assert_none_left(mark)


def marked(mark: str) -> dict[str, str]:
    name, _, value = mark.partition("=")
    return os.environ | {name: value}


def where(said: bytes) -> tuple[int, int]:
    """The bytes in and out that the error tells."""
    found = re.search(rb"at byte (\d+).*?(\d+) (?:bytes )?out", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


@pytest.mark.parametrize(
    "words",
    [("decompress", "external:cat"), ("external:cat", "decompress"), ("decompress", "external:sort -z", "compress")],
)
def test_damage_is_the_cause_wherever_it_is_found(words: tuple[str, ...], mark: str) -> None:
    done = run("pipe", *words, data=bytes(BAD), env=marked(mark))
    assert done.returncode == 3
    assert_one_error(done.stderr, "pipe: decompress", "")
    offset, out = where(done.stderr)
    assert 2 << 20 <= offset <= len(BAD) and out == 2 << 20
    assert "compress" in words or NOISE.startswith(done.stdout)


def test_what_is_cut_is_the_cause_not_the_program_that_misses_it(mark: str) -> None:
    done = run("pipe", "decompress", "external:tar -t", data=PACKED[:-9], env=marked(mark))
    assert done.returncode == 3
    assert b"pipe: decompress: error: " in done.stderr.splitlines()[-2] + done.stderr.splitlines()[-1]


def test_a_program_that_dies_while_the_source_says_nothing(mark: str) -> None:
    words = ["progress", "external:shell=head -c 1000; echo dying >&2; exit 7", "compress:gzip"]
    with started([*STATEPIPE, "pipe", *words], env=marked(mark)) as process:
        assert process.stdin and process.stderr
        process.stdin.write(NOISE[:1000])
        assert process.wait(PATIENCE) == 1
        said = process.stderr.read()
    assert b"pipe: external: error: head -c 1000; " in said and b"failed with exit status 7: dying" in said
    assert b"Traceback" not in said and b"roken pipe" not in said


@pytest.mark.parametrize("fed", [100, 3 << 20])
def test_the_first_program_to_die_is_the_cause(fed: int, mark: str) -> None:
    """Those before it lose their reader, those after it their source."""
    words = [
        "external:cat",
        "external:shell=head -c 50 >/dev/null; kill -ILL $$",
        "external:cat",
        "external:shell=cat; exit 3",
    ]
    done = run("pipe", *words, data=NOISE[:fed], env=marked(mark))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "pipe: external", "was killed by SIGILL")


@pytest.mark.parametrize("words", [("external:cat",), ("compress", "external:shell=cat | cat", "decompress")])
def test_a_sink_that_is_full_is_the_cause(words: tuple[str, ...], mark: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run("pipe", *words, data=NOISE, stdout=full, env=marked(mark))
    assert done.returncode == 1
    assert_one_error(done.stderr, "pipe", "cannot write standard output: No space left on device")


@pytest.mark.parametrize(
    "words", [("external:cat",), ("external:cat", "external:shell=cat; exit 4"), ("tee:COPY", "external:yes")]
)
def test_a_consumer_that_leaves_ends_all_quietly(words: tuple[str, ...], mark: str, tmp_path: Path) -> None:
    words = tuple(word.replace("COPY", f"{tmp_path}/copy") for word in words)
    (tmp_path / "fed").write_bytes(NOISE)
    command = [*STATEPIPE, "pipe", *words]
    with open(tmp_path / "fed", "rb") as fed, started(command, stdin=fed, env=marked(mark)) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == b""
    assert os.listdir(tmp_path) == ["fed"]


def test_a_program_that_fails_leaves_no_copy(mark: str, tmp_path: Path) -> None:
    done = run("pipe", "external:shell=cat; exit 1", f"tee:{tmp_path}/copy", data=NOISE, env=marked(mark))
    assert done.returncode == 1
    assert_one_error(done.stderr, "pipe: external", "failed with exit status 1")
    assert os.listdir(tmp_path) == []


def test_a_copy_that_cannot_be_made_starts_no_program(mark: str) -> None:
    done = run("pipe", "external:cat", "tee:/nowhere/copy", "external:cat", data=NOISE, env=marked(mark))
    assert (done.returncode, done.stdout) == (1, b"")
    assert_one_error(done.stderr, "pipe", "cannot create /nowhere/copy")


MOMENTS = ["external:cat"], ["compress", "external:shell=cat | cat", "decompress"], ["external:sleep 1000"]


@pytest.mark.parametrize("words", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_leaves_nothing(
    words: list[str], number: signal.Signals, mark: str, tmp_path: Path
) -> None:
    """From before the first program is started to when all pipes are full, as chance has it."""
    (tmp_path / "fed").write_bytes(NOISE)
    chance = random.Random(f"{words} {number}")
    for _ in range(8):
        with (
            open(tmp_path / "fed", "rb") as fed,
            started([*STATEPIPE, "pipe", *words], stdin=fed, env=marked(mark)) as process,
        ):
            assert process.stderr
            wait(process, lambda name=str(process.pid): (runtime_of() / name).exists())
            select.select([process.stderr], [], [], chance.uniform(0, 0.1))
            process.send_signal(number)
            status = process.wait(PATIENCE)
            said = process.stderr.read()
        assert status == 128 + number
        assert_one_error(said, "pipe", f"stopped by {number.name}")
        assert_none_left(mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_the_programs_too_is_the_cause(number: signal.Signals, mark: str) -> None:
    """As from `kill` of all that belong together; each program dies of it by itself."""
    with started([*STATEPIPE, "pipe", "external:cat", "external:shell=cat; true"], env=marked(mark)) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"data")
        wait_until_read(process)
        wait_until_full(process, 4)
        process.send_signal(number)
        for pid in left(mark):
            if int(pid) != process.pid:
                try:
                    os.kill(int(pid), number)
                except ProcessLookupError:  # it was ended already
                    continue
        assert process.wait(PATIENCE) == 128 + number
        assert_one_error(process.stderr.read(), "pipe", f"stopped by {number.name}")


def test_a_failure_leaves_no_zombie_thread_or_descriptor() -> None:
    """Within one process that lives on."""
    script = """
import os, threading
from statepipe.errors import StatepipeError
from statepipe.stage import chain, close
from statepipe.stages.external import external
from tests.world import world
def state():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return sorted(os.listdir("/proc/self/fd")), threading.active_count(), file.read()
before = state()
for command in (["false"], ["cat"], ["head", "-c", "1"], ["nope"]) * 5:
    stages = [("a", external(["cat"], None, world())), ("b", external(command, None, world()))]
    flow = chain(iter([b"x" * 100000] * 30), stages)
    try:
        next(flow); next(flow)
    except StatepipeError:
        pass
    close(flow)
    assert state() == before, state()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=PATIENCE, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stderr) == (0, b"")


POLLS = ("7", "73", "271")
"""poll and ppoll, on x86-64 and on arm64."""


@contextmanager
def unread(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command that has failed and waits to tell it, as its standard error is full; and the end where it is read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            continue
    os.set_blocking(writing, True)
    try:
        with started([*STATEPIPE, *words], stderr=writing) as process:
            os.close(writing)
            wait(process, lambda: Path(f"/proc/{process.pid}/syscall").read_text().split()[0] in POLLS)
            yield process, reading
    finally:
        os.close(reading)


def test_a_failure_that_nobody_reads_holds_no_one_up() -> None:
    """A signal ends the wait, with the status of the failure."""
    with unread("decrypt", "-i", "/nonexistent") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1


def test_a_failure_that_is_read_late_is_told_whole() -> None:
    with unread("decrypt", "-i", "/nonexistent") as (process, reading):
        with open(reading, "rb", closefd=False) as said:
            text = said.read().lstrip(b"\0")
        assert process.wait(PATIENCE) == 1
    assert_one_error(text, "decrypt", "/nonexistent")
