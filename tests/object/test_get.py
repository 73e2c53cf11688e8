"""get, inspect, verify-state and load of an object: as of a file, or an error that says where and what next."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import pytest

from tests import agefiles, streams, warm
from tests.object.faulty import (
    CUT,
    GARBAGE,
    HALTED,
    LOST,
    READ,
    REFUSALS,
    RESET,
    STALL,
    TORN,
    WRONG,
    Plan,
    always,
    faulty,
    once,
)
from tests.object.stores import Bucket
from tests.statefiles import cut, noise, state_file

STATEPIPE = [sys.executable, "-m", "statepipe"]
PAGES = 1500
STREAM = (
    streams.head()
    + streams.ram_start(streams.block_list((("pc.ram", PAGES * streams.PAGE),)))
    + streams.ram(noise(0, "pc.ram"), *map(noise, range(1, PAGES)))
    + streams.ram(noise(0, "pc.ram"), kind=3)
    + streams.devices()
    + b"\0"
    + streams.vmdesc(*streams.DEVICES)
)
STATE = state_file(cut(STREAM, 13), index=True)
"""6 MB, more than is read at the ends."""

DATA = Random(5).randbytes(3_000_000)


def run(
    bucket: Bucket, *words: str, plan: Plan = lambda kind: None, stall: float = 60, **more: object
) -> subprocess.CompletedProcess[bytes]:
    with faulty(bucket.store, plan, stall) as endpoint:
        return run_at(endpoint, *words, **more)


def run_at(endpoint: str, *words: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "AWS_ENDPOINT_URL_S3": endpoint}
    done: subprocess.CompletedProcess[bytes] = warm.run(
        [*STATEPIPE, *words], capture_output=True, timeout=120, env=environment, **more
    )
    return done


def demand_named(bucket: Bucket, done: subprocess.CompletedProcess[bytes]) -> str:
    """An error names the object and the next step; nothing is left of a file."""
    said = done.stderr.decode()
    assert re.search(rf"error: .*s3://{bucket.name}/key", said), said
    assert "statepipe: hint: " in said and "Traceback" not in said
    return said


def test_get_writes_the_object(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("key", DATA)
    assert run(bucket, "get", bucket.address("key")).stdout == DATA
    done = run(bucket, "get", bucket.address("key"), "-o", str(tmp_path / "file"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "file").read_bytes() == DATA


def test_get_is_the_first_word_of_a_pipe(bucket: Bucket) -> None:
    bucket.put("key", STATE)
    done = run(bucket, "pipe", f"get:{bucket.address('key')}", "decompress", "checksum:blake3")
    assert done.stdout == STREAM, done.stderr
    copied = run(bucket, "pipe", f"get:{bucket.address('key')}", f"put:{bucket.address('copy')}")
    assert copied.returncode == 0, copied.stderr
    assert bucket.get("copy") == STATE


@pytest.mark.parametrize("words", [["pipe", "checksum", "get:s3://b/k"], ["save", "get:s3://b/k", "x"]])
def test_get_elsewhere_is_refused(bucket: Bucket, words: list[str]) -> None:
    done = run(bucket, *words, input=b"")
    assert done.returncode == 2
    assert b"nothing goes into get" in done.stderr or b"does not take the filter 'get'" in done.stderr


def test_get_of_a_file_by_its_address(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert run(bucket, "get", f"file://{tmp_path}/file").stdout == DATA
    assert run(bucket, "get", f"file://{tmp_path}/none").returncode == 1


@pytest.mark.parametrize("fault", ["500", "503", RESET, LOST, CUT, TORN])
@pytest.mark.parametrize("at", [1, 3])
def test_get_reads_again_what_broke_once(bucket: Bucket, fault: str, at: int) -> None:
    bucket.put("key", DATA)
    done = run(bucket, "get", bucket.address("key"), plan=once(READ, fault, at))
    assert (done.returncode, done.stdout == DATA) == (0, True), done.stderr


@pytest.mark.parametrize("fault", [STALL, HALTED])
def test_get_does_not_wait_for_a_store_that_is_silent(bucket: Bucket, fault: str) -> None:
    """The time without a byte is a third of --retry, and a second at least."""
    bucket.put("key", DATA)
    done = run(bucket, "get", bucket.address("key"), "--retry", "3", plan=once(READ, fault, 3))
    assert (done.returncode, done.stdout == DATA) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("500", 5, "--retry SECONDS waits longer"),
        ("503", 5, "SlowDown"),
        (RESET, 5, "check the network"),
        (LOST, 5, "check the network"),
        (STALL, 5, "check the network"),
        ("expired", 1, "get new ones"),
        ("denied", 1, "s3:GetObject"),
        ("no-bucket", 1, "create the bucket"),
    ],
)
def test_get_fails_with_the_reason_and_leaves_nothing(
    bucket: Bucket, tmp_path: Path, fault: str, code: int, words: str
) -> None:
    bucket.put("key", DATA)
    target = str(tmp_path / "file")
    done = run(bucket, "get", bucket.address("key"), "-o", target, "--retry", "1", plan=always(READ, fault))
    assert done.returncode == code, done.stderr
    assert words in demand_named(bucket, done)
    assert list(tmp_path.iterdir()) == []


def test_get_of_an_object_that_is_replaced_is_no_mixture(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("key", DATA)
    seen = 0

    def plan(kind: str) -> str | None:
        nonlocal seen
        seen += 1
        if seen == 3:
            bucket.put("key", DATA[::-1])
        return None

    done = run(bucket, "get", bucket.address("key"), "-o", str(tmp_path / "file"), plan=plan)
    assert done.returncode == 1
    assert "was replaced or removed while it was read" in demand_named(bucket, done)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_a_read_from_a_silent_store(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("key", DATA)
    stalled = threading.Event()

    def plan(kind: str) -> str | None:
        stalled.set()
        return STALL

    with faulty(bucket.store, plan) as endpoint:
        environment = {**os.environ, **bucket.through(endpoint)}
        words = [*STATEPIPE, "get", bucket.address("key"), "-o", str(tmp_path / "file")]
        with warm.Popen(words, stderr=subprocess.PIPE, env=environment) as process:
            assert stalled.wait(60)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert list(tmp_path.iterdir()) == []


# --- states


def test_what_is_told_of_a_file_is_told_of_an_object(bucket: Bucket, tmp_path: Path) -> None:
    sealed = agefiles.sealed(STATE)
    for name, data, keys in (("plain", STATE, ()), ("sealed", sealed, ("-i", str(agefiles.KEY_FILE)))):
        bucket.put(name, data)
        (tmp_path / name).write_bytes(data)
        for verb in ("inspect", "verify-state"):
            told = []
            for file in (str(tmp_path / name), bucket.address(name)):
                done = run(bucket, verb, "--json", *keys, file)
                assert done.returncode == 0, done.stderr
                facts = json.loads(done.stdout)
                assert facts.pop("file") == file
                told.append(facts)
            assert told[0] == told[1]


def test_load_as_a_filter_writes_the_stream(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("key", STATE)
    with (tmp_path / "stream").open("wb") as out:
        done = warm.run([*STATEPIPE, "load", bucket.address("key")], stdout=out, stderr=subprocess.PIPE)
    assert (done.returncode, (tmp_path / "stream").read_bytes() == STREAM) == (0, True), done.stderr


def test_a_stream_of_qemus_own_is_read(bucket: Bucket) -> None:
    bucket.put("key", STREAM)
    done = run(bucket, "verify-state", bucket.address("key"))
    assert done.returncode == 0, done.stderr


def test_verify_state_finds_what_is_wrong_in_the_store(bucket: Bucket) -> None:
    damaged = bytearray(STATE)
    damaged[len(STATE) // 2] ^= 1
    bucket.put("key", bytes(damaged))
    done = run(bucket, "verify-state", bucket.address("key"))
    assert done.returncode == 3
    said = done.stderr.decode()
    assert "the zstd frame at byte" in said and f"it was read from s3://{bucket.name}/key" in said
    bucket.put("key", STATE[:-1000])
    done = run(bucket, "verify-state", bucket.address("key"))
    assert done.returncode == 3
    assert "is incomplete: the trailer is missing" in demand_named(bucket, done)


def test_verify_state_finds_what_changed_on_the_way_and_keeps_nothing_of_it(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("key", STATE)
    words = ("verify-state", "--cache", str(tmp_path), bucket.address("key"))
    with faulty(bucket.store, once(READ, WRONG)) as endpoint:
        done = run_at(endpoint, *words)
        assert done.returncode == 3, done.stderr
        assert run_at(endpoint, *words).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "--retry", "3", "file"], "--retry is for an object"),
        (["verify-state", "--cache", "x", "file"], "--cache is for an object"),
        (["verify-state", "--cache-size", "1G", "s3://b/k"], "--cache"),
        (["inspect", "s3://bucket"], "names a bucket and no key"),
        (["get"], "get needs the ADDRESS"),
        (["get", "s3://bucket/key", "file"], "-o FILE names the output"),
        (["get", "key"], "is not the address of an object"),
        (["load", "--lazy", "--learn", "s3://b/k", "--", "true"], "--learn has no place"),
    ],
)
def test_what_is_wrong_on_the_command_line(bucket: Bucket, words: list[str], said: str) -> None:
    done = run(bucket, *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.decode()


# --- faults at random


def at_random(seed: int) -> Plan:
    """One fault, or a few, or all the time from some request on."""
    random = Random(seed)
    left, wait = random.choice([1, 1, 2, 3, 1000]), random.randrange(6)
    faults = random.sample([*REFUSALS, RESET, LOST, CUT, TORN, STALL, HALTED, GARBAGE], 2)

    def plan(kind: str) -> str | None:
        nonlocal left, wait
        if wait or not left:
            wait -= wait > 0
            return None
        left -= 1
        return random.choice(faults)

    return plan


def one_run(bucket: Bucket, folder: Path, seed: int) -> None:
    """Exit 0 exactly if what is written is the object; nothing is there otherwise."""
    bucket.put("key", DATA)
    file = folder / str(seed)
    done = run(bucket, "get", bucket.address("key"), "-o", str(file), "--retry", "2", plan=at_random(seed))
    if done.returncode:
        assert done.returncode in (1, 5)
        demand_named(bucket, done)
        assert not file.exists()
    else:
        assert file.read_bytes() == DATA


@pytest.mark.parametrize("seed", range(12))
def test_a_few_reads_with_a_fault_at_random(bucket: Bucket, tmp_path: Path, seed: int) -> None:
    one_run(bucket, tmp_path, seed)


@pytest.mark.faults
@pytest.mark.parametrize("tens", range(49))
def test_many_reads_with_a_fault_at_random(bucket: Bucket, tmp_path: Path, tens: int) -> None:
    for seed in range(12 + 10 * tens, 22 + 10 * tens):
        one_run(bucket, tmp_path, seed)


@pytest.mark.parametrize("options", ["nr_inodes=2", "ro"])
def test_a_cache_without_room_fails_no_read(bucket: Bucket, tmp_path: Path, options: str) -> None:
    """Its file system is full, or can only be read; a folder that is wrong is refused."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace")
    bucket.put("key", STATE)
    mounted = f'mount -t tmpfs -o {options} none {tmp_path} && exec "$@"'
    words = [*STATEPIPE, "verify-state", "--cache", str(tmp_path), bucket.address("key")]
    done = subprocess.run(["unshare", "-m", "sh", "-c", mounted, "sh", *words], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"what is read is not kept" in done.stderr
