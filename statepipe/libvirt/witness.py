"""What became of a save through libvirt: asked of libvirt, refused or finished, by statepipe or by its guardian.

Either the guest runs on and no file has the name, or the guest is shut off and the file has it. Which of them holds is
decided by the name: until the file has it, libvirt is refused; from then on, libvirt is answered. The guardian does the
one or the other if statepipe was killed. It has the reader of libvirt's question, so that what fills that pipe stays
there, and it recognizes the file by its inode.

An object in a store takes the file's part in this, and is recognized by its note. If the store does not answer, libvirt
is refused: a guest that runs on is not lost, whatever is in the store.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import NamedTuple

from statepipe.libvirt.intake import answer, hide, keep_full, knocking, remove
from statepipe.libvirt.outcome import Lost, ObjectOutcome, Outcome, outcome_in
from statepipe.libvirt.virsh import (
    RUNNING,
    SHUT_OFF,
    DomainState,
    LibvirtError,
    LibvirtSilent,
    NoDomain,
    NoVirsh,
    Virsh,
)
from statepipe.objectstore.scheme import is_address
from statepipe.recovery.guardian import Decide, Notes
from statepipe.telling import Tell

ANSWERING = "ANSWERING"
"""What the guardian is told just before libvirt is answered."""

UNDOING = "UNDOING"
"""What the guardian is told before what was made is removed by who made it: then no libvirt is answered any more."""

SAVING = "saving"
"""virsh's reason of a paused domain whose save is under way (and "starting up" of one that is restored)."""

LOOK = 0.1
"""Seconds between two questions for a state that is about to change."""

SOON = 1.0
"""Seconds for an answer that is asked for again. libvirt gives none while it waits for us."""

RESUMED = 60.0
"""Seconds in which libvirt ends a guest, or lets it run on; QEMU needs some milliseconds for it."""

BACK = 10.0
"""Seconds in which a libvirtd that was restarted is back: it takes one."""


class Job(NamedTuple):
    """A save at libvirt, to `path` and through the FIFOs in `folder`, of the guest that the domain has as `number`."""

    uri: str
    uuid: str
    name: str
    folder: str
    path: str
    number: str

    @property
    def nothing(self) -> str:
        """That nothing was made, for a message."""
        return f"there is no {'object' if is_address(self.path) else 'file'}"

    @property
    def virsh(self) -> Virsh:
        """virsh with the connection that has the domain."""
        return Virsh(self.uri)

    def ask(self, within: float) -> DomainState | None:
        """Return the domain's state once it is no longer being saved; None if libvirt does not tell within so many
        seconds. A domain that is gone, as a transient one after its save, is shut off, and so is one that was started
        again: by libvirtd's autostart, say."""
        deadline = time.monotonic() + within
        while True:
            left = max(deadline - time.monotonic(), LOOK)
            with suppress(LibvirtError, LibvirtSilent, NoVirsh):
                try:
                    state = self.virsh.state_of(self.uuid, self.number, left)
                except NoDomain:
                    return DomainState(SHUT_OFF, "")
                if state.reason != SAVING:
                    return state
            if time.monotonic() >= deadline:
                return None
            time.sleep(LOOK)

    def is_saving(self) -> bool:
        """Return whether libvirt says, when it is asked once, that it still saves the domain."""
        time.sleep(LOOK)
        try:
            return self.virsh.state(self.uuid, SOON).reason == SAVING
        except (LibvirtError, LibvirtSilent):
            return False

    def words(self, state: DomainState | None) -> str:
        """Return what was seen of the guest, for a hint."""
        if state is None:
            return (
                f"libvirt does not say what became of the domain {self.name}; see: virsh domstate --reason {self.uuid}"
            )
        if state.state == RUNNING:
            return f"the domain {self.name} runs on: {state}"
        return f"the domain {self.name} is {state}"


def recover_domain(known: Notes, tell: Tell) -> str:
    """Finish a save whose file has its name, or refuse libvirt and leave no file. Return what became of the domain.

    `known`: states, domain; question, or spare if it was refused; from the naming on names, file, place. Raises
    StatepipeError.
    """
    job = Job(*known["domain"])
    made = outcome_in(known) if "names" in known else None
    try:
        if made is not None and "question" in known and _is_there(made, known):
            return _finish(job, known, made)
        return _refuse(job, known, made)
    finally:
        remove(job.folder)


def _is_there(made: Outcome, known: Notes) -> bool:
    """Return whether the save has made it, and leaves it there, as far as that is known."""
    if ANSWERING in known["states"]:
        if isinstance(made, ObjectOutcome):  # it was, and a store may be silent
            return True
    elif UNDOING in known["states"]:  # a request to remove it may be on its way
        return False
    with suppress(Lost):
        return made.is_there()
    return False


def _refuse(job: Job, known: Notes, made: Outcome | None) -> str:
    spare = known.get("spare", -1)
    if "question" in known:
        with suppress(OSError):  # the FIFOs are gone: statepipe was about to end
            spare = keep_full(job.folder)
    hide(job.folder)
    if "question" in known:
        os.close(known["question"])
    with knocking(job.folder):
        state = job.ask(RESUMED)
    if spare >= 0:
        os.close(spare)
    if made is not None:
        _take_back(job, made, state)
    if state is None:
        raise Decide(f"libvirt was refused, and {job.nothing}", hint=job.words(state))
    return f"{job.nothing}, and {job.words(state)}"


def _finish(job: Job, known: Notes, made: Outcome) -> str:
    """Let libvirt commit, as the file has its name. A statepipe that was answering may have read the 92 bytes."""
    is_signed = answer(known["question"], None) or ANSWERING in known["states"]
    state = job.ask(RESUMED)
    if not judge(state, is_signed=is_signed):
        _take_back(job, made, state)
        return f"{job.nothing}, and {job.words(state)}"
    made.keep()
    if state is None:
        raise Decide(f"{job.path} holds the whole state", hint=job.words(state))
    return f"{job.path} holds the whole state, and {job.words(state)}"


def _take_back(job: Job, made: Outcome, state: DomainState | None) -> None:
    """Remove what was made. Raises Decide if it cannot be taken back."""
    try:
        made.take_back()
    except Lost as error:
        hint = f"remove it if it is there, as its guest is not saved: {job.words(state)}"
        raise Decide(f"{job.path} could not be taken back: {error}", hint=hint) from error


def judge(state: DomainState | None, *, is_signed: bool) -> bool:
    """Return whether the file stays. It does if the domain is shut off: in every other state it has its guest. If the
    domain's state is not known, it stays if libvirt has written its last 92 bytes: without them, the guest runs on when
    libvirt is back."""
    return is_signed if state is None else state.state == SHUT_OFF
