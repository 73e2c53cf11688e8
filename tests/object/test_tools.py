"""Objects that the store's own tools have written are read, and they read ours: aws-cli, rclone, and zstd behind them.

Both are installed by tools/setup, which gives aws-cli a place of its own: it demands a botocore of its own age.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import agefiles, warm
from tests.object.stores import AWS, DATA, Bucket
from tests.object.test_get import STREAM

STATEPIPE = [sys.executable, "-m", "statepipe"]

ALL = ["aws", "rclone"]
FEW = ["rclone", pytest.param("aws", marks=pytest.mark.faults)]
"""The aws command takes a second of processor time for each start."""


@pytest.fixture
def there(drop: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that the tools reach, too."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)  # rclone 1.60 ends if it is set
    for name, value in {
        "CONFIG": "/dev/null",
        "S3_PROVIDER": "Other",
        "S3_ENV_AUTH": "true",
        "S3_ENDPOINT": drop.store.endpoint,
    }.items():
        monkeypatch.setenv(f"RCLONE_{name}", value)
    return drop


def ours(*words: object, data: bytes | None = None) -> bytes:
    done = warm.run([*STATEPIPE, *map(str, words)], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    return bytes(done.stdout)


def theirs(*command: object, data: bytes | None = None) -> bytes:
    return subprocess.run([*map(str, command)], input=data, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def sent_by(tool: str, file: Path, bucket: Bucket, key: str) -> Sequence[object]:
    if tool == "aws":
        return AWS, "s3", "cp", "--quiet", file, bucket.address(key)
    return "rclone", "copyto", file, f":s3:{bucket.name}/{key}"


def read_by(tool: str, bucket: Bucket, key: str) -> Sequence[object]:
    if tool == "aws":
        return AWS, "s3", "cp", "--quiet", bucket.address(key), "-"
    return "rclone", "cat", f":s3:{bucket.name}/{key}"


@pytest.mark.parametrize("tool", ALL)
def test_each_reads_what_the_other_has_written(there: Bucket, file: Path, tool: str) -> None:
    """In several parts."""
    theirs(*sent_by(tool, file, there, "theirs"))
    assert ours("get", there.address("theirs")) == DATA
    ours("put", "--size", "1M", there.address("ours"), file)
    assert theirs(*read_by(tool, there, "ours")) == DATA


@pytest.mark.parametrize("tool", FEW)
@pytest.mark.parametrize("words", [["save"], ["save", "-r", agefiles.RECIPIENT]], ids=["plain", "encrypted"])
def test_a_state_is_read_by_the_tool_and_zstd(there: Bucket, tool: str, words: list[str]) -> None:
    ours(*words, there.address("vm"), data=STREAM)
    state = theirs(*read_by(tool, there, "vm"))
    if "-r" in words:
        state = theirs("age", "-d", "-i", agefiles.KEY_FILE, data=state)
    assert theirs("zstd", "-dcq", data=state) == STREAM


@pytest.mark.parametrize("tool", FEW)
def test_a_state_that_the_tool_has_copied_is_one_of_ours(there: Bucket, tmp_path: Path, tool: str) -> None:
    copy = tmp_path / "copy"
    ours("save", there.address("vm"), data=STREAM)
    copy.write_bytes(theirs(*read_by(tool, there, "vm")))
    theirs(*sent_by(tool, copy, there, "again"))
    ours("verify-state", there.address("again"))
    assert ours("load", there.address("again")) == STREAM
