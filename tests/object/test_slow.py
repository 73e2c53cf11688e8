"""A store that is slow throttles the pipe: `zstd:auto` compresses more then, and `rate` changes an upload live."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests import warm
from tests.object.faulty import PART, faulty
from tests.object.stores import DATA, Bucket
from tests.qemu.harness import run_statepipe, wait_for

STATEPIPE = [sys.executable, "-m", "statepipe"]

PACE = 2.0
"""Seconds for which the slow store takes no other part."""


def stages(job: int) -> list[dict[str, Any]]:
    """What ps tells of a job's filters; none before it transfers data."""
    for told in json.loads(run_statepipe("ps", "--json").stdout):
        if told["id"] == str(job):
            found: list[dict[str, Any]] = told.get("stages", [])
            return found
    return []


@contextmanager
def poured(words: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A statepipe whose input, text of random words, never ends until it does."""
    random = Random(3)
    vocabulary = [random.randbytes(random.randrange(2, 12)).hex().encode() for _ in range(5000)]
    pieces = [b" ".join(random.choices(vocabulary, k=60_000)) for _ in range(8)]
    with warm.Popen([*STATEPIPE, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        over = threading.Event()

        def pour() -> None:
            assert process.stdin is not None
            with process.stdin as pipe:
                for piece in cycle(pieces):
                    if over.is_set():
                        return
                    pipe.write(piece)

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            yield process
        finally:
            over.set()
            if sys.exc_info()[0] is not None:
                process.kill()
            thread.join()


@pytest.mark.faults
def test_a_slow_store_makes_zstd_auto_compress_more(bucket: Bucket) -> None:
    fast = threading.Event()

    def plan(kind: str) -> None:
        if kind == PART:
            fast.wait(PACE)

    def higher() -> list[dict[str, Any]]:
        return [each for each in stages(process.pid) if each.get("waits_for") == "sink" and each["level"] >= 5]

    with faulty(bucket.store, plan) as endpoint:
        words = ["pipe", "compress:zstd:auto", f"put:{bucket.address('key')},size=1M"]
        with poured(words, {**os.environ, "AWS_ENDPOINT_URL_S3": endpoint}) as process:
            wait_for("a higher level, because of the sink", higher)
            fast.set()
        assert process.wait(60) == 0
    assert bucket.keys() == ["key"]


def test_rate_changes_an_upload_live(bucket: Bucket, file: Path) -> None:
    """Its throttle would take five hours."""
    words = ["pipe", "throttle:1K", f"put:{bucket.address('key')},size=1M"]
    with file.open("rb") as source, warm.Popen([*STATEPIPE, *words], stdin=source, stderr=subprocess.PIPE) as process:
        wait_for("the upload", lambda: any("parts" in each for each in stages(process.pid)))
        assert bucket.keys() == []
        done = run_statepipe("rate", process.pid, "unlimited")
        assert done.returncode == 0, done.stderr
        assert process.wait(60) == 0
    assert bucket.get("key") == DATA
