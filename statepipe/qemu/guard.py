"""The disk guard: whether the disks that a QEMU has are still those that a saved guest had.

Old memory on a disk that has changed since, or on another guest's disk, destroys its file systems. A state file lists
the disks, but nothing is opened only because a file names it: if a QEMU is available, it must have that image itself,
and the guest must see it in the same place. What cannot be proved, such as a disk behind a network, is reported.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from statepipe.errors import StatepipeError
from statepipe.qemu.commandline import in_words, parted, texts
from statepipe.qemu.disks import Disk, fingerprint
from statepipe.qemu.guest import PARTS
from statepipe.qemu.images import Image, Images
from statepipe.qemu.view import View
from statepipe.typed import NamedTuple

Warn = Callable[[str], object]

UNSEEN = "command line"
"""The driver of a disk that is known only from a command line: QEMU has another name for it."""


class Said(NamedTuple):
    """What the user says about disks, before the state's disks are known: OLD=NEW for each disk that was moved, and the
    names of disks to accept as they are."""

    moved: Sequence[str] = ()
    forced: Sequence[str] = ()

    def of(self, saved: Sequence[Disk]) -> Word:
        """Return the same for the saved disks. A name may contain an equals sign; a file's may be relative.

        Raises StatepipeError for a name that none of them has.
        """
        names = [disk["path"] for disk in saved]
        files = {disk["path"] for disk in saved if "driver" not in disk}
        moved = {}
        for text in self.moved:
            splits = (at for at, letter in enumerate(text) if letter == "=")
            found = ((_known(text[:at], names, files), text[at + 1 :]) for at in splits)
            old, new = next(((old, new) for old, new in found if old is not None), (None, ""))
            if old is None:
                raise _stranger("--disk", text.partition("=")[0], names)
            moved[old] = os.path.abspath(new) if old in files and ":" not in new else new
        forced, known = [], (*names, *moved.values())
        for name in self.forced:
            found_as = name if name in PARTS else _known(name, known, {*files, *moved.values()})
            if found_as is None:
                raise _stranger("--force", name, names)
            forced.append(found_as)
        return Word(moved, forced)


def _known(name: str, names: Sequence[str], files: Collection[str]) -> str | None:
    """Return the one of the names that equals `name`, or that is the same file from here."""
    if name in names:
        return name
    real = View(0).real(name)
    return next((each for each in names if each in files and View(0).real(each) == real), None)


def _stranger(option: str, name: str, names: Sequence[str]) -> StatepipeError:
    its = f"its disks: {', '.join(names)}" if names else "the state names no disks"
    if option == "--force":
        its += f"; parts of the machine: {', '.join(PARTS)}"
    return StatepipeError(f"{option} names {name}, which is not a disk of this state", hint=its)


class Word(NamedTuple):
    """The disks that were `moved`, old name to new, and those to accept as they are (`forced`), by either name."""

    moved: Mapping[str, str] = MappingProxyType({})
    forced: Collection[str] = ()

    def now(self, disk: Disk) -> str:
        """Return the current name of the saved disk."""
        return self.moved.get(disk["path"], disk["path"])

    def forces(self, disk: Disk) -> bool:
        """Return whether to accept this disk as it is."""
        return disk["path"] in self.forced or self.now(disk) in self.forced


def look(images: Images) -> list[Disk]:
    """Return what every image looks like now, for a state file's trailer."""
    found: list[Disk] = []
    for row in images.rows:
        disk: Disk = {"path": row.path}
        more: Disk = {} if row.devices is None else {"devices": list(row.devices)}
        if not row.is_file:
            disk |= {"driver": row.driver, "unknown": f"it is not a file of this host: {row.driver} provides it"}
            more |= {"remote_size": row.size}
        else:
            more |= {"read_only": True} if row.read_only and row.devices else {}
            if os.path.isabs(row.path):
                disk = _seen(row.path, images.view)
            else:
                disk["unknown"] = "statepipe may not look into QEMU's working folder"
        found.append(disk | more)
    return found


def _seen(path: str, view: View) -> Disk:
    """Return what the file with that name in this view looks like; it is known only if QEMU has that file open."""
    if view.has_replaced(path):
        return {"path": path, "unknown": "it was replaced: QEMU has another file open than the one with this name now"}
    try:
        with view.place(path) as place:
            return fingerprint(path, place)
    except OSError as error:
        return {"path": path, "unknown": os.strerror(error.errno or 0)}


def look_from_outside(paths: Iterable[str], command: Sequence[str]) -> list[Disk]:
    """Return the same for a QEMU without a monitor for us: of its files, and of other disks on its command line."""
    why = "it is not a file of this host, and only QEMU's monitor knows more about it"
    found = [fingerprint(path) for path in paths]
    for name, words in parted(command):
        if len(words) > 1 and _OPTION.fullmatch(name or ""):
            plain = words[1]
            with suppress(ValueError):  # JSON that QEMU does not accept either
                plain = in_words(words[1])
            if _ELSEWHERE.search(words[1]) or _ELSEWHERE.search(plain):
                found.append({"path": words[1][:4096], "driver": UNSEEN, "unknown": why})
    return found


_OPTION = re.compile(r"(drive|blockdev|device|hd[abcd]|cdrom|fd[ab]|pflash|sd|mtdblock)")

_ELSEWHERE = re.compile(
    r"""(?x) (^|[=,"']) (nbd|rbd|iscsi|ssh|nfs|gluster|https?|ftps?) (\+\w+)? : (?!//?$)
    | \bdriver["']?\s*[=:]\s*["']?(nbd|rbd|iscsi|ssh|nfs|gluster|https?|ftps?)\b | \bvhost-user-(blk|scsi)\b"""
)
"""A disk on a command line that is not a file: a URL, a driver, or a device that another process serves."""


def unknown(disks: list[Disk] | None) -> str | None:
    """Return why it cannot be known whether some of these disks changed; None if all fingerprints are there."""
    if disks is None:
        return "the state does not say which disks the guest had: load cannot tell whether they changed"
    missing = [f"{disk['path']} ({disk['unknown']})" for disk in disks if "unknown" in disk]
    what = "the content of these disks could not be compared, so load cannot tell whether they changed"
    return f"{what}: {', '.join(missing)}" if missing else None


def named(saved: list[Disk] | None, command: Sequence[str], word: Word) -> list[Disk]:
    """Return the saved disks that the command line of a QEMU, to be started in this folder, names plainly.

    Raises StatepipeError if it still names the old place of a disk that `word` has moved.
    """
    files, view = named_files(command), View(0)
    for old, new in word.moved.items():
        if view.real(old) in files and view.real(new) not in files:
            what = f"--disk says that {old} is now {new}, but QEMU's command line names {old}"
            raise StatepipeError(what, hint=f"put {new} there too: --disk only says which of the guest's disks it is")
    return [disk for disk in saved or [] if view.real(word.now(disk)) in files]


def named_files(command: Sequence[str]) -> set[str]:
    """Return the files that any option of a command line may name, without links, and names that only look like one."""
    view = View(0)
    said = {text for _, words in parted(command) for word in words for text in texts(word)}
    said |= {text[at + 1 :] for text in said for at, letter in enumerate(text) if letter == ":"}  # file:/path
    return {real for each in said if each and (real := view.real(each)) is not None}


def judge(saved: Iterable[Disk] | None, images: Images | None, word: Word, warn: Warn, *, live: bool = False) -> None:
    """Raises StatepipeError with every disk that is not as it was when the state was saved, except those that `word`
    forces; `warn` reports what was not compared or not proved.

    `images` are those of the QEMU that is to load the state. None: no QEMU is available, and the files with those names
    are examined. `live`: the guest ran on while it was saved, and has probably changed the disks itself.
    """
    lacking, elsewhere, gone, locked, replaced, changed = [], [], [], [], [], []
    for disk in saved or ():
        now = word.now(disk)
        if word.forces(disk):
            warn(f"{now} is accepted as it is because of --force: it was not compared")
            continue
        row = images.find(now) if images is not None else None
        if images is not None and row is None:
            if (images.complete or "unknown" not in disk) and disk.get("driver") != UNSEEN:
                there = images.at(tuple(disk.get("devices", ())))
                place = f" (in its place, at {' and '.join(disk['devices'])}: {', '.join(there)})" if there else ""
                lacking.append(f"{now}{place}")
        elif row is not None and (where := _moved_on_the_bus(disk, row)):
            elsewhere.append(where)
        elif row is not None and images is not None and disk.get("devices") and _is_unwritable(disk, row, images):
            locked.append(row.path)
        elif images is None and "unknown" not in disk and _is_absent(now):
            gone.append(now)
        elif row is not None and images is not None and row.is_file and images.view.has_replaced(row.path):
            replaced.append(row.path)
        elif difference := _change(disk, row, images, now, warn):
            changed.append(difference)
    said, hints = [], []
    if lacking:
        said.append(f"this QEMU lacks disks that the guest had: {', '.join(lacking)}")
        hints.append("give QEMU the guest's own disks under these names; for one that was moved, give --disk OLD=NEW")
    elif elsewhere:
        said.append(f"disks are not where the guest has them: {'; '.join(elsewhere)}")
        hints.append("give the disks in the order of the guest's own command line")
    if gone:
        said.append(f"disks that the guest had are not there: {', '.join(gone)}")
        moved = f"--disk {shlex.quote(gone[0])}=NEW"
        hints.append(f"for one that was moved, put its new place on QEMU's command line and give {moved}")
    if locked:
        said.append(f"disks that the guest could write to are read-only now: {', '.join(locked)}")
        hints.append("the guest's writes would fail: remove readonly=on from QEMU's command line")
    if replaced:
        said.append(f"QEMU has other files open than those with these names now: {', '.join(replaced)}")
        hints.append("they were replaced after QEMU had opened them: end that QEMU, and start it again")
    if changed and live:
        said.append(f"disks changed since the state was saved, as its guest ran on (save --live): {'; '.join(changed)}")
        hints.append(_AS_THEY_WERE)
    elif changed:
        said.append(f"disks changed since the state was saved: {'; '.join(changed)}")
        hints.append("restore them as they were at the save; if the guest ran on afterwards, from a snapshot")
    if said:
        if changed or lacking or elsewhere:
            hints.insert(0, "old memory on another or a newer disk destroys its file systems")
        hints.append("for a disk that you know to be right, give --force DISK")
        raise StatepipeError("; ".join(said), hint="; ".join(hints))


_AS_THEY_WERE = (
    "give QEMU a snapshot of them from the moment when that save began, and --disk OLD=NEW if it has another name"
)


def _is_unwritable(disk: Disk, row: Image, images: Images) -> bool:
    """Return whether the guest could write to this disk and cannot now, neither to an overlay in its place
    (-snapshot)."""
    in_place = [each for each in images.rows if set(each.devices or ()) & set(row.devices or ())]
    return row.read_only and not disk.get("read_only") and all(each.read_only for each in in_place)


def _is_absent(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # its fingerprint says what is wrong
        pass
    return False


def _moved_on_the_bus(disk: Disk, row: Image) -> str | None:
    """Return where the image is if the guest expects it elsewhere; None if either place is unknown."""
    before, now = disk.get("devices"), row.devices
    if before is None or now is None or before == list(now):
        return None
    if before and not now:
        return f"{row.path} is now below another image, but was the guest's own disk, at {' and '.join(before)}"
    if now and not before:
        return f"{row.path} is now the guest's own disk, at {' and '.join(now)}, but was below another image"
    return f"{row.path} is at {' and '.join(now)}, but was at {' and '.join(before)}"


def _change(disk: Disk, row: Image | None, images: Images | None, path: str, warn: Warn) -> str | None:
    """Return how the disk, now at `path`, differs from what it was; None if it does not, or if that cannot be known."""
    if "unknown" in disk:  # the user is warned of these once, before anything is started
        before, size = disk.get("remote_size"), row.size if row is not None else None
        if before is not None and size is not None and before != size:
            return f"{path}: it had {before} bytes, and has {size}"
        return None
    now = fingerprint(path) if images is None else _seen(path, images.view)
    if "unknown" in now:
        return f"{path} cannot be read: {now['unknown']}"
    words = {"size": "its size", "samples_blake3": "its content"}
    if differ := [words[name] for name in words if disk[name] != now[name]]:
        return f"{path}: {' and '.join(differ)} changed"
    contents = [each.get("content_blake3") for each in (disk, now)]
    if None not in contents and contents[0] != contents[1]:
        return f"{path}: its content changed"
    if disk["mtime_ns"] == now["mtime_ns"] or None not in contents:
        return None
    only_the_date = f"{path}: its modification time changed, its size and the compared parts of its content did not"
    if disk.get("read_only"):
        warn(f"{only_the_date}; the guest can only read it")
        return None
    return only_the_date
