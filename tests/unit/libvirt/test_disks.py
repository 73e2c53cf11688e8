"""The disk guard of a domain: the files that the state names, and the XML that libvirt uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError
from statepipe.formats.domainxml import disks
from statepipe.formats.libvirtimage import Domain
from statepipe.libvirt.disks import refuse_changed_disks
from statepipe.qemu.disks import fingerprint
from statepipe.qemu.guard import Said
from statepipe.state.file import open_state
from statepipe.state.loading import prepare
from tests.statefiles import NO_KEYS, cut, noisy_stream, state_file

STREAM = noisy_stream()


def xml(**its: Path | str) -> bytes:
    """A domain with these disks."""
    rows = "".join(
        f"<disk type='file' device='disk'><driver name='qemu'/><source file='{path}'><seclabel/></source>"
        f"<backingStore type='file'><source file='/base.img'/></backingStore><target dev='{name}' bus='virtio'/></disk>"
        for name, path in its.items()
    )
    return f"<domain><name>a</name><devices>{rows}</devices></domain>".encode()


class Saved:
    """A saved domain with the disks vda and vdb, which are the files `a` and `b`."""

    def __init__(self, folder: Path) -> None:
        self.a, self.b, self.warned = folder / "a", folder / "b", list[str]()
        for path in (self.a, self.b):
            path.write_bytes(path.name.encode() * 5000)
        self.xml = xml(vda=self.a, vdb=self.b)
        rows = [fingerprint(str(path)) for path in (self.a, self.b)]
        self.state = folder / "state"
        self.state.write_bytes(state_file(cut(STREAM, 2), domain=Domain(self.xml, b"", True), disks=rows))

    def check(self, now: bytes | None = None, disk: Sequence[str] = (), force: Sequence[object] = ()) -> None:
        with open_state(str(self.state), NO_KEYS) as source:
            said = Said(disk, [str(each) for each in force])
            refuse_changed_disks(prepare(source), self.xml, now or self.xml, said, self.warned.append)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path)


def test_unchanged_disks_pass(saved: Saved) -> None:
    saved.check()
    assert saved.warned == []


def test_the_xml_may_name_a_disk_by_a_link(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved.a)
    saved.check(xml(vda=tmp_path / "link", vdb=saved.b))


def test_a_changed_disk_is_refused_unless_it_is_forced(saved: Saved) -> None:
    saved.b.write_bytes(b"x")
    with pytest.raises(StatepipeError, match=f"{saved.b}: its size and its content changed"):
        saved.check()
    saved.check(force=[saved.b])
    assert "accepted as it is" in saved.warned[0]


def test_a_disk_that_is_not_there_is_named_with_what_to_do(saved: Saved) -> None:
    saved.a.unlink()
    with pytest.raises(StatepipeError, match=f"disks that the guest had are not there: {saved.a}") as caught:
        saved.check()
    assert f"--disk {saved.a}=NEW" in str(caught.value.hint)


def test_a_moved_disk_has_its_new_name_in_both_places(saved: Saved, tmp_path: Path) -> None:
    new = tmp_path / "new"
    saved.a.rename(new)
    moved = [f"{saved.a}={new}"]
    saved.check(xml(vda=new, vdb=saved.b), disk=moved)
    with pytest.raises(StatepipeError, match=f"--disk says that {saved.a} is now {new}, but the domain's XML names"):
        saved.check(disk=moved)
    with pytest.raises(StatepipeError, match=f"vda is {saved.a}, and the XML of --xml names {new}") as caught:
        saved.check(xml(vda=new, vdb=saved.b))
    assert f"--disk {saved.a}={new}" in str(caught.value.hint)


def test_disks_that_changed_places_are_refused(saved: Saved) -> None:
    with pytest.raises(StatepipeError, match=f"disk vda is {saved.a}, and the XML of --xml names {saved.b}"):
        saved.check(xml(vda=saved.b, vdb=saved.a))


def test_a_disk_that_the_xml_lacks_is_refused(saved: Saved) -> None:
    with pytest.raises(StatepipeError, match=f"lacks the guest's disk vdb, which is {saved.b}"):
        saved.check(xml(vda=saved.a))


def test_xml_that_cannot_be_read_is_refused(saved: Saved) -> None:
    with pytest.raises(StatepipeError, match="the XML of --xml cannot be read"):
        saved.check(b"<domain>")
    saved.xml = b"<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>"
    with pytest.raises(StatepipeError, match="the domain's XML in the state cannot be read"):
        saved.check(xml(vda=saved.a))


def test_only_files_and_block_devices_are_disks_with_a_path() -> None:
    text = b"""<domain><devices>
        <disk type='block'><target dev='sda'/><source dev='/dev/mapper/a'/></disk>
        <disk type='network'><source protocol='rbd' name='pool/a'/><target dev='sdb'/></disk>
        <disk type='file' device='cdrom'><target dev='sdc'/></disk>
        <hostdev><source file='/no'/><target dev='sdd'/></hostdev>
    </devices><disk><source file='/no'/><target dev='sde'/></disk></domain>"""
    assert disks(text) == {"sda": "/dev/mapper/a"}
    assert disks(b"") is None


def test_elements_in_one_another_without_end_take_no_longer() -> None:
    """Seen: with a copy of the path for each of them, 100000 took 76 s."""
    depth = 200_000
    assert disks(b"<devices>" * depth + b"</devices>" * depth) == {}
