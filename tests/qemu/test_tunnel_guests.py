"""tunnel: what QEMU does beside one stream: postcopy and its recovery, its preempt channel, a mirror of its disks."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.harness import Guest, QmpError, assert_continues, wait_for
from tests.qemu.moving import Credentials
from tests.qemu.tunnels import Way, guests, prepare, status_of, tunnel

RETRY = ("--retry", "1")
"""So soon is a connection given up here whose links do not come back."""


@contextlib.contextmanager
def in_postcopy(folder: Path, qemu: str, way: Way, **capabilities: bool) -> Iterator[tuple[Guest, Guest]]:
    """A guest that runs over there, while most of its memory is still here and comes slowly."""
    with postcopy_guests(folder, qemu, way, **capabilities) as (source, target):
        source.qmp("migrate-set-parameters", max_bandwidth=8 << 20, max_postcopy_bandwidth=1 << 20)
        source.qmp("migrate", uri=f"unix:{way.here}")
        source.wait_status("active")
        source.qmp("migrate-start-postcopy")
        for guest in (source, target):  # the source is there first: a window of its stream may be on its way
            guest.wait_status("postcopy-active")
        yield source, target


@contextlib.contextmanager
def postcopy_guests(folder: Path, qemu: str, way: Way, **capabilities: bool) -> Iterator[tuple[Guest, Guest]]:
    """As `guests`; skips the test where the kernel does not let QEMU have userfaultfd."""
    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(guests(folder, qemu, way, postcopy_ram=True, **capabilities))
        except QmpError as error:
            if "ostcopy" not in str(error):
                raise
            pytest.skip(f"no postcopy here: {error}")
        yield pair


def recover(source: Guest, target: Guest, way: Way) -> None:
    """QEMU's own recovery, over a new connection."""
    target.qmp("migrate-recover", uri=f"unix:{way.there}")
    source.qmp("migrate-set-parameters", max_postcopy_bandwidth=0)
    source.qmp("migrate", uri=f"unix:{way.here}", resume=True)
    ended = source.wait_status("completed", "failed")  # "postcopy-paused" it is for a moment still
    assert ended["status"] == "completed", (ended, way.near.said, way.far.said)
    target.wait_ticks(3)
    assert_continues(source.serial(), target.serial())


def wait_paused(source: Guest, target: Guest) -> None:
    for guest in (source, target):
        assert guest.wait_status("postcopy-paused", "failed", "completed")["status"] == "postcopy-paused"


def test_a_postcopy_whose_tunnel_was_killed_recovers_through_another(
    tmp_path: Path, qemu: str, credentials: Credentials
) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(tunnel(tmp_path, credentials))
        source, target = stack.enter_context(in_postcopy(tmp_path, qemu, first))
        for each in (first.near, first.far):
            each.send(signal.SIGKILL)
        wait_paused(source, target)
        recover(source, target, stack.enter_context(tunnel(tmp_path, credentials, name="second-")))


@pytest.mark.faults
def test_a_postcopy_whose_network_was_gone_too_long_recovers_through_the_same_tunnel(
    tmp_path: Path, qemu: str, credentials: Credentials
) -> None:
    with tunnel(tmp_path, credentials, *RETRY) as way, in_postcopy(tmp_path, qemu, way) as (source, target):
        way.rail.faults.clear.clear()
        way.rail.cut()
        for end in (way.near, way.far):
            end.wait_said("connection 1 failed: no link to .* for 1 s")
        wait_paused(source, target)
        way.rail.faults.clear.set()
        recover(source, target, way)
        way.assert_no_traceback()


def test_preempt_has_a_channel_of_its_own(tmp_path: Path, newer: str, credentials: Credentials) -> None:
    """QEMU 7.2 takes channels in the order of their making and has preempt only half."""
    with tunnel(tmp_path, credentials) as way, in_postcopy(tmp_path, newer, way, postcopy_preempt=True) as pair:
        source, target = pair
        way.rail.cut()
        source.qmp("migrate-set-parameters", max_postcopy_bandwidth=0)
        target.wait_ticks(3)
        assert source.wait_status("completed", "postcopy-paused", "failed")["status"] == "completed"
        assert_continues(source.serial(), target.serial())
        wait_for("the connections' end", lambda: not status_of(way.near)["connections"])
        end_well(way)


def end_well(way: Way) -> None:
    """No connection has broken off."""
    for end in (way.near, way.far):
        end.send(signal.SIGTERM)
        assert end.wait() == 143
        assert not [line for line in end.said if "connection" in line], end.said


SIZE = 8 << 20
"""Bytes of the disk that moves along."""

DISK = ("-device", "ide-hd,drive=data,bus=ide.1,id=disk", "-blockdev")


def disk(path: Path) -> list[str]:
    """A disk that the guest has beside that which it boots from."""
    return [*DISK, f"driver=raw,node-name=data,file.driver=file,file.filename={path}"]


def test_a_disk_is_mirrored_over_nbd_and_the_guest_follows(tmp_path: Path, qemu: str, credentials: Credentials) -> None:
    here, there = tmp_path / "disk-here", tmp_path / "disk-there"
    here.write_bytes(os.urandom(SIZE))
    there.write_bytes(bytes(SIZE))
    with (
        tunnel(tmp_path, credentials) as way,
        tunnel(tmp_path, credentials, name="nbd-") as nbd,
        Guest(tmp_path, qemu=qemu, dirty=2, args=disk(here)) as source,
        Guest(tmp_path, qemu=qemu, image=source.image, incoming="defer", args=disk(there)) as target,
    ):
        source.wait_ticks(2)
        prepare(source, target)
        source.capabilities(pause_before_switchover=True)
        target.qmp("migrate-incoming", uri=f"unix:{way.there}")
        serve(target, nbd)
        mirror(source, nbd)
        nbd.rail.cut()
        wait_for("the mirror", lambda: all(job["status"] == "ready" for job in source.qmp("query-jobs")))
        written = write(source)
        source.qmp("migrate", uri=f"unix:{way.here}")
        source.wait_status("pre-switchover")
        source.qmp("block-job-cancel", device="mirror")  # of one that is ready: its good end
        wait_for("its end", lambda: not source.qmp("query-jobs"))
        source.qmp("migrate-continue", state="pre-switchover")
        assert source.wait_status()["status"] == "completed", (way.near.said, way.far.said)
        target.wait_ticks(3)
        assert_continues(source.serial(), target.serial())
        source.qmp("blockdev-del", node_name="there")
        wait_for("the client's goodbye", lambda: not status_of(nbd.near)["connections"])
        target.qmp("nbd-server-stop")
        for each in (way, nbd):
            end_well(each)
    content = there.read_bytes()
    assert content == here.read_bytes() and content[: len(written)] == written


def serve(target: Guest, nbd: Way) -> None:
    """The disk over there, for whoever comes through the tunnel."""
    address = {"type": "unix", "data": {"path": str(nbd.there)}}
    target.qmp("nbd-server-start", addr=address)
    target.qmp("block-export-add", id="data", type="nbd", node_name="data", writable=True)


def mirror(source: Guest, nbd: Way) -> None:
    """Begin to copy the disk here onto that over there."""
    far = {"driver": "nbd", "server": {"type": "unix", "path": str(nbd.here)}, "export": "data"}
    source.qmp("blockdev-add", node_name="there", **far)
    source.qmp("blockdev-mirror", job_id="mirror", device="data", target="there", sync="full")


def write(source: Guest) -> bytes:
    """Into the disk here, while it is mirrored; what stands at its beginning then."""
    count = 1 << 20
    done = source.qmp("human-monitor-command", command_line=f'qemu-io -d disk "write -P 0x5a 0 {count}"')
    assert "wrote" in done or not done, done
    return b"\x5a" * count
