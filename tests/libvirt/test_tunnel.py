"""tunnel --libvirt: guests of one libvirt go to another by `virsh migrate`, and a tunnel is all that connects them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from statepipe.tunnel.libvirthost import SYSTEM_FOLDER
from statepipe.tunnel.libvirthost import Host as LibvirtHost
from tests.libvirt.conftest import newer_libvirtd
from tests.libvirt.harness import DOMAIN, USER, Domain
from tests.libvirt.tunnels import FOLDER, Hosts, counted, left, two
from tests.qemu.harness import wait_for
from tests.qemu.moving import Credentials
from tests.sshd import sshd

SLOW = ("--bandwidth", "1")
"""MiB/s: the guest's memory takes some 25 seconds. On a busy host, virsh takes seconds to say how much is sent."""

RETRY = ("--retry", "1")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if os.geteuid() != 0:
        pytest.skip("only root can start a system's libvirtd")
    with two(tmp_path_factory.mktemp("certificates")) as both:
        yield both


@pytest.mark.parametrize(
    "options",
    [(), ("--p2p",), ("--parallel", "--parallel-connections", "3"), ("--p2p", "--compressed")],
    ids=["plain", "p2p", "parallel", "p2p compressed"],
)
def test_a_guest_goes_to_the_other_host(hosts: Hosts, options: tuple[str, ...]) -> None:
    with hosts.guest("web1", form="qcow2") as guest, hosts.tunnel("web1", "--once") as (near, far, line):
        before = counted(guest)
        done = hosts.migrate(line, *options)
        assert done.returncode == 0, (done, near.said, far.said)
        assert near.wait() == 0, near.said
        assert far.wait() == 0, far.said
        hosts.assert_arrived(guest)
        assert counted(guest) > before
    assert left(hosts.here) == left(hosts.there) == []


def test_a_guest_goes_by_ssh_with_nothing_to_start_there(hosts: Hosts, tmp_path: Path) -> None:
    with sshd(tmp_path) as host, hosts.guest("web1") as guest, hosts.by_ssh(host, "web1", "--once") as near:
        done = hosts.migrate(near.line(), "--parallel")
        assert done.returncode == 0, (done, near.said)
        assert near.wait() == 0, near.said
        hosts.assert_arrived(guest)
        wait_for("end of the far end", lambda: not left(hosts.there))


def test_a_killed_ssh_costs_its_time_alone(hosts: Hosts, tmp_path: Path) -> None:
    with (
        sshd(tmp_path) as host,
        hosts.guest("web1", fill=24, dirty=1) as guest,
        hosts.by_ssh(host, "web1", "--once") as near,
        hosts.migrating(near.line(), *SLOW) as virsh,
    ):
        hosts.wait_sent(guest, 2 << 20)
        for pid in host.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        hosts.here.virsh("migrate-setspeed", "web1", 10000)
        assert virsh.wait(120) == 0, (virsh.communicate(), near.said)
        hosts.assert_arrived(guest)
        assert near.wait() == 0, near.said


def test_a_guest_may_have_any_name(hosts: Hosts) -> None:
    name = "web 1 a&b=c?d großer"
    with hosts.guest(name) as guest, hosts.tunnel(name) as (near, far, line):
        done = hosts.migrate(line, "--p2p", "--parallel")
        assert done.returncode == 0, (done, near.said, far.said)
        hosts.assert_arrived(guest)


@pytest.mark.parametrize("version", ["installed", "newer"])
def test_apparmor_s_profile_of_any_guest_allows_the_sockets(version: str) -> None:
    """As libvirt itself makes it. Whether the kernel has AppArmor does not matter for that."""
    root = ["chroot", f"{Path(newer_libvirtd()).parent}/tree"] if version == "newer" else []
    helper = [*root, "/usr/lib/libvirt/virt-aa-helper", "-d", "-c", "-u", f"libvirt-{uuid.UUID(int=1)}"]
    places = {"qemu": "/bin/true", "image": "/x", "serial": "/y"}
    domain = DOMAIN.format(name="web 1", memory=64, format="raw", boot="", more="", **places)
    domain = domain.replace("<memory", f"<uuid>{uuid.UUID(int=1)}</uuid><memory")
    done = subprocess.run(helper, input=domain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    rules = [line.split('"')[1] for line in (done.stdout + done.stderr).splitlines() if line.endswith('" rw,')]
    patterns = [re.escape(rule).replace(r"\*\*", ".*").replace(r"\*", "[^/]*") for rule in rules]
    paths = LibvirtHost("system", SYSTEM_FOLDER, (), 0, 0).paths("0123abcd", "web 1")
    for path in (paths.memory, paths.disks):
        assert any(re.fullmatch(pattern, path) for pattern in patterns), rules
    assert not any(re.fullmatch(pattern, paths.memory + "2") for pattern in patterns)


def test_disks_go_along_over_nbd(hosts: Hosts, tmp_path: Path) -> None:
    """The other host has an empty disk of its own at the same path."""
    with hosts.guest("web1", form="qcow2") as guest, hosts.tunnel("web1", "--once") as (near, far, line):
        disk = guest.image.with_name("there.img")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
        disk.chmod(0o666)
        hosts.there.run("mount", "--bind", disk, guest.image)
        try:
            done = hosts.migrate(line, "--copy-storage-all", "--p2p")
            assert done.returncode == 0, (done, near.said, far.said)
            hosts.assert_arrived(guest)
            assert near.wait() == 0, near.said
        finally:
            hosts.there.virsh("destroy", "web1", check=False)
            hosts.there.run("umount", guest.image)
        same = subprocess.run(["qemu-img", "compare", guest.image, disk], capture_output=True, text=True, check=False)
        assert same.returncode == 0, same


@pytest.mark.parametrize(
    "options",
    [pytest.param((), id="plain"), pytest.param(("--p2p", "--parallel"), id="p2p parallel", marks=pytest.mark.faults)],
)
def test_a_cable_that_is_out_for_six_seconds_goes_unnoticed(hosts: Hosts, options: tuple[str, ...]) -> None:
    with (
        hosts.guest("web1", fill=24, dirty=1) as guest,
        hosts.tunnel("web1") as (near, far, line),
        hosts.migrating(line, *SLOW, *options) as virsh,
    ):
        hosts.wait_sent(guest, 2 << 20)
        hosts.cable[1].cut()
        time.sleep(6)  # no event: the fault itself
        hosts.cable[1].mend()
        hosts.here.virsh("migrate-setspeed", "web1", 10000)
        assert virsh.wait(120) == 0, (virsh.communicate(), near.said, far.said)
        hosts.assert_arrived(guest)
        near.wait_said("no longer silent|is back|arrives again|after 6")


def test_a_cable_that_is_out_as_it_begins_only_delays_it(hosts: Hosts) -> None:
    with hosts.guest("web1") as guest, hosts.tunnel("web1") as (near, far, line):
        hosts.cable[0].cut()  # the kernel knows at once that there is no way
        with hosts.migrating(line, "--p2p", "--parallel") as virsh:
            wait_for("news of it", lambda: any("nothing has arrived" in text for text in near.said))
            hosts.cable[0].mend()
            assert virsh.wait(120) == 0, (virsh.communicate(), near.said, far.said)
        hosts.assert_arrived(guest)


@pytest.mark.faults
def test_a_cable_that_is_out_for_good_leaves_the_guest_where_it_is(hosts: Hosts) -> None:
    with (
        hosts.guest("web1", fill=24, dirty=1) as guest,
        hosts.tunnel("web1", *RETRY) as (near, far, line),
        hosts.migrating(line, *SLOW) as virsh,
    ):
        hosts.wait_sent(guest, 2 << 20)
        hosts.cable[1].cut()
        try:
            assert virsh.wait(120) == 1, (virsh.communicate(), near.said, far.said)
            assert near.wait() == 5, near.said
            near.wait_said("the other end is gone: no link to .* for 1 s|error: no link to .* for 1 s")
            far.wait_said(r"\(the tunnel for web1\) failed: no link to .* for 1 s")
        finally:
            hosts.cable[1].mend()
        hosts.assert_stayed(guest)


def test_a_daemon_there_that_is_started_again_is_found_by_the_next_migration(hosts: Hosts) -> None:
    with hosts.guest("web1", fill=24, dirty=1) as guest, hosts.tunnel("web1") as (near, far, line):
        with hosts.migrating(line, *SLOW) as virsh:
            hosts.wait_sent(guest, 2 << 20)
            hosts.there.end()
            said = virsh.communicate(timeout=120)[1]
            assert virsh.returncode == 1 and "error: " in said, said
        hosts.there.start()
        hosts.assert_stayed(guest)
        assert hosts.migrate(line).returncode == 0, (near.said, far.said)
        hosts.assert_arrived(guest)


def test_a_socket_whose_name_is_removed_ends_the_tunnel(hosts: Hosts) -> None:
    with hosts.tunnel("web1") as (near, far, line):
        hosts.here.run("rm", line[line.index("--migrateuri") + 1].removeprefix("unix://"))
        assert near.wait() == 5, near.said
        near.wait_said("memory.tunnelmigrate.dest.web1 can no longer be reached: its name was removed")
        far.wait_said("the tunnel for the guest web1 has ended")


@pytest.mark.parametrize(
    ("options", "which"),
    [
        pytest.param((), "near", id="plain-near"),
        pytest.param((), "far", id="plain-far", marks=pytest.mark.faults),
        pytest.param(("--p2p", "--parallel"), "near", id="p2p parallel-near", marks=pytest.mark.faults),
        pytest.param(("--p2p", "--parallel"), "far", id="p2p parallel-far"),
    ],
)
def test_a_killed_end_leaves_the_guest_where_it_is(hosts: Hosts, which: str, options: tuple[str, ...]) -> None:
    with (
        hosts.guest("web1", fill=24, dirty=1) as guest,
        hosts.tunnel("web1", *RETRY) as (near, far, line),
        hosts.migrating(line, *SLOW, *options) as virsh,
    ):
        hosts.wait_sent(guest, 2 << 20)
        (near if which == "near" else far).kill()
        said = virsh.communicate(timeout=120)[1]
        assert virsh.returncode == 1 and "error: " in said, said
        hosts.assert_stayed(guest)
        if which == "far":
            assert near.wait() == 5, near.said
            near.wait_said("error: no link to .* for 1 s")
        else:
            far.wait_said(r"connection \d+ \(the tunnel for web1\) failed: no link to .* for 1 s")
    with hosts.guest("web1") as guest, hosts.tunnel("web1", "--once") as (near, far, line):
        """What was killed is in nobody's way."""
        assert hosts.migrate(line).returncode == 0
        hosts.assert_arrived(guest)
        assert near.wait() == 0
    assert left(hosts.here) == left(hosts.there) == []


@pytest.mark.faults
def test_an_end_that_is_killed_at_any_time_loses_no_guest(hosts: Hosts) -> None:
    """Before the migration, in it, at its end, after it: the guest runs on one host, and virsh says on which.

    If libvirtd cannot know, in the instant of the end, it keeps the guest paused where it was.
    """
    random = Random("kill")
    for number in range(12):
        options = ("--p2p", "--parallel") if number % 2 else ()
        with (
            hosts.guest("web1", dirty=0) as guest,
            hosts.tunnel("web1", *RETRY) as ends,
            hosts.migrating(ends[2], *options) as virsh,
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                virsh.wait(random.uniform(0.1, 1.5))  # no event: any time
            ends[random.randrange(2)].kill()
            said = virsh.communicate(timeout=120)
            if virsh.returncode == 0:
                hosts.assert_arrived(guest)
            else:
                assert "error: " in said[1], said
                hosts.assert_settled(guest)


def test_a_cancelled_migration_can_be_begun_again_through_the_same_tunnel(hosts: Hosts) -> None:
    with hosts.guest("web1", fill=24, dirty=1) as guest, hosts.tunnel("web1") as (near, far, line):
        for options in [(), ("--p2p", "--parallel")]:
            with hosts.migrating(line, *SLOW, *options) as virsh:
                hosts.wait_sent(guest, 2 << 20)
                hosts.here.virsh("domjobabort", "web1")
                said = virsh.communicate(timeout=120)[1]
                assert virsh.returncode == 1 and "canceled by client" in said, said
                hosts.assert_stayed(guest)
        assert hosts.migrate(line).returncode == 0, (near.said, far.said)
        hosts.assert_arrived(guest)


def test_two_guests_at_once_have_a_tunnel_each(hosts: Hosts) -> None:
    with (
        hosts.guest("web1") as first,
        hosts.guest("web2") as second,
        hosts.far() as far,
        hosts.near("web1") as one,
        hosts.near("web2") as two,
        hosts.migrating(one.line(), "--p2p") as left_one,
        hosts.migrating(two.line(), "--parallel") as left_two,
    ):
        assert (left_one.wait(120), left_two.wait(120)) == (0, 0), (one.said, two.said, far.said)
        for guest in (first, second):
            hosts.assert_arrived(guest)


def test_a_peer_that_is_not_trusted_gets_no_tunnel(hosts: Hosts, tmp_path: Path) -> None:
    stranger = Hosts(hosts.here, hosts.there, hosts.cable, Credentials(tmp_path, "192.0.2.1", "192.0.2.2"))
    with hosts.far() as far, stranger.near("web1") as near:
        before = left(hosts.there)
        assert near.wait() == 5
        near.wait_said("error: no trust between us")
        far.wait_said("turned away")
        assert left(hosts.there) == before


def test_a_peer_that_may_not_use_it_gets_no_tunnel(hosts: Hosts) -> None:
    with hosts.far("--peer", "somebody else") as far, hosts.near("web1") as near:
        assert near.wait() == 5, near.said
        far.wait_said("turned away")


def test_no_daemon_there_is_told_before_the_migration(hosts: Hosts) -> None:
    with hosts.far("--libvirtd", "/run/libvirt/none") as far, hosts.near("web1") as near:
        assert near.wait() == 5, near.said
        near.wait_said("no libvirt daemon answers: /run/libvirt/none: No such file or directory")
        far.wait_said("no libvirt daemon answers")


CALL = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as program:
    program.connect(sys.argv[1])
    sys.stdout.write(repr(program.recv(1)))
"""
"""What a program at a socket of the near end hears, as a user of that number."""

QEMU_USER = USER.split(":")[2]


def call(hosts: Hosts, path: str, user: str) -> subprocess.CompletedProcess[str]:
    return hosts.here.run(sys.executable, "-c", CALL, path, user, check=False)


def sockets(line: list[str]) -> tuple[str, str, str]:
    """Those of the daemon, of memory and of disks."""
    return line[8].partition("=")[2], line[10].removeprefix("unix://"), line[12].removeprefix("unix://")


def test_nobody_at_a_target_is_one_connection_s_failure(hosts: Hosts) -> None:
    with hosts.tunnel("web1") as (near, far, line):
        for number, (path, what) in enumerate(zip(sockets(line)[1:], ("memory", "disks"), strict=True), 1):
            assert call(hosts, path, QEMU_USER).stdout == "b''"
            near.wait_said(rf"connection {number} \({what}\) failed: .*no QEMU listens at {path}: No such file")
            far.wait_said(rf"connection {number + 1} \({what}\) failed: no QEMU listens at {path}: No such file")
        with hosts.guest("web1") as guest:
            assert hosts.migrate(line, "--parallel").returncode == 0, (near.said, far.said)
            hosts.assert_arrived(guest)


def test_other_users_reach_no_socket_and_qemu_s_user_not_the_daemon(hosts: Hosts) -> None:
    with hosts.tunnel("web1") as (_, _, line):
        daemon, *others = sockets(line)
        for path in (daemon, *others):
            assert "PermissionError" in call(hosts, path, "65534").stderr
        assert "PermissionError" in call(hosts, daemon, QEMU_USER).stderr


def test_folders_that_differ_are_told_before_the_migration(hosts: Hosts) -> None:
    with hosts.far("--folder", "/run/libvirt/other") as far, hosts.near("web1") as near:
        assert near.wait() == 1, near.said
        near.wait_said(f"the sockets are in {FOLDER} here, and in /run/libvirt/other on ")
        far.wait_said("the tunnel for the guest web1 has ended")


def test_a_line_without_its_tunnel_fails_and_the_guest_stays(hosts: Hosts) -> None:
    with hosts.guest("web1") as guest:
        with hosts.tunnel("web1") as (near, far, line):
            near.send(signal.SIGTERM)
            assert near.wait() == 143, near.said
            far.wait_said("the tunnel for the guest web1 has ended")
        done = hosts.migrate(line)
        assert done.returncode == 1 and "No such file or directory" in done.stderr
        hosts.assert_stayed(guest)


# --- postcopy: the guest runs there while most of its memory is still here

POSTCOPY = ("--postcopy", "--bandwidth", "2", "--postcopy-bandwidth", "2")


@pytest.fixture(scope="module")
def rooted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Hosts on which root runs QEMU: the kernel does not let other users have userfaultfd."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a system's libvirtd")
    with two(tmp_path_factory.mktemp("certificates"), user="root", group="root") as both:
        yield both


@contextlib.contextmanager
def in_postcopy(hosts: Hosts, guest: Domain, line: list[str]) -> Iterator[subprocess.Popen[str]]:
    """virsh, once the guest runs there."""
    with hosts.migrating(line, *POSTCOPY) as virsh:
        hosts.wait_sent(guest, 2 << 20)
        hosts.here.virsh("migrate-postcopy", guest.name)
        wait_for("postcopy", lambda: hosts.seen_there(guest).state() == "running (post-copy)")
        yield virsh


def test_a_cable_that_is_out_in_postcopy_goes_unnoticed(rooted: Hosts) -> None:
    with rooted.guest("web1", fill=24, dirty=2) as guest, rooted.tunnel("web1") as (near, far, line):
        with in_postcopy(rooted, guest, line) as virsh:
            rooted.cable[1].cut()
            time.sleep(6)  # no event: the fault itself
            rooted.cable[1].mend()
            assert virsh.wait(120) == 0, (virsh.communicate(), near.said, far.said)
        rooted.assert_arrived(guest)


@pytest.mark.parametrize("which", ["near", "far"])
def test_a_postcopy_whose_tunnel_was_killed_is_resumed_through_another(rooted: Hosts, which: str) -> None:
    with rooted.guest("web1", fill=24, dirty=2) as guest:
        with rooted.tunnel("web1", *RETRY) as (near, far, line), in_postcopy(rooted, guest, line) as virsh:
            (near if which == "near" else far).kill()
            said = virsh.communicate(timeout=120)[1]
            assert virsh.returncode == 1 and "error: " in said, said
        wait_for("failure here", lambda: guest.state() == "paused (post-copy failed)")
        wait_for("failure there", lambda: rooted.seen_there(guest).state() == "running (post-copy failed)")
        with rooted.tunnel("web1") as (near, far, line):
            done = rooted.migrate(line, "--postcopy", "--postcopy-resume")
            # libvirt 9.0 may look at the other QEMU before the new connection has reached it, and report a failure
            assert not done.returncode or "failed in post-copy phase" in done.stderr, (done, near.said, far.said)
            wait_for("its end", lambda: rooted.seen_there(guest).state() == "running (migrated)")
            wait_for("its end here", lambda: guest.state() in ("", "shut off (migrated)"))
            rooted.assert_arrived(guest)


def test_a_killed_tunnel_s_sockets_are_removed_by_the_next(hosts: Hosts) -> None:
    with hosts.far() as far, hosts.near("web1") as near:
        near.line()
        near.kill()
        far.kill()
        assert near.wait() == far.wait() == -9
    assert len(left(hosts.here)) == len(left(hosts.there)) == 1
    with hosts.tunnel("web1") as (near, far, _):
        wait_for("one folder on each", lambda: len(left(hosts.here)) == len(left(hosts.there)) == 1)
        near.send(signal.SIGTERM)
        assert near.wait() == 143
        wait_for("none", lambda: not left(hosts.here) and not left(hosts.there))
