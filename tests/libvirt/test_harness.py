"""The harness itself: a domain counts, libvirtd can be started again, and nothing is left."""

from __future__ import annotations

from pathlib import Path

from tests.libvirt.harness import Libvirt, is_alive, started


def test_a_domain_runs_on_while_libvirtd_is_started_again(libvirt: Libvirt) -> None:
    domain = libvirt.domain()
    libvirt.end()
    libvirt.start()
    assert domain.state().startswith("running")
    domain.assert_runs_on()


def test_nothing_is_left() -> None:
    with started("session") as libvirt:
        domain = libvirt.domain()
        pid = domain.pid()
        assert is_alive(pid)
    assert not is_alive(pid)
    assert not Path(libvirt.folder).exists()
