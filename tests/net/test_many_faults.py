"""Many faults in one long stream, and networks that are slow and lossy: the runs that `make faults` makes."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import tmpfs
from tests.net.crossing import MIB, Keys, crossing
from tests.net.cuts import CUTS, note, note_cut, paired
from tests.net.distance import far_apart
from tests.net.hosts import Host, two_hosts

pytestmark = pytest.mark.faults

SIZE = 1024 * MIB
WINDOW = 64 * MIB
ROUNDS = 50

RANDOM = ["reset", "black hole", "black hole for answers", "cable", "address", "long packets lost"]
RANDOM += ["sender stopped", "receiver stopped"]

SHORT = (0.05, 2.5)
"""Seconds that most cuts last, at the least and at the most."""

LASTING = {10: 60.0, 25: 12.0, 40: 60.0}
"""Black holes, by the number of the cut, that last longer."""

HUNG = 20.0

SEED = "STATEPIPE_FAULTS_SEED"
"""Names a seed, to have the same faults once more."""


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        both[0].slow_down("300mbit")
        both[0].run("ip", "link", "set", "cable", "gso_max_segs", "1")
        yield both


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return paired(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: a disk that others write to may stand still for seconds, which is no fault of a network."""
    with tmpfs(2 * SIZE) as folder:
        yield folder


@pytest.mark.parametrize("links", [1, 4])
def test_fifty_faults(hosts: tuple[Host, Host], keys: Keys, memory: Path, links: int) -> None:
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(1 << 32))
    print(f"{SEED}={seed}")  # pytest shows it where the test fails
    chance = random.Random(seed)
    with crossing(hosts, keys, memory, SIZE, words=["--retry", "90"], send=["--links", links]) as it:
        for number in range(ROUNDS):
            it.reach((number + 1) * SIZE // (ROUNDS + 8))  # some flows past the cuts, and some must be left
            name = "black hole" if number in LASTING else chance.choice(RANDOM)
            seconds = 0 if name == "address" else LASTING.get(number) or chance.uniform(*SHORT)
            CUTS[name].begin(it)
            it.lasts(seconds)
            resumed = it.resume(lambda name=name: CUTS[name].mend(it))
            note_cut(f"{links} links, {number:2} {name}", seconds, resumed)
        resent = it.succeed()
    middle, longest = statistics.median(it.resumed), max(it.resumed)
    figures = f"median {middle:.3f} s, longest {longest:.3f} s, {resent / MIB:.1f} MiB again"
    note(f"{links} links, {ROUNDS} cuts, seed {seed}: {figures}")
    assert resent <= ROUNDS * WINDOW
    assert longest < HUNG and middle < HUNG / 10


FAR = 48 * MIB


@pytest.mark.parametrize("loss", [0, 0.01])
@pytest.mark.parametrize("links", [1, 4])
def test_a_long_way(keys: Keys, tmp_path: Path, links: int, loss: float) -> None:
    """80 ms there and back."""
    with two_hosts() as both, far_apart(both, 0.04, loss) as (_, there):
        with crossing(both, keys, tmp_path, FAR, send=["--links", links], to=there) as it:
            it.reach(1)
            began = time.monotonic()
            resent = it.succeed()
            seconds = time.monotonic() - began
        control = both[0].run("sysctl", "-n", "net.ipv4.tcp_congestion_control").stdout.strip()
    rate = f"{FAR / seconds / 1e6:.1f} MB/s, {resent / MIB:.1f} MiB again"
    note(f"80 ms, {loss:.0%} of the packets lost, {links} links, {control}: {rate}")
    assert resent <= WINDOW
