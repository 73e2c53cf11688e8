"""save --domain: save a guest of libvirt's with virsh save, and let libvirt end the guest only when the file is safe.

1. The guardian is started, and hears of each step before it is taken. The new file is begun.
2. virsh save gets a FIFO for the image (intake.py). The domain's XML is read, then QEMU's stream, as in any save.
3. When the stream is proved and all bytes are on the disk, we wait until libvirt asks to commit. Then the file gets its
   name, and libvirt its answer.
4. If anything fails before that, libvirt is refused, and what it reports of the guest is told (witness.py).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from statepipe.ends.fd import FdSource
from statepipe.ends.file import FileSink
from statepipe.ends.output import Claimable, new_output
from statepipe.ends.place import FolderWatch
from statepipe.ends.rehearsal import Replaceable
from statepipe.errors import InterruptedBySignal, StatepipeError, TruncatedError, UsageError
from statepipe.formats.libvirtimage import FORMATS, RAW, ImageHeader, split_data
from statepipe.formats.zstdframe import MEMORY
from statepipe.libvirt.intake import SIGNED, Intake, answer, is_asked, knocking
from statepipe.libvirt.leftover import sweep
from statepipe.libvirt.process import qemu_of
from statepipe.libvirt.virsh import ASLEEP, PAUSED, RUNNING, SHUT_OFF, Found, LibvirtError, LibvirtSilent, Virsh
from statepipe.libvirt.witness import ANSWERING, BACK, RESUMED, SAVING, UNDOING, Job, judge
from statepipe.libvirt.work import LATEST, AtWork
from statepipe.objectstore.scheme import is_address, local_path
from statepipe.pipeline.job import works_for
from statepipe.pipeline.pipeline import NamedStage
from statepipe.pipeline.signals import ignore
from statepipe.qemu.guard import look_from_outside
from statepipe.recovery.guardian import GuardCommand, Guardian
from statepipe.stages.codec import CODECS
from statepipe.stages.packing import Packing
from statepipe.state.older import refuse_other_guest
from statepipe.state.saving import IDLE, Plan, Saved, demand_lasting, save_stream
from statepipe.telling import Tell, nobody
from statepipe.threads import held

OTHERS = 3.0
"""Seconds in which another save that was refused lets the guest run on: it takes it less than one."""

HASTE = 1.0
"""Seconds that a save which was stopped by a signal waits for libvirt; the guardian waits on."""


class DomainRequest(NamedTuple):
    """What was asked for: the domain's name, id or UUID at the connection `uri` (None: virsh's default). The rest is as
    for a save through the monitor. `in_time` is called once the time limit has been kept; `tell` hears how an upload
    goes."""

    path: str
    packing: Packing
    words: Sequence[NamedStage]
    seal: Sequence[NamedStage]
    name: str
    uri: str | None = None
    replaceable: Replaceable | None = None
    in_time: Callable[[], None] = lambda: None
    tell: Tell = nobody


class DomainSaved(NamedTuple):
    """A save that succeeded: the file, the domain's name, what libvirt reports of it now, and whether libvirt has no
    definition of it."""

    saved: Saved
    name: str
    state: str
    is_transient: bool


def save_domain(request: DomainRequest, guard: GuardCommand) -> DomainSaved:
    """Save a domain of libvirt's, which is shut off then. Raises StatepipeError, with the domain as it was before; if
    we are killed, the guardian that `guard` starts sees to that."""
    if request.replaceable is None and is_address(request.path) and local_path(request.path) is None:
        what = "--overwrite and --domain exclude each other for an object: if libvirt fails, an older one is lost"
        raise UsageError(what, hint="name another object, and remove the older one after the save")
    sweep()  # first: a libvirt that waits for a killed save does not answer
    found = _demand_no_other(Virsh(request.uri).find(request.name))
    _demand_guest(found)
    # The guardian is left last: to undo what a store has takes some seconds, and we may be killed meanwhile.
    with (
        Guardian(guard) as guardian,
        new_output(request.path, replaceable=request.replaceable, tell=request.tell) as sink,
    ):
        if not isinstance(sink, Claimable):
            what = "libvirt ends the domain with its save, and what is written to a descriptor cannot be taken back"
            raise UsageError(what, hint="name a FILE")
        refuse_other_guest(sink, found.name, found.uuid)
        return _Save(request, found, sink, guardian).run()


def _demand_no_other(found: Found) -> Found:
    """Return the domain with its state once no other save of it is under way. Raises LibvirtError if one is."""
    if found.state.reason != SAVING:
        return found
    state = Job(str(found.virsh.uri), found.uuid, found.name, "", "", found.number).ask(OTHERS)
    if state is None:
        what = f"another save of the domain {found.name} is under way"
        hint = f"wait until it has ended; {found.virsh.typed('domjobinfo', found.name)} and statepipe ps show it"
        raise LibvirtError(what, hint=hint)
    return found._replace(state=state)


def _demand_guest(found: Found) -> None:
    """Raises LibvirtError for a domain whose guest is not there, or in no state that libvirt saves."""
    state, name = found.state, shlex.quote(found.name)
    if state.state in (RUNNING, PAUSED):
        return
    if state.state == SHUT_OFF:
        what, hint = "there is no state to save", f"start it: virsh start {name}"
        if state.reason == "saved":  # a start from nothing would change the disks that the state needs
            hint = f"its state: statepipe load --domain FILE; or, after virsh managedsave, virsh start {name}"
    else:
        what, hint = "only a guest that is running or paused is saved", f"see: virsh domstate --reason {name}"
    if state.state == ASLEEP:
        hint = f"wake it first: virsh dompmwakeup {name}"
    raise LibvirtError(f"the domain {found.name} is {state}: {what}", hint=hint)


class _Save:
    """The save, from the first step that libvirt sees."""

    def __init__(self, request: DomainRequest, found: Found, sink: Claimable, guardian: Guardian) -> None:
        self._request, self._found, self._sink, self._guardian = request, found, sink, guardian
        self._intake = Intake()
        path = os.path.abspath(sink.name) if isinstance(sink, FileSink) else sink.name
        self._job = Job(str(found.virsh.uri), found.uuid, found.name, self._intake.folder, path, found.number)
        self._watch = FolderWatch(path, sink.folder) if isinstance(sink, FileSink) else None
        self._is_kept = False  # the file has its name, and keeps it
        self._is_over = False  # nothing is left to do for the guardian

    def run(self) -> DomainSaved:
        """Raises StatepipeError."""
        self._guardian.note({"state": "ASKED", "domain": list(self._job)})
        with ExitStack() as opened:
            try:
                with held():  # no signal between its folder and our record of it
                    intake = opened.enter_context(self._intake)
            except StatepipeError:
                self._guardian.settle()  # libvirt was not asked
                raise
            try:
                self._guardian.note({"state": "ASKED"}, {"question": intake.question, "lock": intake.lock})
                return self._ask(intake)
            except BaseException:
                if not self._is_kept:
                    self._guardian.note({"state": UNDOING})
                if not self._is_over:
                    intake.leave()  # the guardian needs it
                raise

    def _ask(self, intake: Intake) -> DomainSaved:
        """Let libvirt save the domain into the FIFO, and take it. Raises StatepipeError."""
        words = ("save", f"--domain={self._found.uuid}", f"--file={intake.path}")
        work: AtWork | None = None
        with ExitStack() as opened:
            try:
                with held():  # no signal between its start and our record of it
                    work = opened.enter_context(AtWork(self._found.virsh, *words))
                return self._take(work)
            except StatepipeError as error:
                if work is None:
                    raise
                if self._is_kept:
                    error.advise(self._job.words(None))
                    raise
                told = self._refuse(error, work)
                raise told from (None if told is error else error)

    def _take(self, work: AtWork) -> DomainSaved:
        """Take the image, and answer. Raises StatepipeError."""
        if not self._intake.await_image(work.ended, LATEST):
            raise _reason(work)
        header, data = self._intake.read_beginning()
        state = "shut off (saved)"

        def approve() -> None:
            nonlocal state
            state = self._answer(work)

        with FdSource(self._intake.data, f"the image of {self._found.name}", IDLE) as source:
            saved = save_stream(
                self._plan(header, data), source, self._sink, None, approve, ignore, ready=lambda: self._ready(work)
            )
        return DomainSaved(saved, self._found.name, state, self._found.is_transient)

    def _plan(self, header: ImageHeader, data: bytes) -> Plan:
        request, found = self._request, self._found
        guest: dict[str, Any] = {"name": found.name, "uuid": found.uuid, "run_state_before": found.state.state}
        more: dict[str, Any] = {}
        if (qemu := qemu_of(str(found.virsh.uri), found.name, found.uuid)) is not None:
            demand_lasting(qemu.temporary)
            works_for(qemu.pid, once=True)
            guest["command"] = list(qemu.command)
            more["disks"] = lambda: look_from_outside(qemu.disks, qemu.command)
        if header.was_running:
            more["last"] = lambda: {"stopped_for_it": True}
        domain, before = split_data(header, data), _unpacking(header)
        return Plan(request.packing, request.words, request.seal, guest, domain=domain, before=before, **more)

    def _ready(self, work: AtWork) -> None:
        """Wait until libvirt asks to commit. Raises LibvirtError if it does not."""
        intake = self._intake
        if not intake.await_question(work.ended, LATEST):
            while not is_asked(intake.question):  # virsh has ended; the job is libvirt's, and may go on
                if not self._job.is_saving() and not is_asked(intake.question):
                    raise _reason(work)
        if (
            self._watch is not None and self._watch.leads_elsewhere()
        ):  # there would be no file at the path, and no guest
            what = f"the folder of {self._sink.name} was moved or replaced while the domain was saved"
            raise StatepipeError(what, hint="save it again")
        self._request.in_time()
        names, fds = self._sink.naming()
        self._guardian.note({"state": "NAMING", "names": names}, fds)

    def _answer(self, work: AtWork) -> str:
        """The file has its name: let libvirt commit, and return the domain's state. Raises LibvirtError if the guest
        runs on, so that the file is taken back, and LibvirtSilent if that is not known."""
        self._guardian.note({"state": ANSWERING})  # first: what we read, it cannot read again
        is_signed = answer(self._intake.question, SIGNED)
        if is_signed and work.has_ended(RESUMED) and work.reason() is None:
            self._is_kept = True
            return "shut off (saved)"
        state = self._job.ask(RESUMED if is_signed else BACK)
        if state is None and is_signed is not False:
            self._is_kept = True
            self._settle(is_done=is_signed is True)  # else the guardian waits on for libvirt's answer
            raise LibvirtSilent("libvirt did not say whether it ended the domain")
        if not judge(state, is_signed=bool(is_signed)):
            raise _reason(work)
        self._is_kept = True
        return str(state)

    def _refuse(self, error: StatepipeError, work: AtWork) -> StatepipeError:
        """Refuse libvirt, and return the error to raise, whose hint says what libvirt reports of the guest."""
        try:
            spare = self._intake.keep_full()
        except OSError:  # the guardian has descriptors left for it
            return error
        self._guardian.note({"state": "REFUSED", "drop": ["question"]}, {"spare": spare})
        self._intake.refuse()
        in_haste = isinstance(error, InterruptedBySignal)
        with knocking(self._intake.folder):
            has_ended = work.has_ended(HASTE if in_haste else RESUMED)
            state = self._job.ask(HASTE if in_haste else BACK)
        if isinstance(error, TruncatedError) and has_ended:
            error = _reason(work)  # that the image was cut only shows that libvirt has failed
        error.advise(self._job.words(state), first=True)
        self._settle(is_done=state is not None)
        return error

    def _settle(self, *, is_done: bool) -> None:
        """Let the guardian end, or go on after us."""
        self._is_over = is_done
        if is_done:
            self._guardian.settle()
        else:
            self._guardian.leave()


def _reason(work: AtWork) -> LibvirtError:
    """Return why libvirt did not save the domain."""
    reason = work.reason() if work.has_ended(RESUMED) else None
    return reason or LibvirtError("libvirt did not finish the save")


def _unpacking(header: ImageHeader) -> list[NamedStage]:
    """Return the stages that decompress an image as save_image_format in libvirt's qemu.conf has it compressed."""
    if header.format == RAW:
        return []
    name = FORMATS[header.format]
    for codec in CODECS:
        if codec.name == name:
            return [(f"decompress ({name})", codec.module.decompress(MEMORY))]
    hint = 'set save_image_format = "raw" in /etc/libvirt/qemu.conf, and restart libvirtd; a state is packed anyway'
    raise StatepipeError(f"libvirt writes its save images as {name}, which statepipe does not read", hint=hint)
