"""A signal ends what asks a store, at each of its requests: soon, with its status, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import warm
from tests.object.azurite import Container
from tests.object.faulty import (
    ABORT,
    BEGIN,
    COMPLETE,
    LATE,
    LIST,
    LOOK,
    PART,
    READ,
    RESET,
    STALL,
    UPLOADS,
    faulty,
)
from tests.object.stores import Bucket
from tests.statefiles import noisy_stream

STATEPIPE = [sys.executable, "-m", "statepipe"]

SOON = 20.0
"""Seconds in which a process ends, on a machine with much other work: alone, it takes 2 to 6."""


def end(
    bucket: Bucket | Container,
    words: list[str],
    kind: str,
    fault: str,
    *numbers: int,
    data: Path | None = None,
    silent: tuple[str, ...] = (),
) -> tuple[int, str, float]:
    """Send the signals once a request of that kind meets the fault, as all of those do.

    Requests of the kinds that are `silent` get no answer. Return the status, the messages, and the seconds to its end.
    """
    met = threading.Event()

    def plan(asked: str) -> str | None:
        if asked == kind:
            met.set()
            return fault
        return STALL if asked in silent else None

    with faulty(bucket.store, plan) as endpoint, open(data or os.devnull, "rb") as stdin:
        environment = {**os.environ, **bucket.through(endpoint)}
        with warm.Popen(
            [*STATEPIPE, *words],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            try:
                assert met.wait(60)
                time.sleep(0.1)  # until it waits for the answer, or between two attempts; either is to be ended
                began = time.monotonic()
                for number in numbers:
                    process.send_signal(number)
                said = process.communicate(timeout=60)[1]
            finally:
                process.kill()
    took = time.monotonic() - began
    assert "Traceback" not in said
    return process.returncode, said, took


@pytest.mark.parametrize("fault", [STALL, LATE, "503", RESET])
@pytest.mark.parametrize("kind", [LOOK, BEGIN, PART, LIST, COMPLETE])
def test_a_signal_ends_put_at_each_request(bucket: Bucket, file: Path, kind: str, fault: str) -> None:
    numbers = {STALL: [signal.SIGTERM], LATE: [signal.SIGINT], "503": [signal.SIGHUP], RESET: [signal.SIGTERM] * 2}
    words = ["put", bucket.address("key"), str(file), "--size", "1M"]
    status, said, took = end(bucket, words, kind, fault, *numbers[fault])
    assert status == 128 + numbers[fault][0], said
    assert took < SOON, said
    assert bucket.keys() == []
    if (kind, fault) == (BEGIN, LATE):
        assert f"put --abort-stale {bucket.address('key')}" in said
    else:
        assert bucket.uploads() == [], said


def test_a_signal_ends_a_save_that_commits(bucket: Bucket, tmp_path: Path) -> None:
    """There, signals are held until the object is there or not."""
    stream = tmp_path / "stream"
    stream.write_bytes(noisy_stream())
    for fault in (STALL, LATE):
        status, said, took = end(bucket, ["save", bucket.address("key")], COMPLETE, fault, signal.SIGTERM, data=stream)
        assert (status, took < SOON) == (128 + signal.SIGTERM, True), said
        assert bucket.keys() == bucket.uploads() == []


@pytest.mark.parametrize("kind", [LOOK, BEGIN, PART, COMPLETE])
@pytest.mark.parametrize("words", [["compress"], ["throttle:1G"]])
def test_a_signal_ends_a_copy_in_a_stage_before_others(bucket: Bucket, file: Path, kind: str, words: list[str]) -> None:
    """Stages before `compress` run in a thread of its own."""
    piped = ["pipe", f"tee:{bucket.address('key')}", *words]
    status, said, took = end(bucket, piped, kind, STALL, signal.SIGTERM, data=file)
    assert (status, took < SOON) == (128 + signal.SIGTERM, True), said
    assert bucket.keys() == bucket.uploads() == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["put", "--resume", "{}", "{file}", "--size", "1M"], UPLOADS),
        (["put", "--resume", "{}", "{file}", "--size", "1M"], COMPLETE),
        (["put", "--abort-stale", "{}"], UPLOADS),
        (["put", "--abort-stale", "{}"], ABORT),
        (["get", "{}"], READ),
        (["load", "{}"], READ),
        (["inspect", "{}"], READ),
        (["verify-state", "--cache", "{cache}", "{}"], LOOK),
    ],
    ids=lambda it: it if isinstance(it, str) else it[0] + it[1][:3],
)
def test_a_signal_ends_all_that_asks_a_store(
    bucket: Bucket, file: Path, tmp_path: Path, words: list[str], kind: str
) -> None:
    if kind == ABORT:
        bucket.store.client.create_multipart_upload(Bucket=bucket.name, Key="key")
    named = [word.format(bucket.address("key"), file=file, cache=tmp_path) for word in words]
    status, said, took = end(bucket, named, kind, STALL, signal.SIGINT, signal.SIGINT)
    assert (status, took < SOON) == (128 + signal.SIGINT, True), said
    assert bucket.keys() == []
    assert bucket.uploads() == (["key"] if kind == ABORT else [])


def test_a_store_that_is_silent_altogether_is_not_waited_for(bucket: Bucket, file: Path) -> None:
    words = ["put", bucket.address("key"), str(file), "--size", "1M"]
    status, said, took = end(bucket, words, PART, STALL, signal.SIGTERM, silent=(ABORT,))
    assert (status, took < SOON + 16) == (128 + signal.SIGTERM, True), said
    assert "parts of it are left in the store" in said and f"--abort-stale {bucket.address('key')}" in said
