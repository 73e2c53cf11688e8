"""save --domain under what a disk, a kernel and a QEMU can do: the domain runs on and there is no file, or it is shut
off and the file is whole."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.disks import tmpfs
from tests.libvirt.harness import Domain, Libvirt
from tests.libvirt.saving import Save, assert_nothing_left, assert_runs_on, assert_saved, children, injecting, virsh_of
from tests.qemu.harness import wait_for


@pytest.mark.faults
def test_a_slow_disk_changes_nothing(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, under=injecting(domain, "write:delay_enter=40ms", "fsync:delay_enter=2s"))
    assert save.end() == 0, save.stderr
    assert_saved(save)


def test_a_disk_that_is_full_at_once_lets_the_domain_run_on(shared: Libvirt, domain: Domain) -> None:
    with tmpfs(8192) as small:
        (small / "rest").write_bytes(bytes(4096))
        done = shared.statepipe("save", "--domain", domain.name, small / "state")
        assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
        assert [path.name for path in small.iterdir()] == ["rest"]
    domain.assert_runs_on()


def test_a_file_system_that_is_read_only_is_told_before_libvirt_is_asked(shared: Libvirt, domain: Domain) -> None:
    with tmpfs(1 << 20) as small:
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        done = shared.statepipe("save", "--domain", domain.name, small / "state")
    assert done.returncode == 1 and "Read-only file system" in done.stderr, done.stderr
    assert domain.state() == "running (booted)"


@pytest.mark.parametrize(
    "step", ["before save_stream", pytest.param("before Intake.await_question", marks=pytest.mark.faults)]
)
def test_a_qemu_that_is_killed_leaves_no_file(shared: Libvirt, domain: Domain, step: str) -> None:
    """Its stream ends early, or whole: but libvirt never asks, and nobody can say that the guest was not yet to go."""
    save = Save(shared, domain, strike=(signal.SIGSTOP, step))
    save.wait_at_step()
    os.kill(domain.pid(), signal.SIGKILL)
    save.go()
    status = save.end()
    if status:
        assert status == 6, save.stderr
        assert domain.state().startswith("shut off (") and domain.state() != "shut off (saved)"
        assert f"the domain vm1 is {domain.state()}" in save.stderr
        assert not save.file.exists()
        assert_nothing_left(save)
    else:  # libvirt had asked before
        assert step != "before save_stream"
        assert_saved(save)


@pytest.mark.faults
def test_a_save_whose_virsh_and_guardian_are_both_killed_goes_on(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    os.kill(virsh_of(save), signal.SIGKILL)
    os.kill(children(save.process.pid, "python")[0], signal.SIGKILL)
    save.go()
    assert save.end() == 0, save.stderr
    assert_saved(save)


def test_a_save_that_has_lost_both_and_fails_lets_the_domain_run_on(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, f"verify:{'0' * 64}", strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    os.kill(virsh_of(save), signal.SIGKILL)
    os.kill(children(save.process.pid, "python")[0], signal.SIGKILL)
    save.go()
    assert save.end() == 3, save.stderr
    assert "the domain vm1 runs on: running (save canceled)" in save.stderr
    assert_runs_on(save)


@pytest.mark.parametrize(
    "word",
    [
        "suspend",
        *(pytest.param(word, marks=pytest.mark.faults) for word in ("resume", "managedsave", "reset", "shutdown")),
    ],
)
def test_what_others_ask_of_libvirt_meanwhile_waits(shared: Libvirt, domain: Domain, word: str) -> None:
    """And is refused then, as the domain is shut off."""
    save = Save(shared, domain, strike=(signal.SIGSTOP, "before Intake.await_question"))
    save.wait_at_step()
    with shared.popen("virsh", "-q", word, domain.name, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as other:
        wait_for("its connection", lambda: "socket:" in " ".join(links(other.pid)))
        save.go()
        assert save.end() == 0, save.stderr
        said = other.communicate()[0].decode()
    assert other.returncode != 0 and "domain is not running" in said, said
    assert_saved(save)


def test_a_domain_that_is_destroyed_meanwhile_leaves_no_file(shared: Libvirt, domain: Domain) -> None:
    save = Save(shared, domain, strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    shared.virsh("destroy", domain.name)
    save.go()
    assert save.end() == 6, save.stderr
    assert "the domain vm1 is shut off (destroyed)" in save.stderr
    assert not save.file.exists()
    assert_nothing_left(save)


def links(pid: int) -> list[str]:
    """What a process has open; nothing once it has ended."""
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return ["socket: of one that has ended"]
