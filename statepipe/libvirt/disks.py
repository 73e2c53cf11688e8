"""The disk guard for a domain that libvirt is to restore: its disks are known from its XML alone.

No QEMU is there to be asked before libvirt starts one, and from then on it is too late. So the files that the state
names are compared, and the XML that libvirt uses, which is another one with --xml, must name those.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from statepipe.errors import StatepipeError
from statepipe.formats.domainxml import disks
from statepipe.qemu.disks import Disk
from statepipe.qemu.guard import Said, Warn, Word
from statepipe.state.loading import State


def refuse_changed_disks(state: State, saved: bytes, now: bytes, said: Said, warn: Warn) -> None:
    """Raises StatepipeError for a disk that changed since the save, is not there, or is another one in the XML that
    libvirt uses `now` than in that of the `saved` domain, unless `said` allows it."""
    word = said.of(state.disks)
    before, after = disks(saved), disks(now)
    if before is None or after is None:
        which = "the domain's XML in the state" if before is None else "the XML of --xml"
        raise StatepipeError(f"{which} cannot be read, so its disks are not known", hint="check it with xmllint")
    compared = [disk for disk in state.disks if not word.forces(disk)]
    _refuse_others(compared, before, after, word)
    if gone := [name for disk in compared if "unknown" not in disk and not os.path.lexists(name := word.now(disk))]:
        hint = f"for one that was moved, name its new place in --xml FILE, and give --disk {shlex.quote(gone[0])}=NEW"
        raise StatepipeError(f"disks that the guest had are not there: {', '.join(gone)}", hint=hint)
    state.refuse_changed_disks(None, said, warn)


def _refuse_others(saved: list[Disk], before: Mapping[str, str], after: Mapping[str, str], word: Word) -> None:
    """Raises StatepipeError for a disk that the XML has elsewhere than `word` says."""
    places = {os.path.realpath(disk["path"]): word.now(disk) for disk in saved}
    for name, old in before.items():
        expected, new = places.get(os.path.realpath(old)), after.get(name)
        if expected is None or (new is not None and os.path.realpath(new) == os.path.realpath(expected)):
            continue
        if new == old:
            what = f"--disk says that {old} is now {expected}, but the domain's XML names {old}"
            hint = f"name {expected} in --xml FILE, too: --disk only says which of the guest's disks it is"
        elif new is None:
            what = f"the XML of --xml lacks the guest's disk {name}, which is {expected}"
            hint = "give the guest all of its disks"
        else:
            what = f"the guest's disk {name} is {expected}, and the XML of --xml names {new}"
            hint = f"if it was moved, give --disk {shlex.quote(old)}={shlex.quote(new)}"
        raise StatepipeError(what, hint=hint)
