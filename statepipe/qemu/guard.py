"""The disk guard: whether the disks that a QEMU has are still those which a saved guest had.

Old memory on a disk that has moved on, or on another guest's, destroys its file systems. Which disks there were is told
by a state file, so no name is opened for being told: where a QEMU is at hand, it must have that image itself, and the
guest must see it in the same place. What cannot be proved, as of a disk behind a network, is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from statepipe.errors import StatepipeError
from statepipe.qemu.commandline import in_words, parted, texts
from statepipe.qemu.disks import Disk, fingerprint, fingerprints
from statepipe.qemu.guest import PARTS
from statepipe.qemu.images import Image, Images
from statepipe.qemu.view import View

Warn = Callable[[str], object]

UNSEEN = "command line"
"""The driver of a disk that only a command line names: QEMU calls it by another name."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a person says of disks, before it is known which there are: OLD=NEW of those that were moved, and the names
    of those that are to be taken as they are."""

    moved: Sequence[str] = ()
    forced: Sequence[str] = ()

    def of(self, saved: Sequence[Disk]) -> Word:
        """The same of these disks. A name may have an equals sign, too; a file's may be relative to our own folder.

        Raises StatepipeError for a name that none of them has.
        """
        names = [disk["path"] for disk in saved]
        files = {disk["path"] for disk in saved if "driver" not in disk}
        moved = {}
        for text in self.moved:
            old, new = _split(text, names, files)
            moved[old] = os.path.abspath(new) if old in files and ":" not in new else new
        known = (*names, *moved.values())
        forced = [name if name in PARTS else _known(name, known, {*files, *moved.values()}) for name in self.forced]
        for name, found in zip(self.forced, forced, strict=True):
            if found is None:
                raise _stranger("--force", name, names)
        return Word(moved, [name for name in forced if name is not None])


def _split(text: str, names: Sequence[str], files: Collection[str]) -> tuple[str, str]:
    """A disk of the state and its new name, of OLD=NEW. Raises StatepipeError if OLD is none."""
    for at in (at for at, letter in enumerate(text) if letter == "="):
        if (old := _known(text[:at], names, files)) is not None:
            return old, text[at + 1 :]
    raise _stranger("--disk", text.partition("=")[0], names)


def _known(name: str, names: Sequence[str], files: Collection[str]) -> str | None:
    """The one of the names that is meant: as it is written, or as a file that is the same from here."""
    if name in names:
        return name
    real = View(0).real(name)
    return next((each for each in names if each in files and View(0).real(each) == real), None)


def _stranger(option: str, name: str, names: Sequence[str]) -> StatepipeError:
    its = f"its disks: {', '.join(names)}" if names else "the state names no disks"
    if option == "--force":
        its += f"; of the machine: {', '.join(PARTS)}"
    return StatepipeError(f"{option} names {name}, which is not a disk of this state", hint=its)


@dataclass(frozen=True, slots=True)
class Word:
    """Which image was `moved` from which name to which, and which ones are to be taken as they are (`forced`), by
    either name."""

    moved: Mapping[str, str] = field(default_factory=dict)
    forced: Collection[str] = ()

    def now(self, disk: Disk) -> str:
        """The name that the saved disk has now."""
        return self.moved.get(disk["path"], disk["path"])

    def forces(self, disk: Disk) -> bool:
        """Whether this one is to be taken as it is."""
        return disk["path"] in self.forced or self.now(disk) in self.forced


def look(images: Images) -> list[Disk]:
    """What every image looks like now, for a state file's trailer."""
    return [_record(row, images.view) for row in images.rows]


def _record(row: Image, view: View) -> Disk:
    more: Disk = {} if row.devices is None else {"devices": list(row.devices)}
    if not row.is_file:
        why = f"it is not a file of this host: {row.driver} keeps it"
        return more | {"path": row.path, "driver": row.driver, "unknown": why, "remote_size": row.size}
    if row.read_only and row.devices:
        more["read_only"] = True
    if not os.path.isabs(row.path):
        return more | {"path": row.path, "unknown": "the folder that QEMU runs in may not be looked at"}
    return _seen(row.path, view) | more


def _seen(path: str, view: View) -> Disk:
    """What the file of that name looks like in this view."""
    try:
        with view.place(path) as place:
            return fingerprint(path, place)
    except OSError as error:
        return {"path": path, "unknown": os.strerror(error.errno or 0)}


def look_from_outside(paths: Iterable[str], command: Sequence[str]) -> list[Disk]:
    """The same of a QEMU whose monitor is not ours: of its files, and of what its command line reaches elsewhere."""
    why = "it is not a file of this host, and only QEMU's monitor knows more of it"
    named = (words[1] for name, words in parted(command) if len(words) > 1 and _OPTION.fullmatch(name or ""))
    elsewhere = [word[:4096] for word in named if any(map(_ELSEWHERE.search, (word, *_plain(word))))]
    return fingerprints(paths) + [{"path": word, "driver": UNSEEN, "unknown": why} for word in elsewhere]


def _plain(value: str) -> list[str]:
    """An option's value in words, as far as it is understood."""
    try:
        return [in_words(value)]
    except ValueError:
        return []


_OPTION = re.compile(r"(drive|blockdev|device|hd[abcd]|cdrom|fd[ab]|pflash|sd|mtdblock)")

_ELSEWHERE = re.compile(
    r"""(?x) (^|[=,"']) (nbd|rbd|iscsi|ssh|nfs|gluster|https?|ftps?) (\+\w+)? : (?!//?$)
    | \bdriver["']?\s*[=:]\s*["']?(nbd|rbd|iscsi|ssh|nfs|gluster|https?|ftps?)\b | \bvhost-user-(blk|scsi)\b"""
)
"""How a command line names a disk that is no file: by a URL, by a driver, by a device that another process serves."""


def unknown(disks: list[Disk] | None) -> str | None:
    """Why nobody can tell whether some of these disks changed, or None if all fingerprints are there."""
    if disks is None:
        return "the state does not say which disks the guest had: load cannot tell whether they changed"
    missing = [f"{disk['path']} ({disk['unknown']})" for disk in disks if "unknown" in disk]
    what = "what is on these disks could not be compared, load cannot tell whether they changed"
    return f"{what}: {', '.join(missing)}" if missing else None


def named(saved: list[Disk] | None, command: Sequence[str], word: Word) -> list[Disk]:
    """Those of the disks that the command line of a QEMU, to be started in this folder, plainly names.

    Raises StatepipeError where it still names the old place of one that `word` has moved.
    """
    files, view = named_files(command), View(0)
    for old, new in word.moved.items():
        if view.real(old) in files and view.real(new) not in files:
            what = f"--disk says that {old} is {new} now, and QEMU's command line names {old}"
            raise StatepipeError(what, hint=f"name {new} there, too: --disk tells only which disk of the guest's it is")
    return [disk for disk in saved or [] if view.real(word.now(disk)) in files]


def named_files(command: Sequence[str]) -> set[str]:
    """The files that a command line may name, in any option, without links; among them what is no file's name."""
    view = View(0)
    said = {text for _, words in parted(command) for word in words for text in texts(word)}
    said |= {text[at + 1 :] for text in said for at, letter in enumerate(text) if letter == ":"}  # file:/path
    return {real for each in said if each and (real := view.real(each)) is not None}


def judge(saved: Iterable[Disk] | None, images: Images | None, word: Word, warn: Warn, *, live: bool = False) -> None:
    """Raises StatepipeError naming every disk that is not as it was when the state was saved, but for those that `word`
    forces; `warn` hears what was not compared, or not proved.

    `images` are those of the QEMU that is to load the state. None: no QEMU is at hand, and the files of those names are
    looked at. `live`: the guest ran on while it was saved, and is likely to have changed them itself.
    """
    lacking, elsewhere, gone, changed = [], [], [], []
    for disk in saved or ():
        if word.forces(disk):
            warn(f"{word.now(disk)} is taken as it is, as --force says: it was not compared")
            continue
        row = images.find(word.now(disk)) if images is not None else None
        if images is not None and row is None:
            if (images.complete or "unknown" not in disk) and disk.get("driver") != UNSEEN:
                lacking.append(_missing(disk, images, word))
        elif row is not None and (where := _moved_on_the_bus(disk, row)):
            elsewhere.append(where)
        elif images is None and "unknown" not in disk and _is_absent(word.now(disk)):
            gone.append(word.now(disk))
        elif difference := _change(disk, row, images, word, warn):
            changed.append(difference)
    _refuse(lacking, elsewhere, gone, changed, live=live)


def _is_absent(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # what is wrong with it, its fingerprint tells
        return False
    return False


def _missing(disk: Disk, images: Images, word: Word) -> str:
    there = images.at(tuple(disk.get("devices", ())))
    instead = f" (in its place, at {' and '.join(disk['devices'])}: {', '.join(there)})" if there else ""
    return f"{word.now(disk)}{instead}"


def _moved_on_the_bus(disk: Disk, row: Image) -> str | None:
    """The same image, where the guest does not expect it; None where either side does not tell."""
    before, now = disk.get("devices"), row.devices
    if before is None or now is None or before == list(now):
        return None
    if before and not now:
        return f"{row.path} lies below another image now, and was the guest's own, at {' and '.join(before)}"
    if now and not before:
        return f"{row.path} is the guest's own now, at {' and '.join(now)}, and lay below another image"
    return f"{row.path} is at {' and '.join(now)}, and was at {' and '.join(before)}"


def _change(disk: Disk, row: Image | None, images: Images | None, word: Word, warn: Warn) -> str | None:
    """How the disk differs from what it was; None if it does not, or if nobody can tell, which is warned of."""
    if "unknown" in disk:
        before, now = disk.get("remote_size"), row.size if row is not None else None
        if before is not None and now is not None and before != now:
            return f"{word.now(disk)}: it had {before} bytes, and has {now}"
        return None  # that nobody can vouch for it is said once, before anything is started
    path = word.now(disk)
    now_there = fingerprint(path) if images is None else _seen(path, images.view)
    if "unknown" in now_there:
        return f"{path} cannot be read: {now_there['unknown']}"
    words = {"size": "its size", "samples_blake3": "its content"}
    if differ := [words[name] for name in words if disk[name] != now_there[name]]:
        return f"{path}: {' and '.join(differ)} changed"
    contents = [each.get("content_blake3") for each in (disk, now_there)]
    if None not in contents and contents[0] != contents[1]:
        return f"{path}: its content changed"
    if disk["mtime_ns"] == now_there["mtime_ns"] or None not in contents:
        return None
    only_the_date = f"{path}: its modification time changed, its size and what was compared of its content did not"
    if disk.get("read_only"):
        warn(f"{only_the_date}; the guest can only read it")
        return None
    return only_the_date


def _refuse(lacking: list[str], elsewhere: list[str], gone: list[str], changed: list[str], *, live: bool) -> None:
    """Raises StatepipeError, with the way out of what is wrong first."""
    said, hints = [], []
    if lacking:
        said.append(f"this QEMU lacks disks that the guest had: {', '.join(lacking)}")
        hints.append("give QEMU the guest's own disks, by these names; of one that was moved say --disk OLD=NEW")
    elif elsewhere:
        said.append(f"disks are not where the guest has them: {'; '.join(elsewhere)}")
        hints.append("name the disks in the order of the guest's own command line")
    if gone:
        said.append(f"disks that the guest had are not there: {', '.join(gone)}")
        hints.append(f"one that was moved: name its new place on QEMU's command line, and say --disk {gone[0]}=NEW")
    if changed and live:
        said.append(f"disks changed since the state was saved, as its guest ran on (save --live): {'; '.join(changed)}")
        hints.append(_AS_THEY_WERE)
    elif changed:
        said.append(f"disks changed since the state was saved: {'; '.join(changed)}")
        hints.append("restore them as they were at the save: if the guest ran on after it, from a snapshot of then")
    if said:
        if changed or lacking or elsewhere:
            hints.insert(0, "old memory on another or a newer disk destroys its file systems")
        hints.append("of a disk that you know to be right, say --force DISK")
        raise StatepipeError("; ".join(said), hint="; ".join(hints))


_AS_THEY_WERE = (
    "give QEMU a snapshot of them from the moment when that save began, and say --disk OLD=NEW if it has another name"
)
