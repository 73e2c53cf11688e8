"""Run programs and note what they took: seconds by the clock, CPU seconds, resident memory.

CPU and memory come from wait4, so they are the child's and that of the children it waited for. The bench keeps
itself small: Linux counts a parent's memory at the fork in a child's largest.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO


class Broken(Exception):
    """A program did not do what was to be measured."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one program: seconds by the clock, CPU seconds (user and system), largest resident bytes."""

    seconds: float
    cpu: float
    rss: int


@dataclass(frozen=True, slots=True)
class Series:
    """Runs of one program over an input of `size` plain bytes."""

    name: str
    size: int
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def cpu(self) -> float:
        return median(run.cpu for run in self.runs)

    @property
    def rss(self) -> int:
        return max(run.rss for run in self.runs)

    @property
    def rate(self) -> float:
        """Plain bytes in a second."""
        return self.size / self.seconds

    @property
    def cpu_per_gb(self) -> float:
        """CPU seconds for 10^9 plain bytes."""
        return self.cpu / self.size * 1e9

    @property
    def spread(self) -> float:
        """How far apart the slowest and the fastest run were, as a part of the median."""
        return spread([run.seconds for run in self.runs])


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / median(values)


@dataclass(frozen=True, slots=True)
class Job:
    """What to run: a command, its input (None: nothing), its output (None: /dev/null), and the plain bytes it handles.

    With `piped` the input comes from a pipe that a cat fills, and the output goes to one that a cat empties. The
    output, and `makes`, a file that the command makes by itself, are removed after each run, off the clock; `undo`
    removes what else it has made.
    """

    name: str
    command: Sequence[str]
    size: int
    source: Path | None = None
    target: Path | None = None
    makes: Path | None = None
    piped: bool = False
    undo: Callable[[], object] = lambda: None

    def run(self) -> Run:
        """Once. Raises Broken unless it ends with status 0."""
        with ExitStack() as stack, tempfile.TemporaryFile() as errors:
            stack.callback(self._clean)
            source = stack.enter_context(_feeding(self))
            target = stack.enter_context(_draining(self))
            return _measure(self.command, source, target, errors)

    def _clean(self) -> None:
        for path in (self.target, self.makes):
            if path is not None:
                path.unlink(missing_ok=True)
        self.undo()


def _measure(command: Sequence[str], source: IO[bytes], target: IO[bytes], errors: IO[bytes]) -> Run:
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=source, stdout=target, stderr=errors)
    source.close()
    target.close()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines()
        raise Broken(f"'{' '.join(command)}' ended with {child.returncode}: {words[-1] if words else 'no message'}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


@contextmanager
def _feeding(job: Job) -> Iterator[IO[bytes]]:
    """The job's standard input."""
    with open(job.source or os.devnull, "rb") as file:
        if not job.piped:
            yield file
            return
        with subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            yield cat.stdout


@contextmanager
def _draining(job: Job) -> Iterator[IO[bytes]]:
    """The job's standard output."""
    with open(job.target or os.devnull, "wb") as file:
        if not job.piped:
            yield file
            return
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
            assert cat.stdin is not None
            yield cat.stdin


def interleave(jobs: Sequence[Job], rounds: int) -> list[Series]:
    """Run every job `rounds` times, in turns, and give a series for each."""
    runs: list[list[Run]] = [[] for _ in jobs]
    for _ in range(rounds):
        for job, taken in zip(jobs, runs, strict=True):
            taken.append(job.run())
    return [Series(job.name, job.size, tuple(taken)) for job, taken in zip(jobs, runs, strict=True)]
