"""How much memory we may take, as cgroups of both versions and ulimit say it; and what small pieces take."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statepipe.memorylimit import memory_limit, workers_within
from statepipe.stage import Buffer, cut, gather
from statepipe.stages.watch import hold
from statepipe.threads import cores

MIB = 1 << 20


def system(folder: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
LIMITS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "its own": ("0::/a/b\n", {f"{V2}/a/b/memory.max": "67108864\n"}, 64 * MIB),
    "one above": ("0::/a/b\n", {f"{V2}/a/b/memory.max": "max\n", f"{V2}/a/memory.max": "33554432\n"}, 32 * MIB),
    "a container's": ("0::/../x\n", {f"{V2}/memory.max": "16777216\n"}, 16 * MIB),
    "version 1": ("4:cpu:/\n3:memory:/a\n0::/\n", {f"{V1}/a/memory.limit_in_bytes": "8388608\n"}, 8 * MIB),
    "a group with a strange name": ("0::/a\u2028\x0cb\n", {f"{V2}/a\u2028\x0cb/memory.max": "4194304\n"}, 4 * MIB),
    "none": ("0::/\n", {}, None),
    "no cgroups": ("", {}, None),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_of_a_cgroup(name: str, tmp_path: Path) -> None:
    groups, files, limit = LIMITS[name]
    found = memory_limit(system(tmp_path, groups, files))
    assert found == limit if limit else found > 64 * MIB


def test_no_more_workers_than_there_is_room_for(tmp_path: Path) -> None:
    there = system(tmp_path, "0::/\n", {f"{V2}/memory.max": str(64 * MIB)})
    assert [workers_within(each, there) for each in (1, 32 * MIB, 1 << 40)] == [cores(), 1, 1]


def test_a_ulimit_counts() -> None:
    script = "from statepipe.memorylimit import memory_limit; print(memory_limit())"
    command = ["sh", "-c", 'ulimit -v 500000; exec "$@"', "sh", sys.executable, "-c", script]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) <= 500_000 << 10


def bytes_of(iterator: Iterator[Buffer | list[Buffer]]) -> bytes:
    return b"".join(b"".join(each) if isinstance(each, list) else each for each in iterator)


@pytest.mark.parametrize(
    "through",
    [lambda flow: cut(flow, MIB, early=True), lambda flow: cut(flow, MIB, early=False), hold(lambda offset: True, MIB)],
    ids=["blocks", "chunks", "hold"],
)
def test_small_pieces_take_little_more_than_they_hold(through: Callable[[Iterator[Buffer]], Iterator[Buffer]]) -> None:
    data = bytes(range(251)) * 200
    tracemalloc.start()
    try:
        assert bytes_of(through(data[at : at + 1] for at in range(len(data)))) == data
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data)
    finally:
        tracemalloc.stop()


def test_a_lump_that_was_handed_on_does_not_grow() -> None:
    first: list[Buffer] = []
    gather(first, b"handed on")
    second: list[Buffer] = []
    gather(second, first[0])
    gather(second, b", and more")
    assert b"".join(first) == b"handed on" and b"".join(second) == b"handed on, and more"
