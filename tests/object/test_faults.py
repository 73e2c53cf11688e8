"""A store and a network that fail: exit 0 exactly if the object is there and reads back right, and nothing is there
otherwise. Each error names the bucket, the key and what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from tests import warm
from tests.object.azurite import Container
from tests.object.faulty import (
    ABORT,
    BEGIN,
    BREAKS,
    CHANGED,
    COMPLETE,
    CUT,
    FAULTS,
    GARBAGE,
    LIST,
    LOOK,
    LOST,
    PART,
    RESET,
    STALL,
    Plan,
    always,
    faulty,
    once,
)
from tests.object.stores import DATA, EACH, Bucket

PUT = [sys.executable, "-m", "statepipe", "put"]
PARTS = ["--size", "1M"]
"""Parts of 8 MiB."""


def put(
    bucket: Bucket | Container, plan: Plan, file: Path, *options: str, retry: float = 4
) -> subprocess.CompletedProcess[str]:
    with faulty(bucket.store, plan) as endpoint:
        words = [*PUT, bucket.address("key"), str(file), *PARTS, "--retry", str(retry), *options]
        environment = {**os.environ, **bucket.through(endpoint)}
        done: subprocess.CompletedProcess[str] = warm.run(
            words, capture_output=True, text=True, timeout=120, env=environment
        )
        return done


def demand_truth(bucket: Bucket | Container, done: subprocess.CompletedProcess[str]) -> None:
    """The exit code says what is there, and an error says where and what next."""
    assert bucket.get("key") == (None if done.returncode else DATA), done.stderr
    assert done.stdout == ""
    if done.returncode:
        assert re.search(rf"^statepipe: put: error: .*{bucket.address('key')}", done.stderr, re.M), done.stderr
        assert "statepipe: hint: " in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fault", ["500", "503", *BREAKS])
@pytest.mark.parametrize("kind", [LOOK, BEGIN, PART, LIST, COMPLETE])
def test_what_fails_once_is_done_again(bucket: Bucket, file: Path, kind: str, fault: str) -> None:
    done = put(bucket, once(kind, fault), file)
    assert done.returncode == 0, done.stderr
    demand_truth(bucket, done)
    if kind != BEGIN:  # an upload whose id was lost cannot be told from a rival's
        assert bucket.uploads() == []


@pytest.mark.parametrize(
    ("kind", "fault", "code", "words"),
    [
        (BEGIN, "denied", 1, "s3:PutObject"),
        (BEGIN, "no-bucket", 1, "create the bucket"),
        (PART, "expired", 1, "get new ones"),
        (PART, "skewed", 1, "set the clock"),
        (PART, "quota", 1, "free space"),
        (PART, "500", 5, "--retry SECONDS waits longer"),
        (PART, "503", 5, "SlowDown"),
        (PART, RESET, 5, "part [1-3] of"),
        (PART, CHANGED, 3, "other bytes than were sent"),
        (PART, STALL, 5, "check the network"),
        (COMPLETE, "conflict", 5, "another writer completed the same object"),
        (COMPLETE, "denied", 1, "s3:PutObject"),
        (COMPLETE, GARBAGE, 5, "--retry SECONDS waits longer"),
    ],
)
def test_what_fails_for_good_leaves_nothing(
    bucket: Bucket, file: Path, kind: str, fault: str, code: int, words: str
) -> None:
    done = put(bucket, always(kind, fault), file, retry=1)
    demand_truth(bucket, done)
    assert done.returncode == code, done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert bucket.uploads() == []


@EACH
def test_without_the_right_to_look_or_list_the_commit_s_condition_decides(bucket: Bucket, file: Path) -> None:
    def plan(kind: str) -> str | None:
        return "denied" if kind in (LOOK, LIST) else None

    done = put(bucket, plan, file)
    assert done.returncode == 0
    demand_truth(bucket, done)
    again = put(bucket, plan, file)
    assert again.returncode  # of Google's, the beginning is refused; of others, whether it is ours cannot be seen
    assert re.search("s3:GetObject|Storage Blob Data Reader|exists already", again.stderr)
    assert bucket.uploads() == []


def test_a_store_without_conditions_is_looked_at_before_the_commit(bucket: Bucket, file: Path) -> None:
    done = put(bucket, once(COMPLETE, "no-conditions"), file)
    demand_truth(bucket, done)
    assert "the store knows no conditions" in done.stderr


@EACH
@pytest.mark.parametrize("fault", [LOST, CUT])
def test_a_commit_whose_every_answer_is_lost_is_known_by_the_object(bucket: Bucket, file: Path, fault: str) -> None:
    done = put(bucket, always(COMPLETE, fault), file, retry=30)
    demand_truth(bucket, done)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_what_nobody_can_know_is_said(bucket: Bucket, file: Path) -> None:
    """The commit was carried out, and then the store is gone for good."""
    broken = False

    def plan(kind: str) -> str | None:
        nonlocal broken
        broken = broken or kind == COMPLETE
        return LOST if broken else None

    done = put(bucket, plan, file, retry=1)
    assert done.returncode == 5
    assert "it is not known whether" in done.stderr
    assert "but if its guest runs on, remove it" in done.stderr
    assert bucket.get("key") == DATA


def test_parts_that_cannot_be_aborted_are_told_with_what_ends_them(bucket: Bucket, file: Path) -> None:
    def plan(kind: str) -> str | None:
        return "denied" if kind == ABORT else "quota" if kind == PART else None

    done = put(bucket, plan, file)
    demand_truth(bucket, done)
    assert f"--abort-stale s3://{bucket.name}/key" in done.stderr
    assert bucket.uploads() == ["key"]


def test_a_signal_aborts_even_a_stalled_upload(bucket: Bucket, file: Path) -> None:
    import threading

    stalled = threading.Event()

    def plan(kind: str) -> str | None:
        if kind == PART:
            stalled.set()
            return STALL
        return None

    with faulty(bucket.store, plan) as endpoint:
        environment = {**os.environ, **bucket.through(endpoint)}
        words = [*PUT, bucket.address("key"), str(file), *PARTS]
        with warm.Popen(words, stderr=subprocess.PIPE, env=environment) as process:
            assert stalled.wait(60)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert bucket.keys() == bucket.uploads() == []


def at_random(seed: int, possible: Sequence[str] = FAULTS) -> Plan:
    """One fault, or a few, at requests of any kind."""
    random = Random(seed)
    left = random.choice([1, 1, 1, 2, 3, 1000])
    kinds = random.sample([LOOK, BEGIN, PART, LIST, COMPLETE, ABORT], random.choice([1, 1, 2]))
    faults = random.sample(possible, 2)
    wait = random.randrange(4)

    def plan(kind: str) -> str | None:
        nonlocal left, wait
        if kind not in kinds or not left:
            return None
        if wait:
            wait -= 1
            return None
        left -= 1
        return random.choice(faults)

    return plan


@pytest.mark.parametrize("seed", range(12))
def test_a_few_runs_with_a_fault_at_random(bucket: Bucket, file: Path, seed: int) -> None:
    one_run(bucket, file, seed)


@pytest.mark.faults
@pytest.mark.parametrize("tens", range(49))
def test_many_runs_with_a_fault_at_random(bucket: Bucket, file: Path, tens: int) -> None:
    for seed in range(12 + 10 * tens, 22 + 10 * tens):
        one_run(bucket.store.bucket(), file, seed)


def one_run(bucket: Bucket | Container, file: Path, seed: int, possible: Sequence[str] = FAULTS) -> None:
    """exit 0 exactly if the object is there and reads back right, unless it is said that nobody can know."""
    done = put(bucket, at_random(seed, possible), file, retry=2)
    if "it is not known whether" in done.stderr:
        assert done.returncode == 5
        assert bucket.get("key") in (None, DATA)
    else:
        demand_truth(bucket, done)
