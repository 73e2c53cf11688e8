"""The network between two hosts fails while a stream crosses it: it goes on where it was, and not a byte is lost."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conformance.running import PATIENCE
from tests.net.crossing import MIB, Keys, crossing, listening, sending
from tests.net.cuts import CUTS, Cut, note, note_cut, paired
from tests.net.hosts import Host, two_hosts

SIZE = 64 * MIB
WINDOW = 64 * MIB
"""What may go twice for each cut (session/protocol/channels.py)."""

HUNG = 20.0
"""Seconds that no mended network needs, on the busiest machine; what they are in truth, `make faults` tells."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return paired(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """With a cable slow enough for a stream to be cut in its midst, whose packets are never longer than they seem."""
    with two_hosts() as both:
        both[0].slow_down("500mbit")
        both[0].run("ip", "link", "set", "cable", "gso_max_segs", "1")
        yield both


def assert_survives(
    hosts: tuple[Host, Host], keys: Keys, tmp_path: Path, cut: Cut, seconds: float, words: Sequence[object] = ()
) -> None:
    with crossing(hosts, keys, tmp_path, SIZE, words=words) as it:
        it.reach(16 * MIB)
        cut.begin(it)
        it.lasts(seconds)
        resumed = it.resume(lambda: cut.mend(it))
        resent = it.succeed()
    note_cut(cut.name, seconds, resumed, resent)
    assert resent <= WINDOW and resumed < HUNG


SHORT = [("reset", 0.5), ("black hole", 1.5), ("cable", 0.5), ("address", 0), ("sender stopped", 0.5)]
"""What takes least time; a black hole long enough for another connection to be tried."""

LONG = [
    *((name, seconds) for name in ("reset", "black hole", "cable") for seconds in (3.1, 7, 12)),
    *((name, seconds) for name in ("sender stopped", "receiver stopped") for seconds in (1, 12)),
]
"""Also beyond the 8 s of silence after which a link is held for dead."""


@pytest.mark.parametrize(("name", "seconds"), SHORT)
def test_a_cut_costs_its_time(hosts: tuple[Host, Host], keys: Keys, tmp_path: Path, name: str, seconds: float) -> None:
    """Also where nobody waits for the silence that tells a dead link: that is longer here than HUNG."""
    assert_survives(hosts, keys, tmp_path, CUTS[name], seconds, ["--timeout", "60"])


@pytest.mark.faults
@pytest.mark.parametrize(("name", "seconds"), LONG)
def test_a_long_cut_costs_its_time(
    hosts: tuple[Host, Host], keys: Keys, tmp_path: Path, name: str, seconds: float
) -> None:
    assert_survives(hosts, keys, tmp_path, CUTS[name], seconds)


@pytest.mark.faults
@pytest.mark.parametrize("links", [1, 4])
def test_a_way_that_loses_long_packets_for_good_gets_short_ones(
    hosts: tuple[Host, Host], keys: Keys, tmp_path: Path, links: int
) -> None:
    with crossing(hosts, keys, tmp_path, SIZE, send=["--links", links]) as it:
        it.reach(16 * MIB)
        resumed = it.resume(lambda: CUTS["long packets lost"].begin(it))
        resent = it.succeed()
    note_cut(f"long packets lost, {links} links", 0, resumed, resent)
    assert resumed < HUNG


def test_a_lossy_network_loses_nothing(hosts: tuple[Host, Host], keys: Keys, tmp_path: Path) -> None:
    hosts[1].lose(1)
    with crossing(hosts, keys, tmp_path, SIZE // 2) as it:
        assert it.succeed() == 0


# --- the ends stand still, or are gone


def peak(process: subprocess.Popen[bytes]) -> int:
    """The most memory it ever had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def test_a_reader_that_stops_stops_the_sender_within_the_window(
    hosts: tuple[Host, Host], keys: Keys, tmp_path: Path
) -> None:
    hosts[0].run("tc", "qdisc", "delete", "dev", "cable", "root")
    words = ["--timeout", "1"]
    with (
        listening(hosts[1], keys[1], "--timeout", "30") as (receiver, port),
        sending(hosts[0], keys[0], port, hosts[1].ip4, tmp_path / "status", words) as sender,
    ):
        fed = fill(sender, WINDOW, 1.5)  # longer than silence may last
        assert WINDOW <= fed < WINDOW + 16 * MIB
        for each in (sender, receiver):
            assert peak(each) < WINDOW + 96 * MIB
        sender.stdin.close()
        got = 0
        while data := os.read(receiver.stdout.fileno(), MIB):
            got += len(data)
        assert (sender.wait(PATIENCE), receiver.wait(PATIENCE), got) == (0, 0, fed)


def fill(process: subprocess.Popen[bytes], least: int, seconds: float) -> int:
    """Write until it has taken so many bytes, however long it needs to begin, and then nothing for so many seconds; how
    many bytes it has taken."""
    os.set_blocking(process.stdin.fileno(), False)
    block, count = bytes(MIB), 0
    while select.select([], [process.stdin], [], seconds if count >= least else PATIENCE)[1]:
        with suppress(BlockingIOError):
            count += os.write(process.stdin.fileno(), block)
    return count


@pytest.mark.parametrize("survivor", ["sender", pytest.param("receiver", marks=pytest.mark.faults)])
def test_one_whose_other_host_is_gone_gives_up(
    hosts: tuple[Host, Host], keys: Keys, tmp_path: Path, survivor: str
) -> None:
    """Half open: no packet says that the other one was killed."""
    words = ["--timeout", "3", "--retry", "0.5"]
    with crossing(hosts, keys, tmp_path, SIZE, words=words) as it:
        it.reach(16 * MIB)
        for host in hosts:
            host.swallow()
        gone, left = (it.receiver, it.sender) if survivor == "sender" else (it.sender, it.receiver)
        gone.kill()
        began = time.monotonic()
        assert left.wait(PATIENCE) == 5
        note(f"half open: the {survivor} gives up after {time.monotonic() - began:.1f} s")
        said = [line.decode() for line in left.stderr if not line.startswith(b"progress: ")]
    verb, peer = ("send", "tls://192.0.2.2:") if survivor == "sender" else ("recv", "other")
    assert said[0].startswith(f"statepipe: {verb}: error: no link to {peer}") and " for 0.5 s: " in said[0], said
    assert said[1:] == [
        "statepipe: hint: check that the other host and the network are up; --retry SECONDS waits longer\n"
    ]
    if survivor == "receiver":
        assert "a link was silent for 3 s" in said[0]
    assert not it.path.exists()
