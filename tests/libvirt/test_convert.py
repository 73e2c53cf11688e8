"""convert: what libvirt saved becomes a state file, and an image again from which libvirt's guest counts on."""

from __future__ import annotations

import json
import shlex
import subprocess
from itertools import dropwhile
from pathlib import Path

import pytest
import zstandard

from tests.libvirt.conftest import newer_libvirtd
from tests.libvirt.harness import Domain, Libvirt, started
from tests.libvirt.saving import few
from tests.qemu.harness import assert_unbroken, statepipe_command
from tests.statefiles import layout


def assert_restored(libvirt: Libvirt, domain: Domain, image: Path) -> None:
    """Plain virsh restores it, and the guest lost nothing."""
    libvirt.virsh("restore", image)
    domain.assert_runs_on()


@pytest.mark.parametrize("form", few(("raw", "gzip", "bzip2", "xz"), "raw", "gzip"))
def test_an_image_of_each_format_goes_through_a_state_file_and_back(form: str) -> None:
    with started("session", {"save_image_format": form}) as libvirt:
        domain, folder = libvirt.domain(fill=1), libvirt.place("saves")
        image, state, again = folder / "image", folder / "state", folder / "again"
        libvirt.virsh("save", "vm1", image)
        verified = libvirt.statepipe("verify-state", "--json", image, check=True)
        assert json.loads(verified.stdout)["format"] == f"save image of libvirt, {form}"
        done = libvirt.statepipe("convert", image, state, check=True)
        assert "; the domain vm1\n" in done.stderr
        shown = json.loads(libvirt.statepipe("inspect", "--json", state, check=True).stdout)
        assert shown["domain"]["name"] == "vm1" and shown["trailer"]["stopped_for_it"] is True
        libvirt.statepipe("verify-state", state, check=True)
        image.unlink()
        libvirt.statepipe("convert", "--to-image", state, again, check=True)
        assert_restored(libvirt, domain, again)


def test_a_managed_save_is_found_by_the_domains_name(libvirt: Libvirt) -> None:
    domain, folder = libvirt.domain(), libvirt.place("saves")
    state, again = folder / "state", folder / "again"
    none = libvirt.statepipe("convert", "--domain", "vm1", state)
    assert none.returncode == 1 and "vm1 has no managed save" in none.stderr
    libvirt.virsh("managedsave", "vm1")
    libvirt.statepipe("convert", "--domain", "vm1", "--connect", libvirt.uri, state, check=True)
    libvirt.virsh("managedsave-remove", "vm1")
    libvirt.statepipe("convert", "--to-image", state, again, check=True)
    assert_restored(libvirt, domain, again)


def test_an_image_where_libvirt_keeps_them_is_a_managed_save(libvirt: Libvirt) -> None:
    domain, state = libvirt.domain(), libvirt.place("saves") / "state"
    libvirt.virsh("managedsave", "vm1")
    libvirt.statepipe("convert", "--domain", "vm1", state, check=True)
    libvirt.virsh("managedsave-remove", "vm1")
    folder = "/var/lib" if libvirt.mode == "system" else libvirt.environment["XDG_CONFIG_HOME"]
    place = f"{folder}/libvirt/qemu/save/vm1.save"
    libvirt.statepipe("convert", "--to-image", state, place, check=True)
    libvirt.virsh("start", "vm1")
    domain.assert_runs_on()
    assert libvirt.run("test", "-e", place, check=False).returncode == 1  # libvirt has used it up


def test_what_save_wrote_through_libvirt_becomes_an_image(session: Libvirt) -> None:
    domain, folder = session.domain(), session.place("saves")
    state, again = folder / "state", folder / "again"
    session.statepipe("save", "--domain", "vm1", state, check=True)
    done = session.statepipe("convert", "--to-image", state, again, check=True)
    assert "warning" not in done.stderr  # its disks are known, and as they were
    assert_restored(session, domain, again)
    session.statepipe("save", "--domain", "vm1", state, check=True)
    with domain.image.open("r+b") as disk:
        disk.write(b"written since")
    done = session.statepipe("convert", "--to-image", state, again, check=True)
    assert "virsh restore compares no disks" in done.stderr and str(domain.image) in done.stderr


def test_a_paused_domain_stays_paused(session: Libvirt) -> None:
    domain, folder = session.domain(), session.place("saves")
    session.virsh("suspend", "vm1")
    image, state, again = folder / "image", folder / "state", folder / "again"
    session.virsh("save", "vm1", image)
    session.statepipe("convert", image, state, check=True)
    session.statepipe("convert", "--to-image", state, again, check=True)
    session.virsh("restore", again)
    assert domain.state().startswith("paused")
    session.virsh("resume", "vm1")
    domain.assert_runs_on()


def test_another_xml_is_the_one_that_libvirt_takes(session: Libvirt) -> None:
    domain, folder = session.domain(), session.place("saves")
    image, again, xml = folder / "image", folder / "again", folder / "xml"
    session.virsh("save", "vm1", image)
    text = session.virsh("save-image-dumpxml", image).stdout
    xml.write_text(text.replace("<memory ", "<title>from a file</title><memory ", 1))
    session.statepipe("convert", "--to-image", "--xml", xml, image, again, check=True)
    assert_restored(session, domain, again)
    assert "<title>from a file</title>" in session.virsh("dumpxml", "vm1").stdout


def test_libvirt_edits_an_image_of_ours(session: Libvirt) -> None:
    """The zeros that it needs for that are there."""
    domain, folder = session.domain(), session.place("saves")
    image, again, xml = folder / "image", folder / "again", folder / "xml"
    session.virsh("save", "vm1", image)
    session.statepipe("convert", "--to-image", image, again, check=True)
    text = session.virsh("save-image-dumpxml", again).stdout
    xml.write_text(text.replace("<memory ", f"<title>{'long ' * 1000}</title><memory ", 1))
    session.virsh("save-image-define", again, xml)
    session.statepipe("verify-state", again, check=True)
    assert_restored(session, domain, again)
    assert "<title>long long" in session.virsh("dumpxml", "vm1").stdout


def test_a_newer_libvirt_restores_a_state_file_in_an_image(newer: Libvirt) -> None:
    domain, folder = newer.domain(), newer.place("saves")
    image, state, again = folder / "image", folder / "state", folder / "again"
    newer.virsh("save", "vm1", image)
    newer.statepipe("convert", image, state, check=True)
    newer.statepipe("convert", "--to-image=zstd", state, again, check=True)
    verified = newer.statepipe("verify-state", "--json", again, check=True)
    assert json.loads(verified.stdout)["digest"] is True
    assert_restored(newer, domain, again)


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [("zstd", 0, ""), ("lzop", 1, "no lzop is built in"), ("sparse", 1, "at fixed places in the file (mapped-ram)")],
)
def test_what_a_newer_libvirt_writes_is_read_or_refused_with_the_reason(form: str, status: int, words: str) -> None:
    with started("system", {"save_image_format": form}, newer_libvirtd()) as libvirt:
        domain, folder = libvirt.domain(), libvirt.place("saves")
        image, state, again = folder / "image", folder / "state", folder / "again"
        libvirt.virsh("save", "vm1", image)
        done = libvirt.statepipe("convert", image, state)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
        if status:
            assert "hint: restore it with virsh restore" in done.stderr and not state.exists()
            again = image
        else:
            libvirt.statepipe("convert", "--to-image", state, again, check=True)
        assert_restored(libvirt, domain, again)


def test_a_state_file_becomes_an_image_without_any_code_of_ours(session: Libvirt) -> None:
    """docs/state-file.md, 14: what is in the domain's frame, and what zstd makes of the file."""
    domain, folder = session.domain(), session.place("saves")
    image, state, again = folder / "image", folder / "state", folder / "again"
    session.virsh("save", "vm1", image)
    session.statepipe("convert", image, state, check=True)
    file = state.read_bytes()
    frame = layout(file)[1]
    stream = subprocess.run(["zstd", "-dc"], input=file, capture_output=True, check=True).stdout
    again.write_bytes(zstandard.decompress(file[frame.start + 34 : frame.end]) + stream)
    assert_restored(session, domain, again)


def qemu_line(libvirt: Libvirt) -> list[str]:
    """The command line with which libvirt starts the domain's QEMU, without what only libvirt needs."""
    words = shlex.split(libvirt.virsh("domxml-to-native", "qemu-argv", "--domain", "vm1").stdout)
    words = list(dropwhile(lambda word: not word.startswith("/"), words))
    assert words[:2] == [words[0], "-name"]
    left, rest = [words[0]], iter(words[1:])
    for word in rest:
        if word in ("-S", "-no-user-config", "-nodefaults", "-no-shutdown", "-no-acpi"):
            left += [word] if word != "-S" else []
            continue
        value = next(rest)
        if word not in ("-sandbox", "-msg", "-mon") and "charmonitor" not in value and "masterKey0" not in value:
            left += [word, value]
    return left


@pytest.mark.parametrize(("mode", "options"), [("session", []), ("system", ["--lazy"])], ids=["whole", "lazily"])
def test_an_image_runs_without_libvirt(mode: str, options: list[str], request: pytest.FixtureRequest) -> None:
    """Lazily as root, because not every kernel lets an ordinary user do it."""
    libvirt: Libvirt = request.getfixturevalue(mode)
    domain, image = libvirt.domain(), libvirt.place("saves") / "image"
    line = qemu_line(libvirt)
    libvirt.virsh("save", "vm1", image)
    with libvirt.popen(*statepipe_command(), "load", *options, image, "--", *line, stderr=subprocess.PIPE) as load:
        try:
            domain.wait_ticks(3)
            assert_unbroken(domain.ticks())
        finally:
            load.terminate()
            told = load.communicate()[1].decode()
    assert "is a save image of libvirt's, not a state file" in told and "the guest is running" in told
