"""put and get beside rclone and the aws command, on one SeaweedFS, and lazy starts from it over ways of some length.

The store runs on this host, in memory if there is room, and takes its part of the cores: what is compared is how long
each takes beside the same store. Each writes to a bucket of its own, which is removed after each run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench.data import ROOT
from tests.bench.lazy import SMALL, States, Way, shown
from tests.bench.measure import Job, interleave
from tests.bench.pairs import Bench, speed, statepipe
from tests.bench.table import Row
from tests.object.stores import AWS, Bucket, Store, environment, seaweed

PART_OF_INPUT = 1_000_000_000
"""Bytes of each run at most."""

BUCKET = "bench"

TRIPS = 4

ROOM = 1000.0
"""Milliseconds from the start of a lazy load to the running guest, besides TRIPS round trips."""

DELAYS = (0, 20, 80)
"""Milliseconds of a round trip to the store."""


def objects(bench: Bench) -> list[Row]:
    """put of a file and from a pipe, get into a pipe; a guest's stream and random bytes."""
    with _store(bench) as store:
        rows = []
        for what, path in (("a guest's stream", bench.inputs.plain), ("random bytes", bench.inputs.noise())):
            data = _first(path, bench.inputs.folder / f"object-{path.name}")
            rows += [
                _put(bench, store, what, data),
                _put_pipe(bench, store, what, data),
                _get(bench, store, what, data),
            ]
            data.unlink()
        return rows


@contextmanager
def _store(bench: Bench) -> Iterator[Store]:
    """The store, and the environment in which every tool reaches it."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="store-", dir=bench.inputs.folder))
        store = stack.enter_context(seaweed(Path(folder)))
        stack.enter_context(_reaching(store.endpoint))
        yield store


@contextmanager
def _reaching(endpoint: str) -> Iterator[None]:
    """Have the programs that are started within it reach the store at this endpoint."""
    rclone = {"CONFIG": "/dev/null", "S3_PROVIDER": "Other", "S3_ENV_AUTH": "true", "S3_ENDPOINT": endpoint}
    before = dict(os.environ)
    os.environ.pop("AWS_CA_BUNDLE", None)  # rclone 1.60 ends if it is set, and nothing here is encrypted
    os.environ.update(environment(endpoint))
    os.environ.update({f"RCLONE_{name}": value for name, value in rclone.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _first(path: Path, target: Path) -> Path:
    """A file of the first bytes of another."""
    with path.open("rb") as file, target.open("wb") as out:
        left = PART_OF_INPUT
        while left and (piece := file.read(min(left, 1 << 20))):
            left -= out.write(piece)
    return target


def _emptied(store: Store) -> None:
    """Begin anew with the bucket, so that the store gives the room of what was written back."""
    for key in Bucket(store, BUCKET).keys():  # noqa: SIM118, which is no dict
        store.client.delete_object(Bucket=BUCKET, Key=key)
    store.client.delete_bucket(Bucket=BUCKET)
    store.client.create_bucket(Bucket=BUCKET)


def _put(bench: Bench, store: Store, what: str, data: Path) -> Row:
    commands = {
        "statepipe": statepipe("put", f"s3://{BUCKET}/key", str(data)),
        "rclone copyto": ("rclone", "copyto", str(data), f":s3:{BUCKET}/key"),
        "aws s3 cp": (str(AWS), "s3", "cp", "--quiet", str(data), f"s3://{BUCKET}/key"),
    }
    undo, size = partial(_emptied, store), data.stat().st_size
    jobs = [Job(name, command, size, undo=undo) for name, command in commands.items()]
    with _bucket(store):
        return _beside_the_best(bench, f"put, a file: {what}", jobs, 1.0)


def _put_pipe(bench: Bench, store: Store, what: str, data: Path) -> Row:
    undo, key = partial(_emptied, store), f"{BUCKET}/key"
    jobs = [
        Job(name, command, data.stat().st_size, data, piped=True, undo=undo)
        for name, command in (
            ("statepipe", statepipe("put", f"s3://{key}")),
            ("rclone rcat", ("rclone", "rcat", f":s3:{key}")),
            ("aws s3 cp -", (str(AWS), "s3", "cp", "--quiet", "-", f"s3://{key}")),
        )
    ]
    with _bucket(store):
        return _beside_the_best(bench, f"put, from a pipe: {what}", jobs, 1.5)


def _get(bench: Bench, store: Store, what: str, data: Path) -> Row:
    commands = {
        "statepipe": statepipe("get", f"s3://{BUCKET}/key"),
        "rclone cat": ("rclone", "cat", f":s3:{BUCKET}/key"),
        "aws s3 cp": (str(AWS), "s3", "cp", "--quiet", f"s3://{BUCKET}/key", "-"),
    }
    size = data.stat().st_size
    jobs = [Job(name, command, size, piped=True) for name, command in commands.items()]
    with _bucket(store):
        store.client.upload_file(str(data), BUCKET, "key")
        return _beside_the_best(bench, f"get, into a pipe: {what}", jobs, 1.0)


@contextmanager
def _bucket(store: Store) -> Iterator[None]:
    store.client.create_bucket(Bucket=BUCKET)
    try:
        yield
    finally:
        _emptied(store)
        store.client.delete_bucket(Bucket=BUCKET)


def _beside_the_best(bench: Bench, what: str, jobs: list[Job], target: float) -> Row:
    """All in turns, and how many times as fast ours, the first, is as the fastest of the others."""
    there = [job for job in jobs if shutil.which(job.command[0]) is not None]
    mine, *others = interleave(there, bench.rounds)
    runs = {each.name: asdict(each) for each in (mine, *others)}
    if not others:
        return Row(what, speed(mine), "neither rclone nor the aws command is installed", runs=runs)
    ratio = mine.rate / max(each.rate for each in others)
    peers = "; ".join(f"{each.name}: {speed(each)}" for each in others)
    return Row(what, speed(mine), peers, ratio, f">= {target:g}", ratio >= target, runs)


def lazy_objects(bench: Bench) -> list[Row]:
    """Lazy starts of a guest of 512 MiB: from the store, over ways of some length, and from a file on this host."""
    if shutil.which("qemu-system-x86_64") is None:
        return [Row("load --lazy from an object", "-", "qemu-system-x86_64 is not installed")]
    taken: dict[tuple[str, int | None], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="statepipe-bench-") as folder, _store(bench) as store, ExitStack() as stack:
        states = States(Path(folder) / "states", SMALL, bench.inputs.plain)
        store.client.create_bucket(Bucket=BUCKET)
        for sealed in ("plain", "age"):
            store.client.upload_file(str(states.file(sealed)), BUCKET, sealed)
        endpoints = {delay: stack.enter_context(_delayed(store, delay / 1000)) for delay in DELAYS}
        for _ in range(bench.rounds):
            for sealed in ("plain", "age"):
                taken.setdefault((sealed, None), []).append(states.start(Way(sealed, "warm")))
                for delay, endpoint in endpoints.items():
                    with _reaching(endpoint):
                        times = taken.setdefault((sealed, delay), [])
                        times.append(states.start_from(f"s3://{BUCKET}/{sealed}", sealed))
    return [_start(sealed, delay, taken) for sealed in ("plain", "age") for delay in DELAYS]


def _start(sealed: str, delay: int, taken: dict[tuple[str, int | None], list[float]]) -> Row:
    ours, file = taken[sealed, delay], taken[sealed, None]
    allowed = ROOM + TRIPS * delay
    ratio = median(ours) / allowed
    what = f"lazy start from an object, {SMALL} MiB, {sealed}, {delay} ms away"
    peer = f"a file: {shown(file)}; {ROOM:.0f} ms + {TRIPS} round trips: {allowed:.0f} ms"
    return Row(what, shown(ours), peer, ratio, "<= 1", ratio <= 1, {"ours": ours, "file": file})


@contextmanager
def _delayed(store: Store, seconds: float) -> Iterator[str]:
    """An endpoint from which the store is that far away."""
    command = [sys.executable, "-m", "tests.bench.delayed", store.endpoint.rpartition(":")[2], str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as relay:
        try:
            assert relay.stdout is not None
            yield f"http://127.0.0.1:{int(relay.stdout.readline())}"
        finally:
            relay.kill()
