"""A Linux guest of libvirt's, saved and loaded again and again: not a tick is lost, and not a bit of its memory."""

from __future__ import annotations

import pytest

from tests.libvirt.harness import Libvirt
from tests.libvirt.states import keep
from tests.linux import Missing
from tests.qemu.harness import assert_unbroken


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_linux_counts_on(session: Libvirt, rounds: int) -> None:
    try:
        domain = session.domain("linux", memory=192, transient=True, linux=True)
    except Missing as missing:
        pytest.skip(str(missing))
    for _ in range(rounds):
        kept = keep(session, domain)
        before = domain.ticks()
        kept.load(check=True)
        domain.wait_ticks(2)
        assert domain.ticks()[: len(before)] == before
    assert_unbroken(domain.ticks())
