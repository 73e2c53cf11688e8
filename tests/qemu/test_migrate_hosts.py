"""migrate and receive between two hosts, network namespaces, whose cable is cut and whose packets are swallowed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.net.hosts import Host, two_hosts
from tests.qemu.harness import Guest, assert_runs_on, assert_unbroken, run_statepipe
from tests.qemu.moving import Credentials, Running, assert_moved, waiting

PORT = 20490
ADDRESSES = "192.0.2.1", "192.0.2.2"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """For hosts that are called by their addresses."""
    return Credentials(tmp_path_factory.mktemp("certificates"), *ADDRESSES)


@dataclass(frozen=True)
class Move:
    """A guest on its slow way from one host to the other, and where `migrate` tells its steps."""

    hosts: tuple[Host, Host]
    source: Guest
    target: Guest
    moving: Running
    receiving: Running
    steps: Iterator[str]

    def cut(self, seconds: float) -> None:
        """The cable is out for so long."""
        self.hosts[1].cut()
        time.sleep(seconds)  # no event: the fault itself
        self.hosts[1].mend()

    def swallow(self) -> None:
        """Both hosts drop what arrives, for ever."""
        for host in self.hosts:
            host.swallow()

    def hurry(self) -> None:
        """The rest without a limit."""
        done = run_statepipe("rate", str(self.moving.pid), "unlimited")
        assert done.returncode == 0, (done, self.moving.said)

    def wait_step(self, state: str) -> None:
        """Until `migrate` has taken that step."""
        for line in self.steps:
            if json.loads(line).get("step", {}).get("state") == state:
                return
        raise AssertionError(f"it never came to {state}: {self.moving.said}")


@contextlib.contextmanager
def move(folder: Path, qemu: str, certificates: Credentials, retry: int, *more: str) -> Iterator[Move]:
    """A quarter of the guest has crossed."""
    with contextlib.ExitStack() as stack:
        here, there = stack.enter_context(two_hosts())
        source = stack.enter_context(Guest(folder, qemu=qemu, dirty=2))
        source.wait_ticks(3)
        target = stack.enter_context(waiting(folder, qemu, source))
        patience = ("--retry", retry)
        words = ("receive", f"tls://:{PORT}", *certificates.of("destination"), *patience, "--qmp", target.socket)
        receiving = stack.enter_context(Running(*words, on=there))
        reading, writing = os.pipe()
        steps = stack.enter_context(os.fdopen(reading))
        words = ("migrate", *certificates.of("source"), *patience, "--qmp", source.socket, "--status-fd", writing)
        words = (*words, *more, "throttle:4M", f"tls://{there.ip4}:{PORT}")
        moving = stack.enter_context(Running(*words, on=here, pass_fds=[writing]))
        os.close(writing)
        source.wait_transferred(3 << 20)
        yield Move((here, there), source, target, moving, receiving, steps)


def assert_through(it: Move) -> None:
    """The guest runs there, and both statepipes say so."""
    assert (it.moving.wait(), it.receiving.wait()) == (0, 0), (it.moving.said, it.receiving.said)
    assert_moved(it.source, it.target)


@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.faults)])
def test_a_cable_that_is_out_for_a_while_costs_its_time_alone(
    tmp_path: Path, qemu72: str, certificates: Credentials, seconds: int
) -> None:
    with move(tmp_path, qemu72, certificates, 60) as it:
        it.cut(seconds)
        it.hurry()
        assert_through(it)


@pytest.mark.faults
def test_a_black_hole_in_precopy_leaves_the_guest_where_it_is(
    tmp_path: Path, qemu72: str, certificates: Credentials
) -> None:
    """The other host cannot be told. It notices by itself and ends its QEMU, which never ran."""
    with move(tmp_path, qemu72, certificates, 2) as it:
        before = len(it.source.ticks())
        it.swallow()
        since = time.monotonic()
        assert it.moving.wait() == 5, it.moving.said
        assert time.monotonic() - since < 30  # a link is dead after 8 s, and given up 2 s later
        assert "the guest is running here" in it.moving.said[-2]
        assert len(it.source.ticks()) > before  # it ran all the time
        assert_runs_on(it.source)
        assert_unbroken(it.source.ticks())
        assert it.receiving.wait() == 5, it.receiving.said
        assert it.target.ended() and not it.target.ticks()


@pytest.mark.faults
def test_a_cable_that_is_out_in_the_final_stage_costs_its_time_alone(
    tmp_path: Path, qemu72: str, certificates: Credentials
) -> None:
    """As long as the guest may be stopped for it."""
    with move(tmp_path, qemu72, certificates, 60, "--switchover-timeout", "60") as it:
        it.wait_step("HANDING")
        it.cut(10)
        assert_through(it)


@pytest.mark.faults
def test_a_cable_that_is_out_for_longer_than_the_guest_may_be_stopped_leaves_it_where_it_is(
    tmp_path: Path, qemu72: str, certificates: Credentials
) -> None:
    with move(tmp_path, qemu72, certificates, 60, "--switchover-timeout", "5") as it:
        it.wait_step("HANDING")
        it.cut(10)
        assert it.moving.wait() == 1, it.moving.said
        assert "the switchover took longer than 5 s" in "".join(it.moving.said)
        assert "the guest is running here" in it.moving.said[-2]
        assert_runs_on(it.source)
        assert_unbroken(it.source.ticks())
        assert it.receiving.wait() == 5, it.receiving.said
        assert it.target.ended() and not it.target.ticks()
