"""The command line of a clone: each disk that the guest writes to is replaced by an overlay over it.

QEMU reads what the guest has not written from the disk, its base, and writes to the overlay alone. An option that names
a file, such as -drive, names the overlay instead. A node of -blockdev may have any options, so it stays as it is, but
read-only and with another name, and the overlay, above it, gets its name.

Disks that QEMU does not write to stay: read-only ones, CDs, and those with snapshot=on, for which QEMU itself makes a
temporary overlay.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from statepipe.errors import StatepipeError, UsageError
from statepipe.qemu.blocknodes import FORMATS, NULL, Node, Nodes
from statepipe.qemu.commandline import parted, split
from statepipe.qemu.configfile import options, read
from statepipe.qemu.disks import NoImage, open_image
from statepipe.qemu.images import FILES
from statepipe.qemu.view import View
from statepipe.typed import NoReturn

_PLAIN: dict[str | None, str] = {
    None: "media=disk,index=0",
    **{f"hd{letter}": f"media=disk,index={index}" for index, letter in enumerate("abcd")},
    **{f"fd{letter}": f"if=floppy,index={index}" for index, letter in enumerate("ab")},
    **{"mtdblock": "if=mtd", "sd": "if=sd", "pflash": "if=pflash"},
}
"""Options whose value is the name of an image, and what -drive calls them (QEMU softmmu/vl.c, drive_add)."""

_ON = ("on", "yes", "y", "true")

_PARTS, _CHAIN = ("offset", "size"), ("backing", "data-file")
"""Options by which an image is a part of its file, or has others; of the latter, the first parts of their names."""

_SECRET = ("encrypt", "key-secret")

_ELSEWHERE = ("vhost-user-blk", "vhost-user-scsi", "vhost-scsi")
"""Devices whose disk another process or the kernel writes."""

_PERSISTENT, _STORES = ("nvdimm", "virtio-pmem", "cxl-type3"), ("memdev", "persistent-memdev", "lsa")
"""Devices whose disk is the file of a memory backend, and their properties that name it."""

_AS_IT_IS = "if the guest only reads it, make it read-only; else load without --clone, or give it a copy of the disk"

HEAD = 80
"""Bytes of an image in which its format is recognized."""

_MAGICS = (
    *((b"QFI\xfb\0\0\0\1", "qcow"), (b"QFI\xfb", "qcow2"), (b"QED\0", "qed"), (b"KDMV", "vmdk"), (b"COWD", "vmdk")),
    *((b"# Disk Des", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vpc"), (b"LUKS\xba\xbe", "luks")),
    *((b"WithoutFreeSpace", "parallels"), (b"WithouFreSpacExt", "parallels"), (b"Bochs Virtual HD", "bochs")),
)
_VDI = (0x40, b"\x7f\x10\xda\xbe")
"""How images of these formats begin (QEMU block/*.c, the functions `*_probe`); what nobody knows is raw."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A new image at `path`, which has what the guest writes from now on; the rest is in `base`, an image of that
    format. Both names are absolute."""

    path: str
    base: str
    format: str


@dataclass(slots=True)
class _Folder:
    """The folder of the overlays, and those in it."""

    name: str
    overlays: list[Overlay] = field(default_factory=list)

    def over(self, option: str, name: str, format_: str | None) -> Overlay:
        """Return a new overlay over the image with this name. Raises StatepipeError."""
        base = os.path.abspath(name)
        if name.startswith("/dev/fdset/"):
            _refuse(option, f"{name} is a descriptor that QEMU's parent opened, and the overlay needs a name")
        view = View(0)
        if any(view.real(each.base) == view.real(base) or view.is_same(each.base, base) for each in self.overlays):
            _refuse(option, f"{name} is the disk of another option as well, and each would get an overlay of its own")
        if format_ is None:
            format_ = _format_of(option, base)
        if format_ == "luks":
            _refuse_secret(option, name)
        stem, taken = os.path.basename(base).removesuffix(".qcow2"), {each.path for each in self.overlays}
        names = (f"{stem}{'' if number == 1 else f'-{number}'}.qcow2" for number in range(1, len(taken) + 2))
        path = next(path for each in names if (path := os.path.join(self.name, each)) not in taken)
        self.overlays.append(Overlay(path, base, format_))
        return self.overlays[-1]


def cloned(command: Sequence[str], folder: str) -> tuple[list[str], list[Overlay]]:
    """Return the command line of a clone, and the overlays in `folder` that it needs; none is made.

    Raises UsageError for a disk that is written and cannot have one, StatepipeError for one that cannot be read.
    """
    made, kept = _Folder(os.path.abspath(folder)), list(command[:1])
    nodes = Nodes(command)
    whole = any(name == "snapshot" for name, _ in parted(command))
    for at, (name, words) in enumerate(parted(command)):
        if name is not None and len(words) < 2:  # a flag, or one whose value is missing, which QEMU rejects
            pass
        elif name in _PLAIN:
            if words[-1] and not whole:
                overlay = made.over(words[0], _file(words[0], words[-1]), None)
                words = ["-drive", _joined([*_PLAIN[name].split(","), "format=qcow2", f"file={overlay.path}"])]
        elif name == "drive":
            words = [words[0], _drive(made, words, whole=whole)]
        elif name == "blockdev":
            words = list(_blockdev(made, words, nodes, nodes.at.get(at)))
        else:
            _refuse_other_disk(name, words[-1], command)
        kept += words
    return kept, made.overlays


def _drive(made: _Folder, words: list[str], *, whole: bool) -> str:
    """Return the value of -drive with an overlay, or unchanged."""
    value, option = words[1], f"-drive {words[1]}"
    pairs = [each.partition("=") for each in split(value)]
    its = {key: text if equals else "on" for key, equals, text in pairs}
    temporary = its.get("snapshot", "on" if whole else "off") in _ON
    read_only = its.get("readonly", its.get("read-only")) in _ON or its.get("media") == "cdrom"
    named = its.get("file.filename", its.get("file", ""))
    format_, protocol = its.get("driver", its.get("format")), its.get("file.driver")
    if temporary or read_only or format_ in NULL or protocol in NULL or named.startswith(tuple(f"{x}:" for x in NULL)):
        return value
    for driver, known in ((format_, FORMATS), (protocol, FILES)):
        if driver is not None and driver not in known:
            _refuse(option, f"an image of {driver} cannot have one")
    if not named and any(key.startswith("file") for key in its):
        _refuse(option, "statepipe finds no name of an image in it", hint="write it with file=, or as -blockdev")
    if not named:  # a drive without a medium
        return value
    _refuse_options(option, named, its, (*_CHAIN, *(_PARTS if format_ in (None, "raw") else ())))
    overlay = made.over(option, named if protocol else _file(option, named), format_)
    gone = ("file", "file.driver", "file.filename", "format", "driver")
    left = ["".join(pair) for pair in pairs if pair[0] not in gone]
    return _joined([*left, "format=qcow2", f"file={overlay.path}"])


def _blockdev(made: _Folder, words: list[str], nodes: Nodes, node: Node | None) -> Iterator[str]:
    """Yield the words of -blockdev, and behind it the node of an overlay if it needs one."""
    option = " ".join(words)
    if node is None or nodes.is_below(node):
        yield from words if node is None or node.name not in nodes.bases else [words[0], node.changed(read_only=True)]
        return
    if node.read_only or node.driver in NULL or (node.driver not in (*FORMATS, *FILES) and nodes.is_filter(node)):
        yield from words
        return
    leaf = nodes.leaf(node)
    if leaf is None:
        _refuse(option, "only an image in a file or a block device of this host can have an overlay")
    _refuse_options(option, leaf.filename, node.words, _PARTS)
    overlay = made.over(option, leaf.filename, "raw" if node.driver in FILES else node.driver)
    base = nodes.unused_name()
    yield from [words[0], node.changed(name=base, read_only=True)]
    its = {"driver": "qcow2", "node-name": node.name}
    its |= {key: text for key, text in node.words.items() if key.startswith(("discard", "detect-zeroes", "cache."))}
    its |= {"file.driver": "file", "file.filename": overlay.path}
    its |= {f"file.{key}": text for key, text in leaf.words.items() if key.startswith(("aio", "cache.", "discard"))}
    yield from ["-blockdev", _joined(f"{key}={text}" for key, text in {**its, "backing": base}.items())]


def _refuse_options(option: str, name: str, its: Iterable[str], lost: Sequence[str]) -> None:
    """Raises UsageError for an encrypted image, and for one with an option that is `lost` when an overlay names it."""
    for key in its:
        first = key.partition(".")[0]
        if first in _SECRET:
            _refuse_secret(option, name)
        if first in lost:
            _refuse(option, f"an overlay has only the image's name, not {key}")


def _refuse_secret(option: str, name: str) -> NoReturn:
    _refuse(option, f"{name} is encrypted, and the overlay would contain what the guest writes unencrypted")


def _refuse_other_disk(name: str | None, value: str, command: Sequence[str]) -> None:
    """Raises UsageError for an option that has a disk, or may have one, in a form that cannot get an overlay."""
    option = f"-{name} {value}"
    if name == "set" and value.startswith("drive."):
        _refuse(option, "statepipe does not follow -set", hint="put that word into its -drive")
    if name == "readconfig":
        text = read(value, View(0))
        if text is None:
            _refuse(option, "the file cannot be read, so its disks are not known", hint=_ON_THE_LINE)
        kinds = [words[0] for words in options(text)]
        if {"-drive", "-blockdev", "-set"} & {*kinds}:
            _refuse(option, "the file has disks, which statepipe does not change there", hint=_ON_THE_LINE)
    if name == "device":
        kind, words = _device(value)
        if kind.startswith(_ELSEWHERE):
            _refuse(option, "another process writes this disk, and QEMU cannot put an overlay over it")
        if kind.startswith(_PERSISTENT) and any(_is_shared_file(words.get(key), command) for key in _STORES):
            _refuse(option, "the guest writes this memory to its file, which cannot have an overlay")


_ON_THE_LINE = "put its options on the command line"


def _device(value: str) -> tuple[str, dict[str, str]]:
    """Return the driver of a device, and its words."""
    words = Node.words_of(value, "driver")
    return words.get("driver", ""), words


def _is_shared_file(memory: str | None, command: Sequence[str]) -> bool:
    """Return whether the memory backend with that id is a file that is written."""
    backends = (Node.words_of(words[1], "qom-type") for name, words in parted(command) if name == "object")
    return any(
        its.get("qom-type") == "memory-backend-file" and its.get("id") == memory and its.get("share") in _ON
        for its in backends
    )


def _file(option: str, name: str) -> str:
    """Return the file that QEMU means by the name of an image. Raises UsageError if it is none."""
    for prefix in ("file:", "host_device:"):
        name = name.removeprefix(prefix)
    if ":" in name.partition("/")[0]:  # QEMU block.c, path_has_protocol
        _refuse(option, f"{name} is not a file or a block device of this host, and only such a one can have an overlay")
    return name


def _format_of(option: str, base: str) -> str:
    """Return the format that QEMU finds in an image whose format nobody gave. Raises StatepipeError."""
    try:
        fd = open_image(base, os.O_RDONLY)
        try:
            head = os.pread(fd, HEAD, 0)
        finally:
            os.close(fd)
    except (OSError, NoImage) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StatepipeError(
            f"no overlay for {option}: cannot read {base}: {why}", hint="check the name, and who may read it"
        ) from error
    if head[_VDI[0] :].startswith(_VDI[1]):
        return "vdi"
    return next((name for magic, name in _MAGICS if head.startswith(magic)), "raw")


def _refuse(option: str, why: str, hint: str = _AS_IT_IS) -> NoReturn:
    raise UsageError(f"--clone cannot give {option} an overlay: {why}", hint=hint)


def _joined(words: Iterable[str]) -> str:
    return ",".join(word.replace(",", ",,") for word in words)
