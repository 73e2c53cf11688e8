"""tunnel --libvirt with a newer libvirt on one host, or on both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libvirt.conftest import newer_libvirtd
from tests.libvirt.tunnels import two

OPTIONS = ((), ("--p2p",), ("--parallel",))


@pytest.mark.parametrize("old", [True, pytest.param(False, marks=pytest.mark.faults)], ids=["from old", "from new"])
def test_a_guest_goes_to_a_newer_libvirt(tmp_path: Path, old: bool) -> None:
    newer = newer_libvirtd()
    with two(tmp_path, "libvirtd" if old else newer, newer) as hosts:
        for options in OPTIONS:
            with hosts.guest("web1") as guest, hosts.tunnel("web1") as (near, far, line):
                done = hosts.migrate(line, *options)
                assert done.returncode == 0, (options, done, near.said, far.said)
                hosts.assert_arrived(guest)
