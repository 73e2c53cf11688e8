"""tunnel --libvirt between two users' libvirtds, without root: a guest moves, or stays where it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.tunnels import Hosts, counted, two_sessions


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """No statepipe has run on either yet."""
    if os.geteuid() != 0:
        pytest.skip("only root can make two hosts of one")
    folder = Path(tempfile.mkdtemp(prefix="two-", dir="/tmp"))  # short: it is in the names of sockets
    try:
        with two_sessions(folder) as both:
            yield both
    finally:
        shutil.rmtree(folder)


def test_a_guest_goes_to_the_other_host(hosts: Hosts) -> None:
    with hosts.guest("web1") as guest, hosts.tunnel("web1", "--once") as (near, far, line):
        before = counted(guest)
        done = hosts.migrate(line)
        assert done.returncode == 0, (done, near.said, far.said)
        assert near.wait() == 0, near.said
        assert far.wait() == 0, far.said
        hosts.assert_arrived(guest)
        assert counted(guest) > before


@pytest.mark.parametrize("which", ["near", pytest.param("far", marks=pytest.mark.faults)])
def test_a_killed_end_leaves_the_guest_where_it_is(hosts: Hosts, which: str) -> None:
    with (
        hosts.guest("web1", fill=24, dirty=1) as guest,
        hosts.tunnel("web1", "--retry", "1") as (near, far, line),
        hosts.migrating(line, "--bandwidth", "2") as virsh,
    ):
        hosts.wait_sent(guest, 4 << 20)
        (near if which == "near" else far).kill()
        said = virsh.communicate(timeout=120)[1]
        assert virsh.returncode == 1 and "error: " in said, said
        hosts.assert_stayed(guest)
