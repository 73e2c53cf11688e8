"""The disk guard: which disks of a saved guest may be loaded on, and what is said of those that may not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import StatepipeError
from statepipe.qemu import disks
from statepipe.qemu.disks import fingerprint
from statepipe.qemu.guard import Said, judge, look, look_from_outside, named, unknown
from statepipe.qemu.images import Image, Images
from statepipe.qemu.view import View

Disk = dict[str, Any]
BUS = ("pci.0 02.0",)
OTHER_BUS = ("pci.0 03.0",)
NBD = Image("nbd://127.0.0.1:10809/e", "nbd", BUS, size=9)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"boot" + bytes(1 << 20) + b"end")
    return path


def of(*rows: Image) -> Images:
    return Images(rows)


def file(path: object, devices: tuple[str, ...] = BUS, *, read_only: bool = False) -> Image:
    return Image(str(path), "file", devices, read_only)


def judged(saved: list[Disk], its: Images | None, *said: str, forced: tuple[str, ...] = ()) -> list[str]:
    """What is warned of. Raises StatepipeError."""
    warnings: list[str] = []
    judge(saved, its, Said(said, forced).of(saved), warnings.append)
    return warnings


def touch(path: Path) -> None:
    """A second later."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_a_disk_as_it_was_is_taken_without_a_word(image: Path) -> None:
    its = of(file(image))
    assert judged(look(its), its) == []


def test_a_disk_that_was_replaced_after_qemu_opened_it_is_refused(tmp_path: Path, image: Path) -> None:
    """By a copy that nobody could tell from it. This process stands for QEMU: it has the earlier file open."""
    saved = look(of(file(image)))
    its = Images((file(image),), View(os.getpid()))
    with image.open("rb"):
        assert judged(saved, its) == []
        copy = tmp_path / "copy"
        shutil.copy2(image, copy)
        copy.replace(image)
        assert judged(saved, of(file(image))) == []
        with pytest.raises(StatepipeError, match=f"other files open than those with these names now: {image}") as told:
            judged(saved, its)
        assert "start it again" in (told.value.hint or "")
        assert judged(saved, its, forced=(str(image),))[0].startswith(f"{image} is accepted as it is")
        assert look(its)[0]["unknown"].startswith("it was replaced: QEMU has another file open")
    with image.open("rb"):
        assert judged(saved, its) == []


def test_a_disk_that_became_read_only_is_refused_unless_an_overlay_is_in_its_place(tmp_path: Path, image: Path) -> None:
    saved, locked = look(of(file(image))), file(image, read_only=True)
    with pytest.raises(StatepipeError, match=f"could write to are read-only now: {image}") as told:
        judged(saved, of(locked))
    assert "remove readonly=on" in (told.value.hint or "")
    assert judged(saved, of(locked), forced=(str(image),))
    assert judged(saved, of(locked, file(tmp_path / "overlay"))) == []
    assert judged(look(of(locked)), of(locked)) == []


def test_another_file_in_a_disk_s_place_is_named_and_its_place(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(image.read_bytes())
    with pytest.raises(StatepipeError, match=r"lacks disks .*image \(in its place, at pci.0 02.0: .*other\)$"):
        judged(look(of(file(image))), of(file(other)))


def test_two_disks_in_each_other_s_place_are_refused(tmp_path: Path, image: Path) -> None:
    """Their order is what the guest knows them by."""
    twin = tmp_path / "twin"
    twin.write_bytes(image.read_bytes())
    saved = look(of(file(image), file(twin, OTHER_BUS)))
    with pytest.raises(StatepipeError, match=r"not where the guest has them: .*image is at pci.0 03.0, but was at pci"):
        judged(saved, of(file(twin), file(image, OTHER_BUS)))


def test_an_overlay_that_came_upon_a_disk_is_refused(tmp_path: Path, image: Path) -> None:
    with pytest.raises(StatepipeError, match=r"image is now below another image"):
        judged(look(of(file(image))), of(file(tmp_path / "overlay"), file(image, ())))


def test_an_overlay_that_was_left_out_is_refused(tmp_path: Path, image: Path) -> None:
    overlay = tmp_path / "overlay"
    overlay.write_bytes(b"QFI\xfb")
    saved = look(of(file(overlay), file(image, ())))
    with pytest.raises(StatepipeError, match=r"lacks disks that the guest had: .*overlay \(in its place"):
        judged(saved, of(file(image)))


def test_a_disk_that_was_moved_is_said_to_be(tmp_path: Path, image: Path) -> None:
    saved, new = look(of(file(image))), tmp_path / "its=new name"
    image.rename(new)
    assert judged(saved, of(file(new)), f"{image}={new}") == []
    touch(new)
    new.write_bytes(b"another's")
    with pytest.raises(StatepipeError, match="its size and its content changed"):
        judged(saved, of(file(new)), f"{image}={new}")


def test_a_disk_is_named_from_the_folder_that_one_is_in(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, new = look(of(file(image))), image.with_name("new")
    image.rename(new)
    monkeypatch.chdir(image.parent)
    assert judged(saved, of(file(new)), f"{image.name}=new") == []
    for name in ("image", "new", "./new"):
        [said] = judged(saved, of(file(new)), "./image=new", forced=(name,))
        assert said.startswith(f"{new} is accepted as it is")


def test_what_can_be_forced_is_told_of_a_word_that_cannot(image: Path) -> None:
    with pytest.raises(StatepipeError, match="--force names yes, which is not a disk of this state") as caught:
        judged(look(of(file(image))), None, forced=("yes",))
    assert caught.value.hint == f"its disks: {image}; parts of the machine: cpu, smp, ram, devices"


def test_a_disk_that_is_not_there_is_told_from_one_that_changed(image: Path) -> None:
    saved = look(of(file(image)))
    image.unlink()
    with pytest.raises(StatepipeError, match=f"^disks that the guest had are not there: {image}$") as caught:
        judged(saved, None)
    assert f"--disk {image}=NEW" in str(caught.value.hint)
    assert judged([{"path": "nbd:h:1", "driver": "nbd", "unknown": "nbd keeps it"}], None) == []


def test_a_command_line_that_has_the_old_name_of_a_disk_is_told(image: Path) -> None:
    saved = look(of(file(image)))
    new = image.with_name("new")
    word = Said([f"{image}={new}"]).of(saved)
    line = ["qemu-system-x86_64", "-drive", f"if=ide,file={image},format=raw"]
    with pytest.raises(StatepipeError, match=f"QEMU's command line names {image}") as caught:
        named(saved, line, word)
    assert str(caught.value.hint).startswith(f"put {new} there")
    assert named(saved, [*line, "-drive", f"file={new}"], word) == saved, "it may be an image below the new one"


def test_a_guest_that_ran_on_while_it_was_saved_is_what_changed_its_disk(image: Path) -> None:
    saved = look(of(file(image)))
    image.write_bytes(b"later")
    with pytest.raises(
        StatepipeError, match=r"^disks changed since .*, as its guest ran on \(save --live\): "
    ) as caught:
        judge(saved, of(file(image)), Said().of(saved), print, live=True)
    assert "a snapshot of them from the moment when that save began" in str(caught.value.hint)


def test_a_copy_restored_without_its_date_is_the_same_disk(image: Path) -> None:
    """It holds what it held, and all of it was read at the save."""
    saved = look(of(file(image)))
    touch(image)
    assert judged(saved, of(file(image))) == []


def test_a_change_between_the_samples_is_seen(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * (8 << 20))
    saved = look(of(file(image)))
    with image.open("r+b") as written:
        written.seek(20_000)
        written.write(b"y")
    assert saved[0]["samples_blake3"] == fingerprint(str(image))["samples_blake3"]
    with pytest.raises(StatepipeError, match="its content changed"):
        judged(saved, of(file(image)))


def test_of_a_large_disk_another_date_is_told_apart_from_another_content(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples alone do not prove that nothing was written; a person may know that it is a restored copy."""
    monkeypatch.setattr(disks, "WHOLE", 0)
    saved = look(of(file(image)))
    touch(image)
    with pytest.raises(StatepipeError, match="its modification time changed, its size and the compared") as caught:
        judged(saved, of(file(image)))
    assert "--force DISK" in str(caught.value.hint)
    warnings = judged(saved, of(file(image)), forced=(str(image),))
    assert len(warnings) == 1 and "because of --force" in warnings[0]


def test_a_medium_that_is_only_read_may_have_another_date(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "WHOLE", 0)
    its = of(file(image, read_only=True))
    saved = look(its)
    touch(image)
    assert "modification time changed" in judged(saved, its)[0]
    image.write_bytes(b"another medium")
    with pytest.raises(StatepipeError, match="its size and its content changed"):
        judged(saved, its)


def test_one_disk_that_is_forced_leaves_the_others_guarded(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"old")
    its = of(file(image), file(other, OTHER_BUS))
    saved = look(its)
    image.write_bytes(b"new")
    other.write_bytes(b"new")
    with pytest.raises(StatepipeError) as caught:
        judged(saved, its, forced=(str(image),))
    assert str(other) in str(caught.value) and str(image) not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["-drive", "file=file:IMAGE,if=ide"],
        ["-drive", 'file=json:{"driver":"raw",,"file":{"driver":"file",,"filename":"IMAGE"}}'],
        ["-blockdev", "{'driver': 'file', 'filename': 'IMAGE', 'node-name': 'n'}"],
        ["-blockdev", "driver=qcow2,file.filename=IMAGE"],
        ["-drive", "file=blkdebug:/rules:IMAGE"],
        ["-drive", "file=file:///IMAGE"],
        ["-hda", "IMAGE"],
        ["IMAGE"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["image", "a, b=c [d] {e}: f"])
def test_a_disk_is_seen_wherever_a_command_line_names_it(words: list[str], name: str, tmp_path: Path) -> None:
    image = tmp_path / name
    image.write_bytes(b"boot")
    written = str(image) if words[0] in ("IMAGE", "-hda") or words[-1][0] == "{" else str(image).replace(",", ",,")
    line = ["qemu-system-x86_64", *(word.replace("IMAGE", written) for word in words)]
    saved = look(of(file(image)))
    assert named(saved, line, Said().of(saved)) == saved
    assert named(saved, [each.replace(written, "/none") for each in line], Said().of(saved)) == []


@pytest.mark.parametrize(("moved", "forced"), [(["/none=/other"], []), ([], ["/none"])])
def test_a_disk_that_the_state_has_not_cannot_be_named(image: Path, moved: list[str], forced: list[str]) -> None:
    saved = look(of(file(image)))
    with pytest.raises(StatepipeError, match="/none, which is not a disk of this state") as caught:
        Said(moved, forced).of(saved)
    assert str(image) in str(caught.value.hint)


def test_a_disk_behind_a_network_is_known_by_its_name_and_size() -> None:
    saved = look(of(NBD))
    assert judged(saved, of(NBD)) == []
    assert "nbd://127.0.0.1:10809/e" in str(unknown(saved))
    with pytest.raises(StatepipeError, match=r"lacks .*in its place, at pci.0 02.0: nbd://elsewhere/e"):
        judged(saved, of(Image("nbd://elsewhere/e", "nbd", BUS, size=9)))
    with pytest.raises(StatepipeError, match="it had 9 bytes, and has 10"):
        judged(saved, of(Image(NBD.path, "nbd", BUS, size=10)))
    moved = f"{NBD.path}=nbd://elsewhere/e"
    assert judged(saved, of(Image("nbd://elsewhere/e", "nbd", BUS, size=9)), moved) == []


def test_a_filter_of_qemu_s_does_not_look_for_what_is_no_file(image: Path) -> None:
    """It knows its parent's open files alone."""
    saved = look(of(NBD, file(image, OTHER_BUS)))
    assert judged(saved, Images((Image(str(image), "file"),), complete=False)) == []


@pytest.mark.parametrize(
    "words",
    [
        ["-drive", "file=nbd://host:10809/e,if=virtio"],
        ["-drive", "if=virtio,file=rbd:pool/image:id=admin"],
        ["-blockdev", "driver=nbd,node-name=n,server.type=unix,server.path=/s"],
        ["-blockdev", '{"driver": "iscsi", "node-name": "n"}'],
        ["-blockdev", "{'driver': 'iscsi', 'node-name': 'n'}"],
        ["-blockdev", '{"driver": "\\u006ebd"}'],
        ["-device", "{'driver': 'vhost-user-blk-pci', 'chardev': 'c'}"],
        ["-device", "vhost-user-blk-pci,chardev=c"],
        ["-hda", "nbd+unix:///e?socket=/s"],
    ],
)
def test_a_command_line_that_reaches_disks_elsewhere_leaves_a_doubt(words: list[str]) -> None:
    saved = look_from_outside([], ["qemu", *words])
    assert words[1] in str(unknown(saved))
    assert judged(saved, of()) == [], "QEMU calls it by another name: nothing is proved, and nothing is refused"


@pytest.mark.parametrize("words", [["-append", "root=nbd:x"], ["-drive", "file=/srv/nbd/x"], ["-serial", "tcp:h:1"]])
def test_a_command_line_without_such_disks_leaves_none(words: list[str]) -> None:
    assert look_from_outside([], ["qemu", *words]) == []
