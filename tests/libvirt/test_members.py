"""A user who may ask the system's libvirtd, as a member of the group libvirt, and is nobody else otherwise."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.libvirt.harness import MEMBER, SHARED, Libvirt, started
from tests.qemu.harness import statepipe_command


class Member:
    """That user, with a home and a runtime folder."""

    def __init__(self, libvirt: Libvirt) -> None:
        self.libvirt, self.home = libvirt, libvirt.place("home-of-member")
        os.chown(self.home, MEMBER, MEMBER)

    def statepipe(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run statepipe. Where Python is in root's home, it may read what is closed to others: that does not help it to
        open a FIFO for writing, nor to look at another user's process."""
        who = ["setpriv", f"--reuid={MEMBER}", f"--regid={MEMBER}", "--clear-groups"]
        who += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
        where = ["env", f"HOME={self.home}", f"XDG_RUNTIME_DIR={self.home}"]
        return self.libvirt.run(*who, *where, *statepipe_command(), *words, check=False)


@pytest.fixture
def member() -> Iterator[Member]:
    """One of them."""
    if os.geteuid():
        pytest.skip("only root can start a system's libvirtd, and become another user")
    with started("system", daemon=SHARED) as libvirt:
        yield Member(libvirt)


def test_a_member_saves_and_loads_a_domain_that_others_run(member: Member) -> None:
    domain, state = member.libvirt.domain(), member.home / "state"
    refused = member.statepipe("save", "--domain", "vm1", f"verify:{'0' * 64}", state)
    assert refused.returncode == 3, refused.stderr
    assert "the domain vm1 runs on: running (save canceled)" in refused.stderr
    done = member.statepipe("save", "--domain", "vm1", state)
    assert done.returncode == 0, done.stderr
    assert "does not say which disks the guest had" in done.stderr  # its QEMU is another user's
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (MEMBER, 0o600)
    damaged = bytearray(state.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (member.home / "damaged").write_bytes(damaged)
    done = member.statepipe("load", "--domain", member.home / "damaged")
    assert done.returncode == 3 and "the domain vm1 is shut off (failed)" in done.stderr, done.stderr
    done = member.statepipe("load", "--domain", state)
    assert done.returncode == 0, done.stderr
    domain.assert_runs_on()
    assert sorted(path.name for path in member.home.rglob("*")) == ["damaged", "state", "statepipe"]


def test_a_folder_that_is_another_users_is_told_before_libvirt_is_asked(member: Member) -> None:
    domain, sticky = member.libvirt.domain(), member.libvirt.place("sticky")
    sticky.chmod(0o1777)
    closed, theirs = member.libvirt.place("closed"), sticky / "state"
    theirs.write_bytes(b"root's own")
    for path, told in ((theirs, "only owners can replace their files"), (closed / "state", "Permission denied")):
        done = member.statepipe("save", "--domain", "vm1", "--overwrite", path)
        assert done.returncode == 1 and told in done.stderr, done.stderr
    assert theirs.read_bytes() == b"root's own"
    assert domain.state() == "running (booted)"
