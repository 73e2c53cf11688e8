"""A stream over a long way, 1 Gbit/s and 80 ms there and back between two network namespaces: over one link and eight.

This kernel has no netem, so the packets pass through our hands (tests/net/distance.py); they are long, or we could not
pass on so many. What one connection can do is bounded by the kernel's buffers (net.ipv4.tcp_wmem, tcp_rmem: 4 and 6 MB
as they come): the link holds 10 MB.
"""

from __future__ import annotations

import os
import subprocess
import time
from statistics import median

from tests.bench.data import ROOT, STATEPIPE
from tests.bench.measure import Broken, spread
from tests.bench.pairs import Bench
from tests.bench.secure import make_creds
from tests.bench.table import Row
from tests.net.distance import far_apart
from tests.net.hosts import Host, two_hosts

DELAY, RATE = 0.04, 125e6
"""Seconds each way, bytes a second."""

LONG = 60_000
"""Bytes of a packet."""

PORT = "20490"


def far(bench: Bench) -> list[Row]:
    """For one link and for eight."""
    if os.geteuid() != 0:
        return [Row("send and recv, tls, 80 ms and 1 Gbit/s", "-", "needs root, for network namespaces")]
    creds = make_creds(bench.inputs.folder)
    with two_hosts() as hosts, far_apart(hosts, DELAY, 0.0, mtu=LONG, rate="1gbit") as (_, there):
        return [_row(bench, hosts, ["--tls-creds", str(creds)], there, links) for links in (1, 8)]


def _row(bench: Bench, hosts: tuple[Host, Host], words: list[str], there: str, links: int) -> Row:
    taken = [_once(bench, hosts, [*words], there, links) for _ in range(bench.rounds)]
    rate = bench.inputs.size / median(taken)
    what = f"send and recv, tls, 80 ms and 1 Gbit/s, links: {links}"
    shown = f"{rate / 1e6:.0f} MB/s ±{spread(taken):.0%}"
    return Row(what, shown, "the link: 125 MB/s", rate / RATE, ">= 0.9", rate >= 0.9 * RATE, {"seconds": taken})


def _once(bench: Bench, hosts: tuple[Host, Host], words: list[str], there: str, links: int) -> float:
    """Seconds from the sender's start to both ends."""
    receiver = hosts[1].start(*STATEPIPE, "recv", *words, f"tls://{there}:{PORT}", stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        with bench.inputs.plain.open("rb") as plain:
            start = time.perf_counter()
            send = [*STATEPIPE, "send", "--retry", "10", "--links", str(links), *words, f"tls://{there}:{PORT}"]
            sender = hosts[0].start(*send, stdin=plain, cwd=ROOT)
            if sender.wait() or receiver.wait():
                raise Broken(f"send and recv ended with {sender.returncode} and {receiver.poll()}")
            return time.perf_counter() - start
    finally:
        receiver.kill()
        receiver.wait()
