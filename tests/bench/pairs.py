"""What the rows are made of: two jobs in turns, on one input."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass

from tests.bench.data import STATEPIPE, Inputs
from tests.bench.measure import Job, Series, interleave
from tests.bench.table import Row

ZSTD = ("zstd", "-q", "-T0", "-1", "-c")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every row needs."""

    inputs: Inputs
    rounds: int


def statepipe(*words: str) -> tuple[str, ...]:
    """A command line of ours."""
    return (*STATEPIPE, *words)


def speed(series: Series) -> str:
    """`812 MB/s ±4% cpu 1.20`"""
    return f"{series.rate / 1e6:.0f} MB/s ±{series.spread:.0%} cpu {series.cpu_per_gb:.2f}"


def pair(bench: Bench, what: str, ours: Job, peer: Job, target: float | None = None) -> Row:
    """Two jobs in turns, and how many times as fast ours is."""
    if shutil.which(peer.command[0]) is None:
        (mine,) = interleave([ours], bench.rounds)
        return Row(what, speed(mine), f"{peer.command[0]} is not installed", runs={"ours": asdict(mine)})
    mine, theirs = interleave([ours, peer], bench.rounds)
    ratio = mine.rate / theirs.rate
    return Row(
        what,
        speed(mine),
        f"{peer.name}: {speed(theirs)}",
        ratio,
        "" if target is None else f">= {target:g}",
        None if target is None else ratio >= target,
        {"ours": asdict(mine), "peer": asdict(theirs)},
    )
