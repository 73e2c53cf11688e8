"""save --domain: libvirt ends the domain when the file is safe, and lets it run on if not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.disks import tmpfs
from tests.libvirt.harness import Domain, Libvirt, started
from tests.libvirt.saving import Save, assert_nothing_left, assert_runs_on, assert_saved, few, virsh_of
from tests.qemu.harness import PATIENCE, assert_unbroken, statepipe_command, wait_for

UNMIGRATABLE = "<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='{device}'/></qemu:commandline>"


def saved(libvirt: Libvirt, domain: Domain, *words: object, file: Path | None = None) -> Save:
    """A save that has succeeded."""
    save = Save(libvirt, domain, *words, file=file)
    assert save.end() == 0, save.stderr
    return save


@pytest.mark.parametrize("mode", ["session", "system", "newer"])
def test_a_domain_goes_on_where_it_was_saved(mode: str, request: pytest.FixtureRequest) -> None:
    libvirt: Libvirt = request.getfixturevalue(mode)
    domain = libvirt.domain(form="qcow2")
    save = saved(libvirt, domain)
    assert save.stderr.startswith(f"statepipe: save: {save.file}: ")
    assert save.stderr.endswith("the domain vm1 is now shut off (saved)\n") and save.stderr.count("\n") == 1
    facts = json.loads(libvirt.statepipe("inspect", "--json", save.file, check=True).stdout)
    assert facts["domain"]["name"] == "vm1" and facts["domain"]["was_running"]
    assert facts["header"]["uuid"] == libvirt.virsh("domuuid", "vm1").stdout.strip()
    (disk,) = facts["trailer"]["disks"]
    assert disk["path"].endswith(str(domain.image)) and "unknown" not in disk  # the newer one is in a root of its own
    assert_saved(save)


@pytest.mark.parametrize("kind", ["domid", "domuuid"])
def test_a_domain_may_be_named_by_its_number_or_its_uuid(shared: Libvirt, domain: Domain, kind: str) -> None:
    name = shared.virsh(kind, domain.name).stdout.strip()
    done = shared.statepipe("save", "--domain", name, domain.files / "state", check=True)
    assert done.stderr.endswith("the domain vm1 is now shut off (saved)\n")


@pytest.mark.parametrize("form", few(("gzip", "bzip2", "xz"), "gzip"))
def test_the_format_of_libvirts_own_images_does_not_matter(form: str) -> None:
    with started("session", {"save_image_format": form}) as libvirt:
        assert_saved(saved(libvirt, libvirt.domain(memory=32, fill=1, dirty=1)))


def test_a_format_that_is_not_read_leaves_the_domain_running(tmp_path: Path) -> None:
    """The program stands for lzop, which libvirt looks for in its PATH."""
    with started("session", {"save_image_format": "lzop"}, path=tmp_path) as libvirt:
        (tmp_path / "lzop").write_text("#!/bin/sh\nexec cat\n")
        (tmp_path / "lzop").chmod(0o755)
        save = Save(libvirt, libvirt.domain())
        assert save.end() == 1
        assert "libvirt writes its save images as lzop" in save.stderr and "save_image_format" in save.stderr
        assert "the domain vm1 runs on: running (save canceled)" in save.stderr
        assert_runs_on(save)


def test_a_paused_domain_stays_paused(session: Libvirt) -> None:
    domain = session.domain()
    session.virsh("suspend", "vm1")
    count = len(domain.ticks())
    refused = Save(session, domain, "-r", "age1qqq")
    assert refused.end() == 2
    save = saved(session, domain)
    session.statepipe("load", "--domain", save.file, check=True)
    assert domain.state().startswith("paused") and len(domain.ticks()) <= count + 1
    session.virsh("resume", "vm1")
    domain.assert_runs_on()


def test_a_paused_domain_whose_save_fails_stays_paused(session: Libvirt) -> None:
    domain = session.domain()
    session.virsh("suspend", "vm1")
    with tmpfs(1 << 20) as small:
        done = session.statepipe("save", "--domain", "vm1", small / "state")
        assert done.returncode == 1 and "the domain vm1 is paused (user)" in done.stderr, done.stderr
        assert list(small.iterdir()) == []
    assert domain.state() == "paused (user)"
    session.virsh("resume", "vm1")
    domain.assert_runs_on()


def test_a_transient_domain_comes_back(session: Libvirt) -> None:
    domain = session.domain(transient=True)
    save = saved(session, domain)
    load = f"statepipe load --domain {save.file}"
    assert save.stderr.endswith(f"the domain vm1 was transient, and libvirt has forgotten it: {load} brings it back\n")
    done = session.run(*statepipe_command(), *load.split()[1:])
    assert "libvirt has no definition of the domain vm1, which is gone once its guest ends" in done.stderr
    domain.assert_runs_on()


def test_words_recipients_and_an_older_file(session: Libvirt, tmp_path: Path) -> None:
    key = tmp_path / "key"
    session.statepipe("keygen", "-o", key, check=True)
    recipient = key.read_text().split("public key: ")[1].split()[0]
    domain = session.domain(name="a 'b' <c>")
    (domain.files / "state").write_text("something else")
    refused = Save(session, domain)
    assert refused.end() == 2 and "--overwrite" in refused.stderr
    digest = domain.files / "digest"
    save = saved(
        session, domain, "--overwrite", "-r", recipient, "compress:zstd:3", f"checksum:to={digest}", "progress"
    )
    assert digest.exists()
    assert save.file.read_bytes().startswith(b"age-encryption.org")
    facts = json.loads(session.statepipe("inspect", "--json", "-i", key, save.file, check=True).stdout)
    assert facts["domain"]["name"] == "a 'b' <c>"
    session.statepipe("load", "--domain", "-i", key, save.file, check=True)
    domain.assert_runs_on()


def test_the_state_of_another_domain_is_not_replaced_unless_told(session: Libvirt) -> None:
    vm1, vm2 = [session.domain(name, memory=32, fill=1, dirty=1) for name in ("vm1", "vm2")]
    file = saved(session, vm1).file
    before = file.read_bytes()
    refused = Save(session, vm2, file=file)
    assert refused.end() == 2, refused.stderr
    assert "the state of another guest, vm1 (" in refused.stderr and "and this one is vm2 (" in refused.stderr
    assert file.read_bytes() == before
    vm2.assert_runs_on()
    saved(session, vm2, "--overwrite", file=file)


def test_two_domains_are_saved_at_once(session: Libvirt) -> None:
    domains = [session.domain(name) for name in ("vm1", "vm2")]
    saves = [Save(session, domain) for domain in domains]
    assert [save.end() for save in saves] == [0, 0], [save.stderr for save in saves]
    for save in saves:
        assert_saved(save)


def test_of_two_saves_of_one_domain_one_succeeds(session: Libvirt) -> None:
    domain = session.domain()
    held = Save(session, domain, strike=(signal.SIGSTOP, "before save_stream"))
    held.wait_at_step()
    other = session.popen(
        *["virsh", "-q", "save", "vm1", domain.files / "other"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    held.go()
    assert held.end() == 0, held.stderr
    other.communicate()
    assert other.returncode != 0 and not (domain.files / "other").exists()
    assert_saved(held)


def test_a_second_save_of_a_domain_says_that_one_is_under_way(session: Libvirt) -> None:
    domain = session.domain()
    held = Save(session, domain, strike=(signal.SIGSTOP, "before save_stream"))
    held.wait_at_step()
    other = session.statepipe("save", "--domain", "vm1", domain.files / "other")
    assert other.returncode == 6 and "another save of the domain vm1 is under way" in other.stderr, other.stderr
    assert "virsh --connect=qemu:///session domjobinfo vm1" in other.stderr
    held.go()
    assert held.end() == 0, held.stderr
    assert not (domain.files / "other").exists()
    assert_saved(held)


# --- what is refused before anything happens


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--live"], "snapshot-create-as"),
        (["--qmp", "x"], "exclude each other"),
        (["--then", "quit"], "and --domain exclude each other: libvirt"),
        (["--then", "cont"], "to have the domain again after the save: statepipe load --domain"),
        (["--offline"], "and --domain exclude each other: libvirt"),
        (["--auto-converge"], "and --domain exclude each other: libvirt"),
        (["--timeout", "9", "--on-timeout", "suspend"], "exclude each other"),
        (["--connect", "qemu+ssh://vmhost/system"], "ssh vmhost statepipe save --domain"),
        (["--connect", "test:///default"], "QEMU's guests"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], shown: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*statepipe_command(), "save", "--domain", "vm1", *words, tmp_path / "state"], capture_output=True, text=True
    )
    assert done.returncode == 2 and shown in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_libvirtd_is_told(session: Libvirt) -> None:
    session.end()
    done = session.statepipe("save", "--domain", "vm1", session.folder / "state")
    assert done.returncode == 6 and "cannot connect to libvirt" in done.stderr, done.stderr
    session.start()


def test_a_domain_that_is_unknown_or_does_not_run_is_told(session: Libvirt) -> None:
    done = session.statepipe("save", "--domain", "nope", session.folder / "state")
    assert done.returncode == 6 and "failed to get domain 'nope'" in done.stderr, done.stderr
    session.domain()
    session.virsh("destroy", "vm1")
    done = session.statepipe("save", "--domain", "vm1", session.folder / "state")
    assert done.returncode == 6 and "the domain vm1 is shut off (destroyed)" in done.stderr, done.stderr
    assert not (session.folder / "state").exists()


def test_a_descriptor_is_refused(session: Libvirt) -> None:
    domain = session.domain()
    with (session.folder / "out").open("w") as out:
        done = session.statepipe(
            "save", "--domain", "vm1", "-", capture_output=False, stdout=out, stderr=subprocess.PIPE
        )
    assert done.returncode == 2 and "name a FILE" in done.stderr, done.stderr
    domain.assert_runs_on()


def test_a_folder_that_cannot_be_written_is_told(session: Libvirt) -> None:
    domain = session.domain()
    closed = session.place("closed")
    closed.chmod(0o500)
    done = session.statepipe("save", "--domain", "vm1", closed / "state")
    assert done.returncode == 1 and "Permission denied" in done.stderr, done.stderr
    domain.assert_runs_on()


# --- what fails under way


def test_a_domain_that_cannot_be_migrated_runs_on(session: Libvirt) -> None:
    """libvirt asks QEMU, whose reason is told."""
    domain = session.domain(more=UNMIGRATABLE.format(device="nvme,serial=x,id=n1,addr=0x10"))
    save = Save(session, domain)
    assert save.end() == 6
    assert "libvirt: " in save.stderr and "the domain vm1 runs on" in save.stderr, save.stderr
    assert_runs_on(save)


@contextmanager
def small_disk(libvirt: Libvirt, size: int) -> Iterator[Path]:
    """A folder on a file system of `size` bytes, where this libvirtd's clients are."""
    if libvirt.mode == "session":
        with tmpfs(size) as folder:
            yield folder
    else:
        folder = libvirt.place("small")
        libvirt.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        yield folder


@pytest.mark.parametrize("mode", few(("session", "system", "newer"), "session", "newer"))
def test_a_disk_that_fills_lets_the_domain_run_on(mode: str, request: pytest.FixtureRequest) -> None:
    libvirt: Libvirt = request.getfixturevalue(mode)
    domain = libvirt.domain()
    with small_disk(libvirt, 4 << 20) as small:
        done = libvirt.statepipe("save", "--domain", "vm1", small / "state")
        assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
        assert "the domain vm1 runs on: running (save canceled)" in done.stderr
        assert libvirt.run("ls", "-A", small).stdout == ""
    domain.assert_runs_on()


def test_a_limit_of_file_sizes_lets_the_domain_run_on(session: Libvirt) -> None:
    domain = session.domain()
    file = domain.files / "state"
    done = session.run(
        "sh",
        "-c",
        'ulimit -f 4096 && exec "$@"',
        "sh",
        *statepipe_command(),
        "save",
        "--domain",
        "vm1",
        file,
        check=False,
    )
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert not file.exists()
    domain.assert_runs_on()


def test_a_time_limit_lets_the_domain_run_on(session: Libvirt) -> None:
    domain = session.domain()
    save = Save(session, domain, "--timeout", "10", "throttle:100k")  # a busy host begins late
    assert save.end() == 1 and "the domain vm1 was not saved after 10 s" in save.stderr, save.stderr
    assert "the domain vm1 runs on: running (save canceled)" in save.stderr
    assert_runs_on(save)


def test_libvirts_own_cancel_lets_the_domain_run_on(session: Libvirt) -> None:
    domain = session.domain()
    save = Save(session, domain, strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    session.virsh("domjobabort", "vm1")
    save.go()
    assert save.end() == 6
    assert "libvirt: operation aborted" in save.stderr and "running (save canceled)" in save.stderr, save.stderr
    assert_runs_on(save)


def test_statepipes_cancel_lets_the_domain_run_on(session: Libvirt) -> None:
    save = Save(session, session.domain(), "throttle:1M")
    wait_for("the job", lambda: str(save.file) in session.statepipe("ps").stdout)
    session.statepipe("cancel", save.process.pid, check=True)
    assert save.end() == 128 + signal.SIGTERM and "cancelled by statepipe cancel" in save.stderr, save.stderr
    assert_runs_on(save)


def test_a_virsh_that_is_killed_does_not_matter(session: Libvirt) -> None:
    """The job is libvirtd's."""
    save = Save(session, session.domain(), strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    os.kill(virsh_of(save), signal.SIGKILL)
    save.go()
    assert save.end() == 0, save.stderr
    assert_saved(save)


def test_a_libvirtd_that_is_restarted_has_the_domain_again(libvirt: Libvirt) -> None:
    """The stream comes to its good end all the same: what libvirtd had started goes on without it."""
    save = Save(libvirt, libvirt.domain(), strike=(signal.SIGSTOP, "before save_stream"))
    save.wait_at_step()
    libvirt.end(signal.SIGKILL)
    libvirt.start()
    save.go()
    assert save.end() == 6, save.stderr
    assert "the domain vm1 runs on: running" in save.stderr
    assert_runs_on(save)


def test_a_libvirtd_that_is_killed_before_the_answer_is_not_answered(session: Libvirt) -> None:
    """It has asked, and waits; the file has its name already, and loses it."""
    save = Save(session, session.domain(), strike=(signal.SIGSTOP, "before answer"))
    save.wait_at_step()
    assert save.file.exists()
    session.end(signal.SIGKILL)
    session.start()
    save.go()
    assert save.end() == 6, save.stderr
    assert "the domain vm1 runs on: running" in save.stderr
    assert_runs_on(save)


def test_a_libvirtd_that_is_killed_before_it_ends_the_guest(session: Libvirt, tmp_path: Path) -> None:
    """It was answered, and counts the domain as shut off before it ends QEMU: its successor does not have it again."""
    domain = session.domain()
    save = Save(session, domain, strike=(signal.SIGSTOP, "before answer"))
    save.wait_at_step()
    with late_kill(session, tmp_path / "trace") as is_ending:
        save.go()
        wait_for("libvirtd about to end QEMU", is_ending)
        session.end(signal.SIGKILL)
    session.start()
    assert save.end() == 0, save.stderr
    assert "is now shut off (unknown)" in save.stderr
    assert_saved(save)


@pytest.mark.faults
def test_a_libvirtd_that_does_not_come_back_leaves_the_file(session: Libvirt, tmp_path: Path) -> None:
    """It was answered, and nobody can tell what it did about it."""
    save = Save(session, session.domain(), strike=(signal.SIGSTOP, "before answer"))
    save.wait_at_step()
    with late_kill(session, tmp_path / "trace") as is_ending:
        save.go()
        wait_for("libvirtd about to end QEMU", is_ending)
        session.end(signal.SIGKILL)
    assert save.end() == 6
    assert "holds the whole state; if QEMU still runs the guest, remove the file" in save.stderr, save.stderr
    assert "libvirt does not say what became of the domain vm1; see: virsh domstate" in save.stderr
    session.statepipe("verify-state", save.file, check=True)
    assert_nothing_left(save)


@pytest.mark.faults
def test_a_libvirtd_that_stands_still_is_answered_later(session: Libvirt) -> None:
    """It has asked, and does not write. The guardian waits on."""
    save = Save(session, session.domain(), strike=(signal.SIGSTOP, "before answer"))
    save.wait_at_step()
    os.kill(session.pid, signal.SIGSTOP)
    save.go()
    save.process.wait(PATIENCE * 5)
    assert save.process.returncode == 6
    os.kill(session.pid, signal.SIGCONT)
    save.end()
    assert "holds the whole state, and the domain vm1 is shut off" in save.stderr, save.stderr
    assert_saved(save)


@contextmanager
def late_kill(libvirt: Libvirt, trace: Path) -> Iterator[Callable[[], bool]]:
    """Within it, each kill(2) of libvirtd's takes effect late. Gives what says whether it has begun one."""
    words = ["strace", "-f", "-q", "-e", "trace=kill", "-e", "inject=kill:delay_enter=60s"]
    strace = subprocess.Popen([*words, "-o", trace, "-p", str(libvirt.pid)], stderr=subprocess.PIPE)
    try:
        wait_for("strace", lambda: "TracerPid:\t0" not in Path(f"/proc/{libvirt.pid}/status").read_text())
        yield lambda: "kill(" in trace.read_text()
    finally:
        strace.kill()  # it hears SIGTERM only after its delay
        strace.communicate()


def test_a_folder_that_libvirt_does_not_see(system: Libvirt, tmp_path: Path) -> None:
    """Its own /run, as a container has it, is not ours."""
    domain = system.domain()
    done = system.run(
        *[
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs tmpfs "$0" && exec "$@"',
            system.environment["XDG_RUNTIME_DIR"],
        ],
        *[*statepipe_command(), "save", "--domain", "vm1", domain.files / "state"],
        check=False,
    )
    assert done.returncode == 6 and "No such file or directory" in done.stderr, done.stderr
    assert "the domain vm1 runs on" in done.stderr
    domain.assert_runs_on()
    assert not (domain.files / "state").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_moved_meanwhile_lets_the_domain_run_on(session: Libvirt, replaced: bool) -> None:
    """Else the file would not be where it is said to be."""
    domain, folder = session.domain(), session.place("saves")
    save = Save(session, domain, strike=(signal.SIGSTOP, "before Intake.await_question"), file=folder / "state")
    save.wait_at_step()
    moved = folder.rename(folder.with_name("moved"))
    if replaced:
        folder.mkdir()
    save.go()
    assert save.end() == 1, save.stderr
    assert f"the folder of {save.file} was moved or replaced while the domain was saved" in save.stderr
    assert "the domain vm1 runs on: running (save canceled)" in save.stderr
    assert list(moved.iterdir()) == [] and not save.file.exists()
    domain.assert_runs_on()


def test_the_older_file_is_back_after_a_failure(session: Libvirt) -> None:
    domain = session.domain()
    first = saved(session, domain)
    before = first.file.read_bytes()
    session.statepipe("load", "--domain", first.file, check=True)
    save = Save(session, domain, strike=(signal.SIGSTOP, "before answer"))
    save.wait_at_step()
    session.end(signal.SIGKILL)
    session.start()
    save.go()
    assert save.end() == 6, save.stderr
    assert save.file.read_bytes() == before
    assert_nothing_left(save)
    domain.assert_runs_on()
    assert_unbroken(domain.ticks())
