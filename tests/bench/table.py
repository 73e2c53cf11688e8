"""Results as a table for people."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HEADINGS = ("what", "ours", "peer", "ratio", "target", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One line: figures in words, whether the target was met (None: there is none), and every run for JSON."""

    what: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    target: str = ""
    ok: bool | None = None
    runs: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        verdict = {None: "", True: "ok", False: "MISSED"}[self.ok]
        return self.what, self.ours, self.peer, "" if self.ratio is None else f"{self.ratio:.2f}", self.target, verdict


def render(rows: Sequence[Row]) -> str:
    """Aligned columns under their headings."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def legend(rounds: int) -> str:
    """How to read it."""
    return (
        f"Medians of {rounds} runs in turns; ± is (slowest - fastest) / median, over 15 % is a busy machine.\n"
        "MB and GB are 10^6 and 10^9 plain bytes. cpu: seconds of user and system time for a GB, all threads.\n"
        "Input is read from a file and output goes to /dev/null, unless the row says otherwise."
    )


def machine() -> str:
    """Cores, versions, load."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, Python {platform.python_version()}, {_zstd()}, load {load} at this moment"


def _zstd() -> str:
    if shutil.which("zstd") is None:
        return "no zstd"
    words = subprocess.run(["zstd", "--version"], capture_output=True, text=True).stdout.replace(",", " ").split()
    return "zstd " + next((word for word in words if word.startswith("v")), "of unknown version")
