"""load --domain: libvirt restores the domain, and reads the state from a FIFO instead of an image.

libvirt starts QEMU and keeps the domain paused until QEMU has read the end of the stream, which is held back until all
of it is verified. QEMU refuses a stream that ends before, and libvirt ends QEMU: so nothing runs after any failure of
ours. Without virsh we could not be told what libvirt did, so the end of virsh ends the stream, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from statepipe.ends.fd import failure
from statepipe.errors import InterruptedBySignal, ReaderGone, StatepipeError
from statepipe.formats.domainxml import identity
from statepipe.formats.libvirtimage import Domain, beginning
from statepipe.libvirt.disks import refuse_changed_disks
from statepipe.libvirt.leftover import sweep
from statepipe.libvirt.offer import Offer
from statepipe.libvirt.target import CLEARING, HANDED, OFFERED, Target
from statepipe.libvirt.virsh import ANSWER, SHUT_OFF, DomainState, LibvirtError, LibvirtSilent, NoDomain, Virsh
from statepipe.libvirt.work import LATEST, AtWork
from statepipe.pipeline.pipeline import Pipeline
from statepipe.qemu.guard import Said
from statepipe.recovery.guardian import GuardCommand, Guardian
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import State, prepare
from statepipe.state.source import damage_named
from statepipe.telling import Tell
from statepipe.threads import held

XML_LIMIT = 10 << 20
"""Bytes of a file for --xml at most, as in virsh."""

HASTE = 1.0
"""Seconds that a load which was stopped by a signal waits for a libvirt that has all of the state."""

SOON = 3.0
"""Seconds that libvirt then has to tell what became of the domain, which takes it 15 ms, unless it stands still."""


class Wish(NamedTuple):
    """What libvirt is asked for: through which connection, with which XML (a file) instead of the saved one, and
    whether the domain runs afterwards; None: if it ran when it was saved."""

    uri: str | None
    xml: str | None = None
    runs: bool | None = None


class Telling(NamedTuple):
    """Who is called: `warn` with what is not proved, `here` when libvirt has all of the state, `loaded` with the
    domain's name and state."""

    warn: Tell
    here: Callable[[], None]
    loaded: Callable[[str, str], None]


def load_domain(path: str, wish: Wish, keys: Keys, said: Said, tell: Telling, guard: GuardCommand) -> None:
    """Have libvirt restore the domain in the state file at `path`. `said` is about its disks.

    Raises StatepipeError; the hint of an error that arose after libvirt was asked says what became of the domain. If we
    are killed, the guardian that `guard` starts sees to it that nothing of libvirt waits for us.
    """
    with open_state(path, keys) as source, ExitStack() as opened:
        state = prepare(source)
        domain = _demand_domain(state)
        if state.doubts:
            tell.warn(state.doubts)
        xml = domain.xml if wish.xml is None else read_xml(wish.xml)
        refuse_changed_disks(state, domain.xml, xml, said, tell.warn)
        sweep()  # a libvirt that waits for a killed load does not answer
        target = _target(wish.uri, xml)
        is_defined = target.demand_idle(tell.warn)
        guardian = opened.enter_context(Guardian(guard))
        opened.callback(guardian.settle)
        offer = Offer(beginning(domain, spare=0))
        guardian.note({"state": OFFERED, "domain": [*target.words, offer.folder]})
        with held():  # no signal between its folder and our record of it
            opened.enter_context(offer)
        guardian.note({"state": OFFERED}, {"lock": offer.lock})
        words = ["restore", f"--file={offer.path}"]
        if wish.xml is not None:
            words.append(f"--xml={offer.put('domain.xml', xml)}")
        if wish.runs is not None:
            words.append("--running" if wish.runs else "--paused")
        _restore(state, offer, target, words, tell, guardian)
        _report(target, tell)
        if not is_defined:
            tell.warn(target.transience)


def _restore(
    state: State, offer: Offer, target: Target, words: Sequence[str], tell: Telling, guardian: Guardian
) -> None:
    """Have virsh restore the domain with these words, hand the state over, and wait until libvirt has restored it.
    Raises StatepipeError."""
    patience = hurried = CLEARING  # soon over: without the end of the state, libvirt gives the domain up
    with ExitStack() as opened:
        work: AtWork | None = None
        try:
            with held():  # no signal between its start and our record of it
                work = opened.enter_context(AtWork(target.virsh, *words))
            offer.ended = work.ended
            guardian.note({"state": OFFERED}, {"virsh": work.ended})
            with damage_named(state.source.name):
                Pipeline(state.source, state.stages(), offer).pour()
            patience, hurried = 0.0, HASTE
            guardian.note({"state": HANDED})
            tell.here()
            offer.commit()
            if not work.has_ended(LATEST):
                raise LibvirtSilent(
                    f"libvirt has all of the state, and does not say after {LATEST:g} s that it is restored"
                )
            if reason := work.reason():
                raise reason
        except BaseException as error:
            offer.withdraw()
            if work is None:
                raise
            told = _told(error, offer, work, target, hurried if isinstance(error, InterruptedBySignal) else patience)
            raise told from (None if told is error else error)


def _told(error: BaseException, offer: Offer, work: AtWork, target: Target, patience: float) -> BaseException:
    """Wait for so many seconds until libvirt is done with the domain, and return the error to raise, whose hint says
    what became of it."""
    deadline = time.monotonic() + patience
    has_ended = work.has_ended(patience, offer.wake)
    within = SOON if isinstance(error, InterruptedBySignal) else ANSWER
    became = target.became(deadline, offer.wake, within=within)
    if isinstance(error, ReaderGone):
        reason = work.reason() if has_ended else None
        why = reason or LibvirtError("libvirt closed the stream before its end")
        if offer.path in str(why):
            why.advise(f"libvirtd must see {offer.folder}, as statepipe does; XDG_RUNTIME_DIR decides where it is")
        error = why
    if isinstance(error, StatepipeError):
        error.advise(became)
    return error


def _report(target: Target, tell: Telling) -> None:
    """Report a domain that is restored. If libvirt does not tell its state, the load has succeeded all the same. Raises
    LibvirtError if its guest is gone by now: then nobody has the state but the file."""
    try:
        state = target.virsh.state(target.uuid)
    except NoDomain:
        state = DomainState(SHUT_OFF, "")  # a transient one
    except StatepipeError as error:
        tell.warn(f"the state is loaded, but libvirt does not tell the domain's state: {error}")
        return
    if state.state == SHUT_OFF:
        hint = "see the end of the domain's log in /var/log/libvirt/qemu or ~/.cache/libvirt/qemu/log; keep the file"
        raise LibvirtError(f"libvirt has restored the domain {target.name}, but now it is {state}", hint=hint)
    tell.loaded(target.name, state.state)  # libvirt 9.0 gives "migrating" as the reason


def _demand_domain(state: State) -> Domain:
    """Raises StatepipeError for a guest that libvirt did not run."""
    if state.domain is None:
        hint = "load it into a QEMU: statepipe load FILE -- qemu-system-…; save --domain keeps what libvirt needs"
        raise StatepipeError(f"{state.source.name} holds no domain of libvirt's", hint=hint)
    return state.domain


def _target(uri: str | None, xml: bytes) -> Target:
    """Return the domain that this XML describes. Raises StatepipeError, and UsageError for another host's libvirt."""
    its = Virsh(uri).itself()
    who = identity(xml)
    if who.name is None or who.uuid is None:
        raise StatepipeError("the domain's XML has no name or no UUID", hint="check it with xmllint")
    return Target(its, who.name, who.uuid)


def read_xml(path: str) -> bytes:
    """Return the file of --xml, which libvirt judges. Raises StatepipeError."""
    try:
        with open(path, "rb") as file:
            xml = file.read(XML_LIMIT + 1)
    except OSError as error:
        raise failure(f"read {path}", error) from error
    if len(xml) > XML_LIMIT:
        raise StatepipeError(f"{path} has more than {XML_LIMIT} bytes", hint="give the XML of one domain")
    return xml
