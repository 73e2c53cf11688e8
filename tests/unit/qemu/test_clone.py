"""The command line of a clone: each disk that is written has an overlay, and what cannot have one is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from statepipe.errors import StatepipeError, UsageError
from statepipe.qemu.clone import Overlay, cloned

QCOW2 = b"QFI\xfb\0\0\0\3"

NVDIMM = ["-object", "memory-backend-file,id=m,share=on,mem-path=/n"]


def nodes(*values: str) -> list[str]:
    """-blockdev with each of these values."""
    return [word for value in values for word in ("-blockdev", value)]


def over(name: str, file: str, base: str = "clone0") -> str:
    """The node of an overlay."""
    return f"driver=qcow2,node-name={name},file.driver=file,file.filename=/c/{file},backing={base}"


@pytest.mark.parametrize(
    ("value", "expected", "base", "form"),
    [
        ("file=/d,format=raw,if=virtio,cache=none", "if=virtio,cache=none,", "/d", "raw"),
        ("id=a,file.filename=/d,file.driver=file,driver=raw,file.aio=native", "id=a,file.aio=native,", "/d", "raw"),
        ("file=file:/d,format=raw", "", "/d", "raw"),
        ("file=/d.qcow2,format=qcow2,readonly=off,snapshot=off", "readonly=off,snapshot=off,", "/d.qcow2", "qcow2"),
        ("file=/dev/vg/d,format=raw,file.driver=host_device", "", "/dev/vg/d", "raw"),
        ("driver=qcow2,file=/d,l2-cache-size=4096", "l2-cache-size=4096,", "/d", "qcow2"),
    ],
)
@pytest.mark.parametrize("option", ["-drive", "--drive"])
def test_an_option_that_names_a_file_names_the_overlay(
    option: str, value: str, expected: str, base: str, form: str
) -> None:
    command, overlays = cloned(["qemu", "-m", "64", option, value, "-S"], "/c")
    assert command == ["qemu", "-m", "64", option, f"{expected}format=qcow2,file=/c/d.qcow2", "-S"]
    assert overlays == [Overlay("/c/d.qcow2", base, form)]


def test_a_comma_in_a_name_stays_a_comma() -> None:
    command, overlays = cloned(["qemu", "-drive", "file=/a,,b,format=raw"], "/c,")
    assert command == ["qemu", "-drive", "format=qcow2,file=/c,,/a,,b.qcow2"]
    assert overlays == [Overlay("/c,/a,b.qcow2", "/a,b", "raw")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{0}"], "media=disk,index=0"),
        (["-hda", "{0}"], "media=disk,index=0"),
        (["--hdc", "{0}"], "media=disk,index=2"),
        (["-fdb", "{0}"], "if=floppy,index=1"),
        (["-pflash", "{0}"], "if=pflash"),
        (["-mtdblock", "{0}"], "if=mtd"),
        (["-sd", "{0}"], "if=sd"),
        (["-drive", "file={0}"], ""),
    ],
)
@pytest.mark.parametrize(
    ("head", "form"),
    [
        (QCOW2, "qcow2"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"KDMV", "vmdk"),
        (b"LUKS\xba\xbe", "luks"),
        (bytes(0x40) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"\xeb\x63\x90", "raw"),
        (b"", "raw"),
    ],
)
def test_a_format_that_nobody_gave_is_found_once(
    tmp_path: Path, words: list[str], expected: str, head: bytes, form: str
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(head)
    command = ["qemu", *(word.format(image) for word in words)]
    if form == "luks":
        with pytest.raises(UsageError, match="is encrypted, and the overlay would contain what the guest writes"):
            cloned(command, "/c")
        return
    words, overlays = cloned(command, "/c")
    assert words == ["qemu", "-drive", f"{expected},format=qcow2,file=/c/disk.qcow2".lstrip(",")]
    assert overlays == [Overlay("/c/disk.qcow2", str(image), form)]


@pytest.mark.parametrize(
    ("before", "after", "base", "form"),
    [
        pytest.param(
            ["driver=qcow2,node-name=d,file.driver=file,file.filename=/d,discard=unmap"],
            [
                "driver=qcow2,file.driver=file,file.filename=/d,discard=unmap,node-name=clone0,read-only=on",
                over("d,discard=unmap", "d.qcow2"),
            ],
            "/d",
            "qcow2",
            id="words",
        ),
        pytest.param(
            ['{"driver": "raw", "node-name": "d", "read-only": false, "file": {"driver": "file", "filename": "/d"}}'],
            [
                '{"driver": "raw", "node-name": "clone0", "read-only": true, '
                '"file": {"driver": "file", "filename": "/d"}}',
                over("d", "d.qcow2"),
            ],
            "/d",
            "raw",
            id="JSON",
        ),
        pytest.param(
            [
                "{'driver':'file','filename':'/base','node-name':'s2','auto-read-only':true}",
                "{'node-name':'f2','read-only':true,'driver':'raw','file':'s2'}",
                "{'driver':'file','filename':'/d','node-name':'s1','aio':'native','cache':{'direct':true}}",
                "{'node-name':'f1','read-only':false,'driver':'qcow2','file':'s1','backing':'f2'}",
            ],
            [
                "{'driver':'file','filename':'/base','node-name':'s2','auto-read-only':true}",
                "{'node-name':'f2','read-only':true,'driver':'raw','file':'s2'}",
                '{"driver": "file", "filename": "/d", "node-name": "s1", "aio": "native", "cache": {"direct": true}, '
                '"read-only": true}',
                '{"node-name": "clone0", "read-only": true, "driver": "qcow2", "file": "s1", "backing": "f2"}',
                over("f1", "d.qcow2,file.aio=native,file.cache.direct=on"),
            ],
            "/d",
            "qcow2",
            id="libvirt's chain of backing files",
        ),
        pytest.param(
            ["file,node-name=d,filename=/d"],
            ["file,filename=/d,node-name=clone0,read-only=on", over("d", "d.qcow2")],
            "/d",
            "raw",
            id="used by a device itself",
        ),
        pytest.param(
            [
                "driver=file,node-name=clone0,filename=/d",
                "driver=raw,node-name=r,file=clone0",
                "driver=throttle,node-name=t,throttle-group=g,file=r",
            ],
            [
                "driver=file,filename=/d,node-name=clone0,read-only=on",
                "driver=raw,file=clone0,node-name=clone1,read-only=on",
                over("r", "d.qcow2", "clone1"),
                "driver=throttle,node-name=t,throttle-group=g,file=r",
            ],
            "/d",
            "raw",
            id="below a filter",
        ),
    ],
)
def test_a_node_keeps_its_options_below_the_overlay(before: list[str], after: list[str], base: str, form: str) -> None:
    command, overlays = cloned(["qemu", *nodes(*before), "-device", "virtio-blk-pci"], "/c")
    assert command == ["qemu", *nodes(*after), "-device", "virtio-blk-pci"]
    assert overlays == [Overlay("/c/d.qcow2", base, form)]


@pytest.mark.parametrize(
    "words",
    [
        ["-drive", "file=/d,format=raw,readonly=on"],
        ["-drive", "file=/d,format=raw,read-only=on"],
        ["-drive", "file=/d,format=raw,readonly"],
        ["-drive", "file=/cd.iso,media=cdrom"],
        ["-drive", "file=/d,snapshot=on"],
        ["-drive", "file=/d,format=raw", "-snapshot"],
        ["/d", "-snapshot"],
        ["-drive", "if=ide,media=disk"],
        ["-drive", "if=none,id=cd,media=cdrom"],
        ["-drive", "driver=null-co,size=1G"],
        ["-drive", "file=null-co://"],
        ["-cdrom", "/cd.iso"],
        ["-blockdev", "driver=raw,node-name=d,read-only=on,file.driver=file,file.filename=/d"],
        ["-blockdev", '{"driver":"nbd","node-name":"d","read-only":true,"server":{"type":"unix","path":"/s"}}'],
        ["-blockdev", "driver=null-co,node-name=d,size=1G"],
        ["-device", "virtio-blk-pci,drive=d"],
        ["-hda", ""],
        *([option] for option in ("-drive", "-blockdev", "-hda", "-device", "-set", "-readconfig")),
        ["-append", "root=/dev/sda -drive file=/d"],
        ["-set", "device.net0.mac=52:54:00:12:34:56"],
    ],
)
def test_what_is_not_written_stays(words: list[str]) -> None:
    assert cloned(["qemu", *words], "/c") == (["qemu", *words], [])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-drive", "file=nbd://host/d,format=raw"], "not a file or a block device of this host"),
        (["-drive", "file=fat:rw:/folder"], "not a file or a block device of this host"),
        (["-drive", 'file=json:{"driver":"qcow2"}'], "not a file or a block device of this host"),
        (["-hda", "rbd:pool/d"], "not a file or a block device of this host"),
        (["ssh://host/d"], "not a file or a block device of this host"),
        (["-drive", "driver=nbd,host=h,port=1"], "an image of nbd cannot have one"),
        (["-drive", "file.driver=nbd,file.host=h"], "an image of nbd cannot have one"),
        (["-drive", "driver=quorum,children.0.file.filename=/d"], "an image of quorum cannot have one"),
        (["-drive", "driver=qcow2,file.file.filename=/d"], "finds no name of an image in it"),
        (["-drive", "driver=file,filename=/d"], "an image of file cannot have one"),
        (["-drive", "file=/d,format=raw,offset=512"], "only the image's name, not offset"),
        (["-drive", "file=/d,format=raw,size=512"], "only the image's name, not size"),
        (["-drive", "file=/d,format=qcow2,backing.file.filename=/b"], "not backing.file.filename"),
        (["-drive", "file=/d,format=qcow2,encrypt.key-secret=s"], "/d is encrypted"),
        (["-drive", "file=/d,format=luks,key-secret=s"], "/d is encrypted"),
        (["-drive", "file=/dev/fdset/2,format=raw"], "a descriptor that QEMU's parent opened"),
        (["-drive", "file=/d,format=raw", "-drive", "file=/d,format=raw"], "the disk of another option as well"),
        (["-blockdev", "driver=nbd,node-name=d,server.type=unix,server.path=/s"], "only an image in a file"),
        (["-blockdev", "driver=raw,node-name=d,file.driver=nbd,file.host=h"], "only an image in a file"),
        (["-blockdev", "driver=raw,node-name=d,file=unknown"], "only an image in a file"),
        (["-blockdev", "driver=raw,node-name=d,file=d"], None),
        (["-blockdev", "driver=throttle,node-name=d,file.driver=file,file.filename=/d"], "only an image in a file"),
        (
            ["-blockdev", "driver=raw,node-name=d,offset=1,file.driver=file,file.filename=/d"],
            "only the image's name, not offset",
        ),
        (["-blockdev", "driver=luks,node-name=d,key-secret=s,file.driver=file,file.filename=/d"], "/d is encrypted"),
        (["-blockdev", "driver=file,node-name=d,filename=/dev/fdset/1"], "a descriptor that QEMU's parent opened"),
        (["-blockdev", "{'driver': 'file'"], "is not valid JSON for QEMU"),
        (["-device", "vhost-user-blk-pci,chardev=c"], "another process writes this disk"),
        (["-device", '{"driver": "vhost-user-scsi-pci", "chardev": "c"}'], "another process writes this disk"),
        (
            ["-object", "memory-backend-file,id=m,share=on,mem-path=/n", "-device", "nvdimm,memdev=m"],
            "writes this memory",
        ),
        (
            ["-object", "memory-backend-file,id=m,share=on,mem-path=/n", "-device", "virtio-pmem-pci,memdev=m"],
            "writes this memory",
        ),
        (
            [
                *("-object", '{"qom-type": "memory-backend-file", "id": "m", "share": true, "mem-path": "/n"}'),
                *("-device", '{"driver": "cxl-type3", "persistent-memdev": "m"}'),
            ],
            "writes this memory",
        ),
        (["-set", "drive.d.file=/d"], "does not follow -set"),
        (["-readconfig", "/none"], "the file cannot be read"),
    ],
)
def test_what_cannot_have_an_overlay_is_refused(words: list[str], why: str | None) -> None:
    if why is None:  # QEMU refuses the loop
        assert cloned(["qemu", *words], "/c") == (["qemu", *words], [])
        return
    with pytest.raises(UsageError, match=re.escape(why)) as refused:
        cloned(["qemu", *words], "/c")
    assert refused.value.hint or "JSON" in why


def test_disks_of_a_configuration_file_are_refused_and_its_devices_are_not(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text('[device "net0"]\n  driver = "e1000"\n')
    words = ["qemu", "-readconfig", str(file)]
    assert cloned(words, "/c") == (words, [])
    file.write_text('[drive "d"]\n  file = "/d"\n')
    with pytest.raises(UsageError, match="the file has disks"):
        cloned(words, "/c")


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StatepipeError, match=r"cannot read .*/none: No such file or directory"):
        cloned(["qemu", "-hda", f"{tmp_path}/none"], "/c")
    with pytest.raises(StatepipeError, match="it is not a regular file or a block device"):
        cloned(["qemu", "-hda", str(tmp_path)], "/c")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_disk_with_two_names_gets_no_two_overlays(tmp_path: Path, link: Callable[[str, str], None]) -> None:
    (tmp_path / "a").touch()
    link(f"{tmp_path}/a", f"{tmp_path}/b")
    words = [word for name in "ab" for word in ("-drive", f"file={tmp_path}/{name},format=raw")]
    with pytest.raises(UsageError, match=f"{tmp_path}/b is the disk of another option as well"):
        cloned(["qemu", *words], f"{tmp_path}/c")


def test_overlays_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"-drive file={name},format=raw" for name in ("a/d", "b/d.qcow2", "c/d", "d-2")]
    command, overlays = cloned(["qemu", *" ".join(words).split()], "c")
    names = ["d.qcow2", "d-2.qcow2", "d-3.qcow2", "d-2-2.qcow2"]
    assert [each.path for each in overlays] == [f"{tmp_path}/c/{name}" for name in names]
    assert [each.base for each in overlays] == [f"{tmp_path}/{name}" for name in ("a/d", "b/d.qcow2", "c/d", "d-2")]
    assert command[2::2] == [f"format=qcow2,file={tmp_path}/c/{name}" for name in names]
