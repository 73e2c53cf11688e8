"""load --domain: libvirt restores the domain, and nothing of a state that is not whole ever runs."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.harness import ROOT, Libvirt
from tests.libvirt.states import Kept, described, in_mid_load, keep, saved_domain
from tests.statefiles import cut, noisy_stream, state_file

ENDING = (signal.SIGINT, signal.SIGHUP)
"""Signals that are heard as SIGTERM is."""

RECIPIENT = "age1jppnaz6jtxqg66ef6nh7xrlnqfh7ar09ujmv5w9yu46kf9xz9u6qksd8ee"
"""Of tests/age.key."""


@pytest.fixture(scope="module")
def saved() -> Iterator[Kept]:
    """A domain that was saved. The guest never writes to its disk, so its state can be loaded again and again."""
    with saved_domain("session", memory=256, fill=100) as kept:
        yield kept


@pytest.mark.parametrize("mode", ["session", "system", "newer"])
def test_a_domain_goes_on(mode: str, request: pytest.FixtureRequest) -> None:
    libvirt: Libvirt = request.getfixturevalue(mode)
    kept = keep(libvirt, libvirt.domain())
    done = kept.load(check=True)
    assert done.stderr == f"statepipe: load: {kept.state} is loaded and verified; the domain vm1 is running\n"
    kept.assert_goes_on()
    assert list((libvirt.folder / "run").rglob("load-*")) == []


def test_a_state_of_an_older_libvirt_and_qemu_goes_on(system: Libvirt, newer: Libvirt) -> None:
    """From libvirt 9.0 with QEMU 7.2 to 12.9 with 11.1, which has no definition of the domain."""
    kept = keep(system, system.domain())
    other = Kept(newer, kept.domain.at(newer), kept.state)
    other.load(check=True)
    other.assert_goes_on()


def test_an_image_of_libvirts_goes_on(libvirt: Libvirt) -> None:
    domain = libvirt.domain()
    image = libvirt.place("saves") / "image"
    libvirt.virsh("save", "vm1", image)
    done = libvirt.statepipe("load", "--domain", image, check=True)
    assert done.stderr.endswith(f"{image} is loaded and verified; the domain vm1 is running\n")
    domain.assert_runs_on()


def test_a_state_from_a_pipe_goes_on(kept: Kept) -> None:
    with subprocess.Popen(["cat", kept.state], stdout=subprocess.PIPE) as cat:
        kept.load(path="-", stdin=cat.stdout, check=True)
    kept.assert_goes_on()


@pytest.mark.parametrize(
    ("words", "state"),
    [((), "paused"), (("--running",), "running"), (("--paused",), "paused")],
)
def test_a_paused_domain_stays_paused_unless_told(session: Libvirt, words: tuple[str, ...], state: str) -> None:
    domain = session.domain()
    session.virsh("suspend", "vm1")
    kept = keep(session, domain)
    done = kept.load(*words, check=True)
    assert done.stderr.endswith(f"the domain vm1 is {state}\n")
    session.virsh("resume", "vm1", check=state == "paused")
    kept.assert_goes_on()


def test_a_running_domain_is_left_paused_if_told(kept: Kept) -> None:
    done = kept.load("--paused", check=True)
    assert done.stderr.endswith("the domain vm1 is paused\n")
    kept.libvirt.virsh("resume", "vm1")
    kept.assert_goes_on()


def test_an_encrypted_state_needs_its_key(session: Libvirt) -> None:
    key = session.folder / "key"
    key.write_bytes((ROOT / "tests" / "age.key").read_bytes())
    key.chmod(0o600)
    kept = keep(session, session.domain(), "--recipient", RECIPIENT)
    done = kept.load()
    assert done.returncode == 4
    kept.assert_did_not_run()
    kept.load("-i", key, check=True)
    kept.assert_goes_on()


def test_a_transient_domain_with_a_qcow2_disk_goes_on(system: Libvirt) -> None:
    kept = keep(system, system.domain(transient=True, form="qcow2"))
    assert kept.domain.state() == ""
    kept.load(check=True)
    kept.assert_goes_on()


def test_of_two_loads_at_once_one_gets_the_domain(kept: Kept) -> None:
    with in_mid_load(kept) as load:
        done = kept.load()
        assert done.returncode == 6
        assert "the domain vm1 is paused (starting up) already" in done.stderr
        load.go_on()
        _, said = load.process.communicate()
        assert load.process.returncode == 0, said
    kept.assert_goes_on()


def test_the_progress_is_written_to_a_descriptor(kept: Kept, tmp_path: Path) -> None:
    with (tmp_path / "status").open("w") as file:
        kept.load("--status-fd", file.fileno(), pass_fds=[file.fileno()], check=True)
    last = json.loads((tmp_path / "status").read_text().splitlines()[-1])
    assert last["verdict"] == "done"


# --- what is refused before libvirt is asked


def test_a_disk_that_has_changed_is_refused(kept: Kept) -> None:
    image = kept.domain.image
    before = image.read_bytes()
    with image.open("r+b") as file:
        file.seek(1 << 19)
        file.write(b"changed")
    try:
        done = kept.load()
        assert done.returncode == 1
        assert f"{image}: its content changed" in done.stderr
        kept.assert_did_not_run()
        kept.load("--force", image, check=True)
        kept.assert_goes_on()
    finally:
        image.write_bytes(before)


def test_a_disk_that_was_moved_is_named_twice(session: Libvirt) -> None:
    kept = keep(session, session.domain())
    old, new, xml = kept.domain.image, kept.domain.files / "moved.img", kept.domain.files / "moved.xml"
    old.rename(new)
    xml.write_text(described(kept).replace(str(old), str(new)))
    for words, complaint in (
        ((), f"disks that the guest had are not there: {old}"),
        (("--disk", f"{old}={new}"), f"--disk says that {old} is now {new}, but the domain's XML names {old}"),
        (("--xml", xml), f"the guest's disk hda is {old}, and the XML of --xml names {new}"),
    ):
        done = kept.load(*words)
        assert (done.returncode, complaint in done.stderr) == (1, True), done.stderr
        kept.assert_did_not_run()
    kept.load("--disk", f"{old}={new}", "--xml", xml, check=True)
    kept.assert_goes_on()


def test_a_domain_that_runs_is_left_alone(kept: Kept) -> None:
    kept.load(check=True)
    done = kept.load()
    assert done.returncode == 6
    assert "the domain vm1 is running (restored) already" in done.stderr
    kept.assert_goes_on()


def test_a_domain_that_was_defined_anew_must_go_first(session: Libvirt) -> None:
    """libvirt gives it another UUID. The command of the hint helps, and libvirt has no definition then."""
    kept = keep(session, session.domain(memory=32, fill=1, dirty=1))
    session.virsh("undefine", "vm1")
    session.virsh("define", kept.domain.xml_path)
    done = kept.load()
    assert done.returncode == 6 and "libvirt has another domain named vm1: it is shut off" in done.stderr, done.stderr
    (command,) = re.findall(r"virsh --connect=\S+ undefine vm1", done.stderr)
    kept.assert_did_not_run()
    session.run(*command.split())
    kept.load(check=True)
    kept.assert_goes_on()


def test_a_managed_save_that_would_be_loaded_next_is_told(libvirt: Libvirt) -> None:
    domain, state = libvirt.domain(), libvirt.place("saves") / "state"
    libvirt.virsh("managedsave", "vm1")
    libvirt.statepipe("convert", "--domain", "vm1", state, check=True)
    done = libvirt.statepipe("load", "--domain", state, check=True)
    command = f"virsh --connect={libvirt.uri} managedsave-remove vm1"
    assert "libvirt also keeps a managed save of vm1, and the next start of the domain loads that" in done.stderr
    assert command in done.stderr
    domain.assert_runs_on()
    libvirt.run(*command.split())
    assert "managed save" not in libvirt.statepipe("save", "--domain", "vm1", state, check=True).stderr
    assert "managed save" not in libvirt.statepipe("load", "--domain", state, check=True).stderr


def test_a_state_that_no_libvirt_has_saved_is_refused(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(state_file(cut(noisy_stream(), 2)))
    path.chmod(0o644)
    tmp_path.chmod(0o755)
    done = kept.load(path=path)
    assert done.returncode == 1
    assert f"{path} holds no domain of libvirt's" in done.stderr
    kept.assert_did_not_run()


@pytest.mark.parametrize(
    ("uri", "status", "complaint"),
    [
        ("qemu:///nowhere", 6, "cannot connect to libvirt"),
        ("qemu+ssh://host/system", 2, "is a connection to another host"),
        ("xen:///system", 2, "is a connection to xen"),
    ],
)
def test_a_libvirt_that_cannot_be_used_is_named(kept: Kept, uri: str, status: int, complaint: str) -> None:
    done = kept.load("--connect", uri)
    assert (done.returncode, complaint in done.stderr) == (status, True), done.stderr
    kept.assert_did_not_run()


# --- what fails while libvirt restores the domain


@pytest.mark.parametrize("at", [0.2, 0.6, 0.95])
def test_a_damaged_frame_ends_the_load_and_nothing_runs(kept: Kept, at: float) -> None:
    damaged = kept.libvirt.folder / "damaged"
    data = bytearray(kept.state.read_bytes())
    data[int(len(data) * at)] ^= 1
    damaged.write_bytes(data)
    done = kept.load(path=damaged)
    assert done.returncode == 3
    assert re.search(rf"error: {damaged}: .* at byte \d+ .*\n.*take another copy of it; the domain", done.stderr)
    assert "the domain vm1 is shut off" in done.stderr
    kept.assert_did_not_run()


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(40))
def test_no_damaged_file_ever_runs(kept: Kept, seed: int) -> None:
    """One bit anywhere, a cut, a part that is lost or repeated, or zeros in the place of a page."""
    chance, damaged = random.Random(seed), kept.libvirt.folder / "damaged"
    data = bytearray(kept.state.read_bytes())
    at, size = chance.randrange(len(data)), chance.choice([1, 512, 4096])
    match seed % 5:
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + size]
        case 3:
            data[at:at] = data[at : at + size]
        case 4:
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    damaged.write_bytes(data)
    done = kept.load(path=damaged)
    assert done.returncode in (1, 3), done.stderr
    kept.assert_did_not_run()


def test_a_file_that_was_cut_is_refused(kept: Kept) -> None:
    cut_off = kept.libvirt.folder / "cut"
    cut_off.write_bytes(kept.state.read_bytes()[:-1000])
    done = kept.load(path=cut_off)
    assert done.returncode == 3
    kept.assert_did_not_run()


def test_libvirts_own_reason_is_passed_on(kept: Kept) -> None:
    xml = kept.domain.files / "other.xml"
    xml.write_text(described(kept).replace("<vcpu placement='static'>1", "<vcpu placement='static'>2"))
    done = kept.load("--xml", xml)
    assert done.returncode == 6
    assert "libvirt: unsupported configuration: Target domain vCPU max 2 does not match source 1" in done.stderr
    assert "the domain vm1 is shut off" in done.stderr
    kept.assert_did_not_run()


def test_a_libvirt_that_does_not_see_our_folder_is_told_apart(system: Libvirt) -> None:
    kept = keep(system, system.domain())
    hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    script = 'mount -t tmpfs tmpfs "$XDG_RUNTIME_DIR" && exec "$@"'
    done = system.run(*hidden, script, "sh", *kept.words(), check=False)
    assert done.returncode == 6
    assert "No such file or directory" in done.stderr
    assert "libvirtd must see /tmp" in done.stderr
    kept.assert_did_not_run()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.faults) for number in ENDING)]
)
def test_a_signal_in_mid_load_leaves_nothing_running(kept: Kept, number: signal.Signals) -> None:
    with in_mid_load(kept) as load:
        load.process.send_signal(number)
        load.await_withdrawal()
        _, said = load.process.communicate()
    assert load.process.returncode == 128 + number
    # libvirt's reason says who was first: it ended QEMU, or QEMU ended because its state was withdrawn.
    assert re.search(r"the domain vm1 is shut off \((failed|crashed)\)", said), said
    kept.assert_did_not_run()


def test_a_load_that_takes_too_long_leaves_nothing_running(kept: Kept) -> None:
    with in_mid_load(kept, "--timeout", "10") as load:
        load.await_withdrawal()
        _, said = load.process.communicate()
    assert load.process.returncode == 1
    assert "was not loaded after 10 s" in said
    kept.assert_did_not_run()


def test_nothing_runs_if_virsh_is_killed_in_mid_load(kept: Kept) -> None:
    with in_mid_load(kept) as load:
        os.kill(load.virsh(), signal.SIGKILL)
        load.await_withdrawal()
        _, said = load.process.communicate()
    assert load.process.returncode == 6
    assert "virsh was ended by signal 9" in said
    assert "the domain vm1 is shut off" in said
    kept.assert_did_not_run()


def test_nothing_runs_if_qemu_is_killed_in_mid_load(kept: Kept) -> None:
    with in_mid_load(kept) as load:
        os.kill(load.qemu, signal.SIGKILL)
        _, said = load.process.communicate()
    assert load.process.returncode == 6
    assert "libvirt: " in said
    kept.assert_did_not_run()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.faults), signal.SIGKILL])
def test_nothing_runs_if_libvirtd_is_started_again_in_mid_load(kept: Kept, number: signal.Signals) -> None:
    """On SIGTERM, libvirtd waits 30 s for what it has begun."""
    with in_mid_load(kept) as load:
        kept.libvirt.end(number)
        load.await_withdrawal()
        kept.libvirt.start()
        _, said = load.process.communicate()
    assert load.process.returncode == 6
    assert "vm1" in said
    kept.assert_did_not_run()
