"""receive, and what may become of the QEMU that is to have the guest."""

from __future__ import annotations

from pathlib import Path

from tests.qemu.harness import Guest, assert_runs_on
from tests.qemu.moving import Credentials, mover, receiver


def test_a_qemu_with_a_guest_of_its_own_is_refused_and_unharmed(
    tmp_path: Path, qemu72: str, credentials: Credentials
) -> None:
    with Guest(tmp_path, qemu=qemu72, dirty=2) as source, Guest(tmp_path, qemu=qemu72, dirty=2) as other:
        receiving, port = receiver(credentials, "--qmp", other.socket)
        with receiving, mover(credentials, source, port) as moving:
            assert (moving.wait(), receiving.wait()) == (5, 6), (moving.said, receiving.said)
        assert "QEMU does not wait for a guest: its own is running" in receiving.said[-3]
        assert "QEMU does not wait for a guest: its own is running" in moving.said[0]
        assert_runs_on(source)
        assert_runs_on(other)
