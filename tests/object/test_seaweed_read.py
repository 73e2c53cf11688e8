"""Reading from a SeaweedFS: a server that people run, with ranges, conditions and errors of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import cast

import pytest

from statepipe.ends.objectsource import open_object
from statepipe.objectstore.failures import Missing, Replaced
from statepipe.objectstore.settings import Reading
from tests import agefiles, warm
from tests.object.stores import DATA, Bucket
from tests.object.test_get import one_run
from tests.qemu.harness import Guest, run_statepipe
from tests.qemu.lazily import Lazy, assert_went_on
from tests.qemu.loading import MEMORY, Saved

STATEPIPE = [sys.executable, "-m", "statepipe"]


@pytest.mark.parametrize("size", [0, 3, 300_000, len(DATA)])
def test_an_object_is_read_as_a_file_is(drop: Bucket, size: int) -> None:
    data = DATA[:size]
    drop.store.client.upload_fileobj(io.BytesIO(data), drop.name, "key")  # the largest in parts
    random = Random(size)
    with open_object(drop.address("key"), Reading()) as source:
        for _ in range(10):
            at, count = random.randrange(size + 1), random.randrange(500_000)
            assert source.tail(at, count) == data[at : at + count]
        assert b"".join(source) == data


def test_an_object_that_is_replaced_is_no_mixture(drop: Bucket) -> None:
    drop.store.client.upload_fileobj(io.BytesIO(DATA), drop.name, "key")
    with open_object(drop.address("key"), Reading()) as source:
        drop.store.client.upload_fileobj(io.BytesIO(DATA[::-1]), drop.name, "key")
        with pytest.raises(Replaced, match=f"s3://{drop.name}/key was replaced or removed"):
            source.tail(5_000_000, 10)
    with pytest.raises(Missing, match=f"there is no object s3://{drop.name}/none"):
        open_object(drop.address("none"), Reading())


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
def test_a_guest_that_was_saved_to_it_starts_lazily_from_it(
    tmp_path: Path, drop: Bucket, qemu72: str, sealed: bool
) -> None:
    with Guest(tmp_path, qemu=qemu72, memory=MEMORY, fill=24, dirty=2) as guest:
        guest.wait_ticks(3)
        words = ["-r", agefiles.RECIPIENT] if sealed else []
        done = run_statepipe("save", "--qmp", guest.socket, *words, drop.address("vm"))
        assert done.returncode == 0, done.stderr
        there = Saved(cast(Path, drop.address("vm")), guest.image, guest.serial(), qemu72)
    folder = tmp_path / "load"
    folder.mkdir()
    keys = ["-i", str(agefiles.KEY_FILE)] if sealed else []
    with Lazy(folder, there, *keys) as lazy:
        lazy.complete()
        assert_went_on(there, lazy)


@pytest.mark.faults
@pytest.mark.parametrize("tens", range(5))
def test_reads_with_a_fault_at_random(drop: Bucket, tmp_path: Path, tens: int) -> None:
    for seed in range(1000 + 10 * tens, 1010 + 10 * tens):
        one_run(drop, tmp_path, seed)


@pytest.mark.faults
def test_memory_stays_below_300_mb(drop: Bucket) -> None:
    piece = os.urandom(8 << 20)
    drop.store.client.upload_fileobj(io.BytesIO(piece * 50), drop.name, "key")
    words = [*STATEPIPE, "get", drop.address("key")]
    with warm.Popen(words, fresh=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(49):
            assert process.stdout.read(len(piece)) == piece
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        assert process.stdout.read() == piece
    assert process.returncode == 0
    (most,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert most < 300 << 10
