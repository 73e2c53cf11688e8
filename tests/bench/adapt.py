"""compress zstd:auto against every level that might be the best, into sinks of given speeds, in turns."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.data import ROOT, STATEPIPE, Inputs
from tests.bench.measure import Broken
from tests.bench.table import Row

RUNS = 3
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A sink's plan (tests/bench/shaped.py), plain bytes that take it some seconds, and levels that might be best."""

    what: str
    plan: str
    size: int
    levels: tuple[int, ...]


CASES = (
    Case("1 MB/s", "1", 50_000_000, (1, 9, 16, 19)),
    Case("20 MB/s", "20", 400_000_000, (1, 3, 5, 7, 9)),
    Case("200 MB/s", "200", 1_900_000_000, (-3, 1, 2, 3, 5)),
    Case("no limit", "0", 1_900_000_000, (-5, -3, 1, 2)),
    Case("200, 1, 20, no limit", "200:2,1:10,20:4,0", 1_900_000_000, (-5, 1, 3, 9)),
)


def rows(inputs: Inputs) -> list[Row]:
    """One for each sink."""
    return [_row(case, inputs) for case in CASES]


def _row(case: Case, inputs: Inputs) -> Row:
    plain = _part(inputs, case.size)
    words = ["zstd:auto", *(f"zstd:{level}" for level in case.levels)]
    taken: dict[str, list[tuple[float, int]]] = {word: [] for word in words}
    for _ in range(RUNS):
        for word in words:
            taken[word].append(_run(word, plain, case.plan))
    seconds = {word: median(second for second, _ in runs) for word, runs in taken.items()}
    best = min(words[1:], key=seconds.__getitem__)
    ratio = seconds[best] / seconds[words[0]]
    figures = {word: f"{seconds[word]:.1f} s, {plain.stat().st_size / runs[0][1]:.2f}" for word, runs in taken.items()}
    fixed = "; ".join(f"{word[5:]}: {figures[word]}" for word in words[1:])
    return Row(f"adapt, {case.what}", figures[words[0]], fixed, ratio, ">= 0.9", ratio >= 0.9, {"runs": taken})


def _part(inputs: Inputs, size: int) -> Path:
    """About `size` bytes of the input in pieces from all over it, so that they compress as the whole does."""
    if size >= inputs.size:
        return inputs.plain
    path = inputs.folder / f"part{size}"
    if not path.exists():
        step = inputs.size / (size / PIECE)
        with inputs.plain.open("rb") as file, path.open("wb") as out:
            for number in range(size // PIECE):
                file.seek(int(number * step))
                out.write(file.read(PIECE))
    return path


def _run(word: str, plain: Path, plan: str) -> tuple[float, int]:
    """Seconds until the sink had it all, and how many bytes that were."""
    sink = [sys.executable, "-m", "tests.bench.shaped", plan]
    with plain.open("rb") as file:
        start = time.perf_counter()
        with subprocess.Popen([*STATEPIPE, "compress", word], stdin=file, stdout=subprocess.PIPE, cwd=ROOT) as ours:
            shaped = subprocess.run(sink, stdin=ours.stdout, stdout=subprocess.PIPE, cwd=ROOT)
        seconds = time.perf_counter() - start
    if ours.returncode or shaped.returncode:
        raise Broken(f"compress {word} into a sink of '{plan}' ended with {ours.returncode} and {shaped.returncode}")
    return seconds, int(shaped.stdout)
