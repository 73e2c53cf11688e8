"""ps, rate, cancel, and the line that SIGUSR1 asks for: progress for people."""

from __future__ import annotations

import json
import os
import select
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from statepipe.cli.messages import INTERNAL, clean, show, warn
from statepipe.cli.verb import Values
from statepipe.errors import StatepipeError
from statepipe.pipeline.job import Job
from statepipe.typed import TYPE_CHECKING, Any
from statepipe.units import format_rate, format_size

if TYPE_CHECKING:
    from statepipe.pipeline.jobs import Found

LINE = 4000
"""Most bytes of a status line. A pipe with room takes what fits into a page at once and whole."""

CLEAR = "\x1b[H\x1b[J"
"""Move the cursor to the top left and clear the screen (ECMA-48)."""


def run_ps(name: str, values: Values) -> int:
    """List the running statepipes, once or again and again."""
    from statepipe.lazy.keeping import interrupted
    from statepipe.libvirt.leftover import sweep
    from statepipe.pipeline.jobs import elsewhere, find_jobs

    if notice := elsewhere():
        warn("ps", notice)
    for address, digest in interrupted():
        command = f"statepipe load --resume --qmp {shlex.quote(address)} FILE"
        what = f"a lazy load was interrupted; continue with the state whose blake3 begins {digest}: {command}"
        warn("ps", what)
    sweep()
    jobs = find_jobs()
    _show(jobs, [], values)
    while values["watch"]:
        time.sleep(values["seconds"] or 2)
        before, jobs = jobs, find_jobs()
        _show(jobs, before, values)
    return 0


def _show(jobs: Sequence[Found], before: Sequence[Found], values: Values) -> None:
    if values["json"]:
        rows = [{"id": job.id, **(job.status or {"error": job.trouble})} for job in jobs]
        show(json.dumps(rows, indent=None if values["watch"] else 2))
    else:
        top = CLEAR if values["watch"] and sys.stdout.isatty() else ""
        show(table(jobs, before), top)


COLUMNS = ("ID", "VERB", "TIME", "IN", "OUT", "RATE", "WHAT", "STAGES")


def table(jobs: Sequence[Found], before: Sequence[Found] = ()) -> str:
    """Return a line for each job. The rate is that since the list `before`, or since the job's start."""
    earlier = {job.id: job.status for job in before}
    lines: list[Sequence[str]] = [COLUMNS]
    for job in jobs:
        if (status := job.status) is None:
            lines.append((job.id, "?", "", "", "", "", job.trouble, ""))
            continue
        sizes = (format_size(status["bytes_in"]), format_size(status["bytes_out"]))
        flow = (_clock(status["seconds"]), *sizes, _rate(status, earlier.get(job.id)))
        stages = " ".join([*_phase(status), *(stage["name"] for stage in _named(status))]).removesuffix(";")
        lines.append([clean(cell) for cell in (job.id, status["verb"], *flow, status["what"], stages)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS) - 1)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines)


def _named(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages that have a name which people know."""
    return [stage for stage in status["stages"] if stage["name"] not in INTERNAL]


def _phase(status: dict[str, Any]) -> list[str]:
    """Return a migration's phase, the memory left and how fast it changes; or a tunnel's connections; or a lazy load's
    pages and waits."""
    if (lazy := status.get("lazy")) is not None:
        left = "" if lazy["seconds_left"] is None else f", {lazy['seconds_left']:g} s left"
        waits = f"waits {lazy['wait_median_ms']:g} ms (median), {lazy['wait_worst_ms']:g} ms (longest)"
        return [f"{lazy['pages']} of {lazy['pages_total']} pages, {lazy['asked']} asked for, {waits}{left};"]
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
    """Give a job's throttle a new rate."""
    from statepipe.pipeline.jobs import set_rate

    set_rate(values["id"], values["rate"])
    return 0


def run_cancel(name: str, values: Values) -> int:
    """End a job."""
    from statepipe.pipeline.jobs import cancel

    cancel(values["id"])
    return 0


def tell_status(job: Job) -> None:
    """Write a line on standard error, unless it has no room at once: the data must not wait for a reader."""
    try:
        line = f"statepipe: {job.verb}: {status_line(job.status())}"
    except StatepipeError:
        line = f"statepipe: {job.verb or 'starting'}: no bytes are being transferred now"
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if any(event & select.POLLOUT for _, event in poll.poll(0)):
        with suppress(OSError):
            os.write(2, clean(line).encode(errors="backslashreplace")[:LINE] + b"\n")


def status_line(status: dict[str, Any]) -> str:
    """Return a status in one line."""
    flow = f"{format_size(status['bytes_in'])} in, {format_size(status['bytes_out'])} out"
    stages = [f"{each['name']} {format_size(each['in'])} to {format_size(each['out'])}" for each in _named(status)]
    moving = [text.rstrip(";") for text in _phase(status)]
    return "; ".join([f"{_clock(status['seconds'])}, {flow}, {_rate(status)}", *moving, *stages])
