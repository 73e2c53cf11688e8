"""A Linux guest of libvirt's, saved and loaded again and again: not a tick is lost, and not a bit of its memory."""

from __future__ import annotations

import pytest

from tests.libvirt.harness import Domain, Libvirt
from tests.libvirt.states import keep
from tests.linux import Missing, linux_arguments
from tests.qemu.harness import assert_unbroken


def linux_domain(libvirt: Libvirt) -> Domain:
    """A domain with the Linux guest of tests/linux.py, which has printed two ticks."""
    domain = Domain(libvirt, "linux", memory=192)
    try:
        _, kernel, _, initrd, _, line = linux_arguments(domain.files)
    except Missing as missing:
        pytest.skip(str(missing))
    boot = f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{line}</cmdline></os>"
    domain.xml_path.write_text(domain.xml_path.read_text().replace("</os>", boot))
    libvirt.virsh("create", domain.xml_path)
    domain.wait_ticks(2)
    return domain


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_linux_counts_on(session: Libvirt, rounds: int) -> None:
    domain = linux_domain(session)
    for _ in range(rounds):
        kept = keep(session, domain)
        before = domain.ticks()
        kept.load(check=True)
        domain.wait_ticks(2)
        assert domain.ticks()[: len(before)] == before
    assert_unbroken(domain.ticks())
