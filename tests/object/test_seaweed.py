"""put to a SeaweedFS: a server that people run, which checks what it is sent by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests import warm
from tests.object.faulty import COMPLETE, LOST, PART, always, once
from tests.object.stores import DATA, Bucket
from tests.object.test_faults import at_random, demand_truth, put

STATEPIPE = [sys.executable, "-m", "statepipe"]


def test_a_round_trip_and_no_overwriting(drop: Bucket, file: Path, tmp_path: Path) -> None:
    done = put(drop, lambda kind: None, file)
    assert done.returncode == 0, done.stderr
    drop.store.client.download_file(drop.name, "key", str(tmp_path / "copy"))  # as `aws s3 cp` does it
    assert (tmp_path / "copy").read_bytes() == DATA
    again = put(drop, lambda kind: None, file)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert put(drop, lambda kind: None, file, "--overwrite").returncode == 0
    assert drop.uploads() == []


def test_resume_goes_on_with_what_was_left(drop: Bucket, file: Path) -> None:
    """This store lists no SHA-256, and refuses a commit in which one is missing."""

    done = put(drop, always(COMPLETE, "expired"), file, "--resume")
    assert done.returncode == 1
    assert "put --resume goes on with it" in done.stderr
    done = put(drop, always(PART, "quota"), file, "--resume")  # none is to be sent again
    assert done.returncode == 0, done.stderr
    assert "begins anew" not in done.stderr
    assert drop.get("key") == DATA


def test_a_part_that_was_sent_twice_does_no_harm(drop: Bucket, file: Path) -> None:
    """This store keeps both, and lists both."""
    done = put(drop, once(PART, LOST), file)
    assert done.returncode == 0, done.stderr
    assert drop.get("key") == DATA


@pytest.mark.faults
@pytest.mark.parametrize("tens", range(5))
def test_runs_with_a_fault_at_random(drop: Bucket, file: Path, tens: int) -> None:
    for seed in range(1000 + 10 * tens, 1010 + 10 * tens):
        bucket = drop.store.bucket()
        done = put(bucket, at_random(seed), file, retry=2)
        if "it is not known whether" in done.stderr:
            assert bucket.get("key") in (None, DATA)
        else:
            demand_truth(bucket, done)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended_at_any_moment_leaves_no_part_of_an_object(
    drop: Bucket,
    file: Path,
    number: int,
) -> None:
    random = Random(number)
    for _ in range(12):
        bucket = drop.store.bucket()
        words = [*STATEPIPE, "put", bucket.address("key"), str(file), "--size", "1M"]
        with warm.Popen(words, stderr=subprocess.PIPE) as process:
            try:
                process.wait(random.uniform(0.2, 1.5))  # a moment of its work
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            process.communicate(timeout=60)
        there = bucket.get("key")
        assert there in (None, DATA)
        assert there == DATA or process.returncode
        if number == signal.SIGTERM:
            assert (there is None) == bool(process.returncode)
            assert bucket.uploads() == []


@pytest.mark.faults
def test_memory_stays_below_300_mb_for_a_stream_of_unknown_size(drop: Bucket) -> None:
    piece = os.urandom(8 << 20)
    words = [*STATEPIPE, "put", drop.address("key")]
    with warm.Popen(words, fresh=True, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        for _ in range(50):
            process.stdin.write(piece)
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()  # ru_maxrss has its parent's, too
        process.stdin.close()
    assert process.returncode == 0
    (most,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert most < 300 << 10
    assert drop.store.client.head_object(Bucket=drop.name, Key="key")["ContentLength"] == 50 * len(piece)
