"""ps, rate, cancel, and the line that SIGUSR1 asks for: how far it is, for people."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from statepipe.cli.messages import clean, show, warn
from statepipe.errors import StatepipeError, UsageError
from statepipe.pipeline.job import Job
from statepipe.units import format_rate, format_size, parse_rate

if TYPE_CHECKING:
    from statepipe.pipeline.jobs import Found

Values = dict[str, Any]

LINE = 4000
"""Bytes of a status line at most. What fits into a page goes into a pipe that has room at once, and whole."""

CLEAR = "\x1b[H\x1b[J"
"""The cursor to the top left, and all behind it blank (ECMA-48)."""


def run_ps(name: str, values: Values) -> int:
    """The running statepipes, once or again and again."""
    from statepipe.pipeline.jobs import elsewhere, find_jobs

    if values["seconds"] is not None and not values["watch"]:
        raise UsageError("SECONDS goes with --watch")
    pause = _seconds(values["seconds"] or "2")
    if notice := elsewhere():
        warn("ps", notice)
    jobs = find_jobs()
    _show(jobs, [], values)
    while values["watch"]:
        time.sleep(pause)
        before, jobs = jobs, find_jobs()
        _show(jobs, before, values)
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0.1 <= seconds <= 86400:
        raise UsageError(f"'{text}' is not a number of seconds", hint="write 0.1 to 86400")
    return seconds


def _show(jobs: Sequence[Found], before: Sequence[Found], values: Values) -> None:
    if values["json"]:
        rows = [{"id": job.id, **(job.status or {"error": job.trouble})} for job in jobs]
        show(json.dumps(rows, indent=None if values["watch"] else 2))
    else:
        top = CLEAR if values["watch"] and sys.stdout.isatty() else ""
        show(table(jobs, before), top)


COLUMNS = ("ID", "VERB", "TIME", "IN", "OUT", "RATE", "WHAT", "STAGES")


def table(jobs: Sequence[Found], before: Sequence[Found] = ()) -> str:
    """One line a job. The rate is that since the look `before`, or since its start."""
    earlier = {job.id: job.status for job in before}
    lines = [COLUMNS, *(_row(job, earlier.get(job.id)) for job in jobs)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS) - 1)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines)


def _row(job: Found, earlier: dict[str, Any] | None) -> tuple[str, ...]:
    if (status := job.status) is None:
        return (job.id, "?", "", "", "", "", job.trouble, "")
    stages = " ".join([*_phase(status), *(stage["name"] for stage in status["stages"])])
    sizes = (format_size(status["bytes_in"]), format_size(status["bytes_out"]))
    row = (job.id, status["verb"], _clock(status["seconds"]), *sizes, _rate(status, earlier), status["what"], stages)
    return tuple(map(clean, row))


def _phase(status: dict[str, Any]) -> list[str]:
    """Of a guest that moves: where it stands, and how much of its memory is left, changing how fast; of a tunnel, what
    it carries."""
    if (count := status.get("connections")) is not None:
        return [f"{count} connections of {status['connections_total']} open, {status['links']} links;"]
    if (phase := status.get("phase")) is None:
        return []
    ram = status.get("migration", {}).get("ram")
    if ram is None:
        return [f"{phase};"]
    dirty = format_rate(ram.get("dirty-pages-rate", 0) * ram.get("page-size", 0))
    left = f"{format_size(ram['remaining'])} of {format_size(ram['total'])} left, dirty {dirty}"
    rounds = f"round {ram['dirty-sync-count']}, expected downtime {status['migration'].get('expected-downtime', 0)} ms"
    return [f"{phase}: {left}, {rounds};"]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _rate(status: dict[str, Any], earlier: dict[str, Any] | None = None) -> str:
    then = earlier or {"seconds": 0, "bytes_in": 0}
    passed = status["seconds"] - then["seconds"]
    return format_rate((status["bytes_in"] - then["bytes_in"]) / passed) if passed > 0 else "-"


def run_rate(name: str, values: Values) -> int:
    """A new rate for a job's throttle."""
    from statepipe.pipeline.jobs import set_rate

    set_rate(values["id"], parse_rate(values["rate"]))
    return 0


def run_cancel(name: str, values: Values) -> int:
    """The end of a job."""
    from statepipe.pipeline.jobs import cancel

    cancel(values["id"])
    return 0


def tell_status(job: Job) -> None:
    """A line on standard error, if there is room for it at once: nobody's data shall wait for who reads it."""
    try:
        line = f"statepipe: {job.verb}: {status_line(job.status())}"
    except StatepipeError:
        line = f"statepipe: {job.verb or 'starting'}: no bytes are on their way now"
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if any(event & select.POLLOUT for _, event in poll.poll(0)):
        with suppress(OSError):
            os.write(2, clean(line).encode(errors="backslashreplace")[:LINE] + b"\n")


def status_line(status: dict[str, Any]) -> str:
    """A status in one line."""
    flow = f"{format_size(status['bytes_in'])} in, {format_size(status['bytes_out'])} out"
    stages = [f"{each['name']} {format_size(each['in'])} to {format_size(each['out'])}" for each in status["stages"]]
    moving = [text.rstrip(";") for text in _phase(status)]
    return "; ".join([f"{_clock(status['seconds'])}, {flow}, {_rate(status)}", *moving, *stages])
