"""A guest of 512 MB that moves over the loopback, beside QEMU's own migration: total time and downtime by QEMU's word.

Ours over tcp:// is beside QEMU's own tcp:, ours in two phases over TLS beside QEMU's tls-creds. Downtime in two phases
is from QEMU's stop here to our word that the guest runs there, both phases included; QEMU's is its own figure, from
stop to the last byte.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench
from tests.bench.table import Row
from tests.qemu.harness import Guest, run_statepipe
from tests.qemu.moving import Credentials, mover, receiver

MEMORY, FILL = 512, 300
"""MB of the guest, and of them those that hold something."""

DIRTY = {"idle": 0, "dirtying": 4}
"""MB that the guest writes twenty times a second."""


@dataclass(frozen=True, slots=True)
class Took:
    """Milliseconds."""

    total: float
    down: float


def migration(bench: Bench) -> list[Row]:
    """Two rows for each kind of guest and of way: total time and downtime, theirs to ours."""
    if shutil.which("qemu-system-x86_64") is None:
        return [Row("migrate", "-", "qemu-system-x86_64 is not installed")]
    with tempfile.TemporaryDirectory(prefix="statepipe-bench-") as folder:
        credentials = Credentials(Path(folder))
        return [row for kind in DIRTY for way in WAYS for row in _rows(bench.rounds, kind, way, credentials)]


def _rows(rounds: int, kind: str, way: str, credentials: Credentials) -> list[Row]:
    ours, theirs = WAYS[way]
    mine, peers = [], []
    for _ in range(rounds):
        mine.append(_one(ours, kind, credentials))
        peers.append(_one(theirs, kind, credentials))
    what = f"migrate, {kind} guest, {way}"
    total, down = LIMITS[way]
    return [
        _row(f"{what}: total", [each.total for each in mine], [each.total for each in peers], total),
        _row(f"{what}: downtime", [each.down for each in mine], [each.down for each in peers], down),
    ]


def _row(what: str, mine: list[float], theirs: list[float], limit: float) -> Row:
    ratio = median(mine) / max(median(theirs), 1)
    shown = [f"{median(each):.0f} ms ±{spread(each):.0%}" for each in (mine, theirs)]
    return Row(what, shown[0], f"QEMU: {shown[1]}", ratio, f"<= {limit:g}", ratio <= limit)


Way = Callable[[Guest, Guest, Credentials], Took]


def _one(way: Way, kind: str, credentials: Credentials) -> Took:
    qemu = shutil.which("qemu-system-x86_64") or ""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statepipe-bench-")))
        source = stack.enter_context(Guest(folder, qemu=qemu, memory=MEMORY, fill=FILL, dirty=DIRTY[kind]))
        source.wait_ticks(5)
        paused = ["-S"] if way is _two_phases else []
        target = Guest(folder, qemu=qemu, memory=MEMORY, image=source.image, incoming="defer", args=paused)
        took = way(source, stack.enter_context(target), credentials)
        target.wait_ticks(1)
        return took


def _two_phases(source: Guest, target: Guest, credentials: Credentials) -> Took:
    receiving, port = receiver(credentials, "--qmp", target.socket)
    with receiving, mover(credentials, source, port) as moving:
        if moving.wait() or receiving.wait():
            raise Broken(f"{moving.said} {receiving.said}")
        found = next(hit for line in moving.said if (hit := re.search(r"stopped for (\d+) ms", line)))
        return Took(source.migration()["total-time"], float(found[1]))


def _one_phase(source: Guest, target: Guest, credentials: Credentials) -> Took:
    done = run_statepipe("migrate", "--qmp", source.socket, f"tcp://127.0.0.1:{_listen(target)}")
    if done.returncode:
        raise Broken(done.stderr)
    return _told(source)


def _plain(source: Guest, target: Guest, credentials: Credentials) -> Took:
    return _by_qemu(source, target)


def _tls(source: Guest, target: Guest, credentials: Credentials) -> Took:
    for guest, endpoint, host in ((source, "client", "source"), (target, "server", "destination")):
        folder = str(credentials.folder / host)
        guest.qmp("object-add", qom_type="tls-creds-x509", id="tls0", dir=folder, endpoint=endpoint, verify_peer=True)
        guest.qmp("migrate-set-parameters", tls_creds="tls0")
    return _by_qemu(source, target)


def _by_qemu(source: Guest, target: Guest) -> Took:
    source.qmp("migrate-set-parameters", max_bandwidth=0)
    source.capabilities(return_path=True)
    source.qmp("migrate", uri=f"tcp:127.0.0.1:{_listen(target)}")
    source.wait_status("completed", "failed")
    return _told(source)


def _listen(target: Guest) -> int:
    target.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
    return int(target.migration()["socket-address"][0]["port"])


def _told(source: Guest) -> Took:
    """QEMU 7.2 says `completed` a moment before it has its figures."""
    source.wait_run_state("postmigrate")
    figures: dict[str, Any] = source.migration()
    if figures["status"] != "completed":
        raise Broken(str(figures))
    return Took(figures["total-time"], figures["downtime"])


WAYS: dict[str, tuple[Way, Way]] = {"tcp": (_one_phase, _plain), "TLS": (_two_phases, _tls)}
"""Ours and QEMU's."""

LIMITS = {"tcp": (1.15, 1.2), "TLS": (1.0, 1.2)}
"""What total time and downtime may come to, of QEMU's own."""
