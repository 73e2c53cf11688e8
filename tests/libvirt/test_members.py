"""Users of the system's libvirtd: one who may ask it, as a member of the group libvirt, and is nobody else otherwise;
one whom it does not let in; and root, as sudo makes it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.libvirt.harness import MEMBER, SHARED, Libvirt, started
from tests.qemu.harness import statepipe_command, wait_for
from tests.statefiles import DOMAIN, cut, noisy_stream, state_file


class Member:
    """That user, with a home and a runtime folder."""

    def __init__(self, libvirt: Libvirt) -> None:
        self.libvirt, self.home = libvirt, libvirt.place("home-of-member")
        os.chown(self.home, MEMBER, MEMBER)

    def statepipe(self, *words: object, umask: str = "022", sudo: bool = False) -> subprocess.CompletedProcess[str]:
        """Run statepipe; with `sudo`, as root with the environment that `sudo -E` leaves.

        Where Python is in root's home, the user may read what is closed to others: that does not help to open a FIFO
        for writing, nor to look at another user's process."""
        who = ["setpriv", f"--reuid={MEMBER}", f"--regid={MEMBER}", "--clear-groups"]
        who += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
        where = ["env", f"HOME={self.home}", f"XDG_RUNTIME_DIR={self.home}"]
        if sudo:
            who, where = [], [*where, f"SUDO_UID={MEMBER}", f"SUDO_GID={MEMBER}", "SUDO_USER=nobody"]
        masked = ["sh", "-c", 'umask "$0" && exec "$@"', umask]
        return self.libvirt.run(*who, *where, *masked, *statepipe_command(), *words, check=False)


@contextmanager
def user_of(daemon: Mapping[str, object]) -> Iterator[Member]:
    """A user beside a libvirtd with these settings."""
    if os.geteuid():
        pytest.skip("only root can start a system's libvirtd, and become another user")
    with started("system", daemon=daemon) as libvirt:
        yield Member(libvirt)


@pytest.fixture
def member() -> Iterator[Member]:
    """A user who may ask libvirtd."""
    with user_of(SHARED) as member:
        yield member


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
    assert done.returncode == 3, done.stderr
    assert re.search(r"the domain vm1 is shut off \((failed|crashed)\)", done.stderr), done.stderr  # by who is faster
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


def test_the_file_is_of_who_saves_and_closed_to_others_whatever_the_umask(member: Member) -> None:
    """sudo may leave the user's runtime folder in the environment: root has nothing there."""
    domain = member.libvirt.domain(memory=32, fill=2, dirty=1)
    for sudo, owner, umask in ((False, MEMBER, "000"), (False, MEMBER, "077"), (True, 0, "000")):
        state = member.home / "state"
        done = member.statepipe("save", "--domain", "vm1", state, umask=umask, sudo=sudo)
        assert done.returncode == 0, done.stderr
        assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (owner, 0o600)
        done = member.statepipe("load", "--domain", state, umask=umask, sudo=sudo)
        assert done.returncode == 0, done.stderr
        state.unlink()
    domain.assert_runs_on()
    assert [(path.name, path.stat().st_uid) for path in member.home.rglob("*")] == [("statepipe", MEMBER)]


CLOSED = {"unix_sock_rw_perms": "0770", "unix_sock_group": "libvirt-qemu", "auth_unix_rw": "none"}
"""Of libvirtd.conf: its socket is another group's."""

POLKIT = {"unix_sock_rw_perms": "0777", "auth_unix_rw": "polkit"}
"""Of libvirtd.conf: polkit decides, as in Debian."""


def assert_not_let_in(user: Member, told: str) -> None:
    """Neither save nor load gets to libvirt; both say why, and who may."""
    file = user.home / "kept"
    file.write_bytes(state_file(cut(noisy_stream(), 3), domain=DOMAIN))
    for words in (["save", "--domain", "vm1", user.home / "state"], ["load", "--domain", file]):
        done = user.statepipe(*words)
        assert done.returncode == 6 and f"cannot connect to libvirt: {told}" in done.stderr, done.stderr
        assert "libvirt does not let your user in: it must be in the group libvirt" in done.stderr
    assert not (user.home / "state").exists()


@pytest.mark.parametrize(
    ("daemon", "told"),
    [(CLOSED, "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied"), (POLKIT, "internal ")],
    ids=["another group's socket", "no polkit"],
)
def test_a_user_whom_libvirt_does_not_let_in_is_told(daemon: Mapping[str, object], told: str) -> None:
    with user_of(daemon) as user:
        assert_not_let_in(user, told)


ACTION = """<policyconfig><action id="org.libvirt.unix.manage"><message>manage</message><defaults>
<allow_any>auth_admin_keep</allow_any><allow_inactive>auth_admin_keep</allow_inactive>
<allow_active>auth_admin_keep</allow_active></defaults></action></policyconfig>"""

RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "org.libvirt.unix.manage" && subject.isInGroup("libvirt")) { return polkit.Result.YES; }
});"""
"""Both as libvirt installs them."""

POLKITD = "/usr/lib/polkit-1/polkitd"


@contextmanager
def polkit(libvirt: Libvirt) -> Iterator[None]:
    """polkit and its bus, where this libvirtd is; a newly started libvirtd asks it."""
    place = "/usr/share/polkit-1"
    for name, text in (("actions/libvirt.policy", ACTION), ("rules.d/60-libvirt.rules", RULE)):
        file, folder = libvirt.folder / Path(name).name, f"{place}/{Path(name).parent}"
        file.write_text(text)
        file.chmod(0o644)
        libvirt.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        libvirt.run("cp", file, folder)
    libvirt.run("mkdir", "-p", "/run/dbus", "/var/lib/polkit-1")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with libvirt.popen("dbus-daemon", "--system", "--nofork", "--nopidfile", **quiet) as bus:
        try:
            wait_for(
                "bus", lambda: libvirt.run("test", "-S", "/run/dbus/system_bus_socket", check=False).returncode == 0
            )
            with libvirt.popen(POLKITD, "--no-debug", **quiet) as daemon:
                try:
                    libvirt.end()
                    libvirt.start()
                    yield
                finally:
                    daemon.kill()
        finally:
            bus.kill()


@pytest.mark.faults
def test_polkit_lets_in_the_members_of_its_group_alone() -> None:
    if not (os.path.exists(POLKITD) and shutil.which("dbus-daemon")):
        pytest.skip("polkitd is not installed")
    with user_of(POLKIT) as user, polkit(user.libvirt):
        assert_not_let_in(user, "authentication unavailable: no polkit agent available")
        domain = user.libvirt.domain(memory=32, fill=2, dirty=1)
        with (user.libvirt.folder / "group").open("a") as group:
            group.write("libvirt:x:64056:nobody\n")
        state = user.home / "state"
        done = user.statepipe("save", "--domain", "vm1", state)
        assert done.returncode == 0, done.stderr
        assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (MEMBER, 0o600)
        done = user.statepipe("load", "--domain", state)
        assert done.returncode == 0, done.stderr
        domain.assert_runs_on()
