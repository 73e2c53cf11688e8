"""receive: take a guest that `migrate` on another host gives away, into a QEMU that waits or that is started for it.

The guest runs here when the source says so and not before; whatever fails until then, this QEMU is ended. One of our
own we stay the parent of, as `load` does, or with `--serve` leave to itself and wait for the next guest.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from statepipe.ends.address import SSH
from statepipe.ends.dial import listening, place_of
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.named import NameLost
from statepipe.errors import InterruptedBySignal, PeerError, QemuError, QemuGone, StatepipeError
from statepipe.migration.contact import reception
from statepipe.migration.destination import CAPABILITIES, Arrival, Speech
from statepipe.migration.negotiation import CHECK, UNDOING, Offer, answer, begun, offered
from statepipe.migration.peer import Peer
from statepipe.pipeline.job import at_work
from statepipe.pipeline.pipeline import NamedStage
from statepipe.pipeline.signals import forget_late, heard, held
from statepipe.processes import demand_holding, hold
from statepipe.qemu.commandline import refuse_daemon
from statepipe.qemu.facts import Own, gather
from statepipe.qemu.lastwords import Overheard
from statepipe.qemu.migration import end_qemu
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.places import clashes, for_a_look, seen
from statepipe.qemu.process import Child, owner, wait_for_one
from statepipe.qemu.settings import made_ready, restored
from statepipe.qemu.view import View
from statepipe.recovery.guardian import Command, Guardian
from statepipe.recovery.handover import Destination, Side
from statepipe.recovery.journal import Journal, Listener
from statepipe.session.options import ConnectionPlan
from statepipe.telling import Tell
from statepipe.wakeups import polled

QUIT_TIME = 5000
"""Milliseconds that a QEMU has to end when it is told to quit, before it is killed."""

AGAIN = 1.0
"""Seconds until one who serves waits for visitors again, where this host could not have it so."""

ONE = "it waits no more: the same command waits for another, and with --serve N it goes on by itself"
"""What to type after the one guest that did not come."""

Undo = Callable[[Sequence[str]], Sequence[NamedStage]]
"""Makes the stages of those words. Raises StatepipeError."""


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """What was asked for: a QEMU's monitor (`qmp`), or the command that starts one in `folder`. `undo` makes stages.

    `guests` are the most that run at once, with `--serve`; None: take one and stay with it. `log` takes what QEMU
    has to say, where nobody else hears it.
    """

    plan: ConnectionPlan
    undo: Undo
    qmp: str | None = None
    command: Sequence[str] = ()
    detach: bool = False
    guests: int | None = None
    journal: str | None = None
    folder: str | None = None
    log: str | None = None


class Host:
    """The QEMU that is to have the guest, started on entering if it is ours. Leaving before `let_go` ends it then."""

    def __init__(self, request: ReceiveRequest, offer: Offer, tell: Tell, guardian: Guardian) -> None:
        self._tell, self._guardian = tell, guardian
        self._offer = offer
        self.own: Own | None = None
        self.child: Child | None = None
        self._request, self._let_go = request, False
        self._stays = not (request.detach or request.guests is not None)

    def __enter__(self) -> Host:
        """Raises QemuError if it has ended, or cannot be asked; then nothing of ours is left."""
        try:
            self.monitor = self._connect()
            self._pidfd = self._process()
            pid = 0 if self.child else self.monitor.pid  # what one of ours says, we hear by its pipe or its log
            self._overheard = Overheard(pid, owner(pid))
        except BaseException as error:
            if self.child is not None:
                with held():
                    self._guardian.note({"over": True})
                    self.child.end_after(error, "before it could take a guest")
            raise
        return self

    def _connect(self) -> Monitor:
        it = self._request
        if it.qmp is not None:
            return Monitor(it.qmp, tell=self._tell)
        command = self._command()
        with held():  # a QEMU that was started must be known to us
            self.child = Child(command, not self._stays, it.folder, it.log)
            self._have_it_ended(self.child.pid)
        return Monitor(self.child.monitor, self.child.pid, self._tell)

    def _command(self) -> Sequence[str]:
        """What is started for this visitor. Raises StatepipeError where it would harm the guest that is to come.

        For one who only asks, a QEMU that makes nothing for itself on this host.
        """
        command = self._request.command
        folder = self._request.folder or os.getcwd()
        found = seen(command, View(0), folder, held=False)
        self.own = (list(command), found)
        if self._offer.purpose == CHECK:
            return for_a_look(command, folder)
        in_use = clashes(self._offer.facts.get("places", []), found)
        if harmed := [f"{row['path']} ({row['option']}): {why}" for row, why in in_use]:
            raise StatepipeError(
                f"QEMU is not started here, as it would empty or take away what is in use: {'; '.join(harmed)}",
                hint="give it other names than the guest's QEMU has: to receive, or with --remote-qemu FILE over ssh",
            )
        return command

    def _have_it_ended(self, pid: int) -> None:
        """By the guardian, should we be killed before there is anything else to do about it: nobody else knows it."""
        pidfd = hold(pid)
        try:
            facts = {"state": Destination.ANSWERING.name, "pid": pid, "qmp": None, "runs": False}
            self._guardian.note(facts, {"pidfd": pidfd})
        finally:
            os.close(pidfd)

    def _process(self) -> int:
        """A descriptor of its process, which may have to be ended."""
        try:
            return hold(self.monitor.pid)
        except OSError as error:  # none has the number 0, which stands for one that is not known
            self.monitor.close()
            hint = (
                "run statepipe where QEMU runs, in the same container or pid namespace, as a user who may look at it; "
                "and name the socket that QEMU itself listens at, not one of a relay"
            )
            raise QemuError("which process this QEMU is cannot be told, so it could not be ended", hint=hint) from error
        except StatepipeError:
            self.monitor.close()
            raise

    def end(self) -> None:
        """Tell it to quit, and see that it has ended: its guest must never run.

        A process that waits for a disk may outlast SIGKILL for long, though it will never run anything again.
        """
        own = os.dup(self._pidfd)  # whoever waits for this may have given up before it returns
        try:
            self.monitor.hurry()
            with suppress(QemuError):  # it is killed if it does not end
                end_qemu(self.monitor)
            if not polled(own).poll(QUIT_TIME):
                with suppress(ProcessLookupError):  # it was quicker
                    signal.pidfd_send_signal(own, signal.SIGKILL)
                polled(own).poll()
        finally:
            os.close(own)
        if self.child is not None:
            self.child.end()  # reaps it

    @property
    def has_ended(self) -> bool:
        """Whether its process was seen to have ended."""
        return bool(polled(self._pidfd).poll(0))

    def lend(self, *, runs: bool) -> None:
        """Let the guardian know what it needs should we be killed."""
        fds = {"pidfd": self._pidfd} | ({"spare": self.child.spare.fileno()} if self.child else {})
        self._guardian.note({"pid": self.monitor.pid, "qmp": self._request.qmp, "runs": runs}, fds)

    def last_words(self) -> str:
        """What QEMU said last, all of it once it has ended; empty where that is not known."""
        return self._overheard.last() if self.child is None else self.child.last_words

    def where_it_spoke(self) -> str:
        """Where a person reads all that it said."""
        return self._overheard.where if self.child is None else self.child.where_it_spoke

    def let_go(self) -> None:
        """From now on the tables end it where that is right, or the guardian; it may hold the only guest there is."""
        self._let_go = True

    def keep(self) -> None:
        """The guest is here. Where we stay with it, what would end us is QEMU's from now on; else it came too late.

        One that came while the guest was about to run has ended nothing: the next one is QEMU's all the same.
        """
        if self._stays and self.child is not None:
            self.child.pass_signals_on(heard())
        else:
            forget_late()
            if self.child is not None:
                self.child.let_be(self._tell)

    def __exit__(self, *error: object) -> None:
        with held():
            if not self._let_go and self.child is not None:
                self.end()
                self._guardian.note({"over": True})
            self.monitor.close()
            self._overheard.close()
            os.close(self._pidfd)


Refused = Callable[[Exception], object]
"""Has the last word on a visitor who gave no guest, whatever the reason, and who ends nothing."""


def receive(request: ReceiveRequest, say: Tell, refused: Refused, guard: Command, listeners: Sequence[Listener]) -> int:
    """Take a guest, or one after the other. The exit status: of the QEMU that we started, unless it is left to itself.

    Raises StatepipeError, and then there is no guest here; one who serves has it told by `refused` and waits for the
    next, and so does everyone with a visitor who makes no offer.
    """
    refuse_daemon(request.command)
    demand_holding()  # whatever fails, this QEMU is ended, and seen to have ended
    with _listener(request.plan, say) as listener, reception(request.plan, listener, say) as next_peer:
        it = _Reception(request, next_peer, say, refused, guard, listeners)
        if request.guests is not None:
            it.serve(request.guests)
        try:
            child = it.one(again=listener is not None)
        except InterruptedBySignal:
            raise
        except StatepipeError as error:
            if listener is not None and it.has_offer:
                error.advise(ONE)
            raise
    return 0 if child is None or request.detach else child.wait()


@contextmanager
def _listener(plan: ConnectionPlan, say: Tell) -> Iterator[ListeningSocket | None]:
    """Where to listen; None inside ssh, which has started us for one alone."""
    if plan.address.scheme == SSH:
        yield None
        return
    mode = 0o600 if plan.peer is None else 0o666  # a user who is meant must get in; the kernel's word is asked of each
    with listening(plan.address, insecure=plan.insecure, mode=mode) as listener:
        say(f"listening at {place_of(listener, plan.address)} for a guest")
        yield listener


class _Reception:
    """Takes guests from whom `next_peer` waits for."""

    def __init__(
        self,
        request: ReceiveRequest,
        next_peer: Callable[[], AbstractContextManager[Peer]],
        say: Tell,
        refused: Refused,
        guard: Command,
        listeners: Sequence[Listener],
    ) -> None:
        self._request, self._next_peer, self._say, self._guard = request, next_peer, say, guard
        self._refused, self._listeners = refused, listeners
        self._is_visited = self.has_offer = False  # what fails now is a visitor's doing, or a guest's
        self._signal: InterruptedBySignal | None = None  # the one that came as a guest did
        self._numbers = itertools.count(1)

    def serve(self, most: int) -> NoReturn:
        """Guest after guest, `most` at a time. Ends by a signal alone, or where nobody can come any more."""
        guests: list[Child] = []
        while True:
            try:
                guests += filter(None, [self.one()])
            except Exception as error:  # no visitor ends the service: by no offer, no full disk, no mistake of ours
                if isinstance(error, InterruptedBySignal | NameLost) or not (
                    self._is_visited or isinstance(error, StatepipeError)
                ):
                    raise
                self._refused(error)
                if not self._is_visited:  # this host cannot start a guardian, or read its trust: now, but perhaps later
                    time.sleep(AGAIN)
                if self._signal is not None:  # it ends the service, whatever became of the guest
                    raise self._signal from error
            while len(guests := [child for child in guests if not child.ended]) >= most:
                wait_for_one(guests)

    def one(self, *, again: bool = True) -> Child | None:
        """Take a guest; the QEMU, if it is ours. With `again`, however many only ask before, or make no offer.

        Raises StatepipeError.
        """
        while True:
            self._is_visited = self.has_offer = False
            try:
                with Guardian(self._guard) as guardian, self._next_peer() as peer:
                    self._is_visited = True
                    offer, side = offered(peer)  # before it, there is no reason to start a QEMU
                    self.has_offer = True
                    with Host(self._request, offer, self._say, guardian) as host:
                        if self._take(offer, side, peer, host, guardian):
                            return host.child
            except PeerError as error:
                if not again or self.has_offer or not self._is_visited:
                    raise
                self._refused(error)
            if not again:
                return None

    def _take(self, offer: Offer, side: Side[Destination], peer: Peer, host: Host, guardian: Guardian) -> bool:
        """Whether there is a guest now; there is none for who only asked."""
        host.monitor.demand_waiting()
        answer(peer, gather(host.monitor, offer.disks, host.own))
        if not begun(peer, offer, side):
            peer.farewell()
            self._say(f"{peer.name} has looked whether its guest could come")
            return False
        facts = {"side": "destination", "peer": peer.name, "guest": offer.facts["guest"]}
        with closing(Journal(self._path(), facts, (guardian.note, *self._listeners))) as journal:
            host.lend(runs=offer.runs)
            words = self._request.undo([UNDOING[name] for name in offer.undo])
            before = made_ready(host.monitor, CAPABILITIES)
            arrival = Arrival(
                host.monitor,
                peer,
                words,
                journal,
                host.end,
                side=side,
                runs=offer.runs,
                speech=Speech(host.last_words, host.where_it_spoke, is_ours=host.child is not None),
                say=self._say,
            )
            with held():  # but for the time that the two halves wait
                try:
                    _arrive(arrival, host, guardian)
                finally:
                    self._signal = arrival.signal
                host.keep()
        self._say(f"{peer.name} has given its guest away; here it is {_state(host.monitor, offer)}")
        if host.child is None:  # a QEMU of another's
            self._restore(host.monitor, before)
        if self._signal is not None and self._request.guests is not None:
            raise self._signal  # too late for this guest, and not for the service
        return True

    def _restore(self, monitor: Monitor, before: Mapping[str, Any]) -> None:
        """The guest is here, whatever QEMU says of its settings."""
        if (words := restored(monitor, before)) is not None:
            self._say(words)

    def _path(self) -> str | None:
        """One who serves has a journal for each guest."""
        path, number = self._request.journal, next(self._numbers)
        return path if path is None or self._request.guests is None else f"{path}.{number}"


def _state(monitor: Monitor, offer: Offer) -> str:
    """The run state of a guest that is here; where QEMU does not say, how it was when QEMU took it."""
    with suppress(QemuError):
        return monitor.run_state()
    return "running" if offer.runs else "as it was"


def _arrive(arrival: Arrival, host: Host, guardian: Guardian) -> None:
    """Raises what prevented it."""
    guardian.note({"state": arrival.side.state.name})
    host.let_go()
    with at_work(arrival):
        state = arrival.run()
        guardian.settle()
    if state is not Destination.RUNS:
        raise _failure(arrival, state, ended=host.has_ended)


def _failure(arrival: Arrival, state: Destination, *, ended: bool) -> StatepipeError:
    """What is known of the QEMU here, and of the guest in it, by the state that was reached and by what was seen."""
    cause = arrival.cause
    error = cause if isinstance(cause, StatepipeError) else QemuError(f"the guest could not be taken: {cause!r}")
    qemu = f"QEMU here (process {arrival.pid})"
    if state is Destination.UNSURE and arrival.ran:
        now = "has ended" if ended else "was killed and has not ended yet, perhaps as it waits for a disk"
        hint = "the source keeps its guest as it was; before it may run there, this QEMU has to have ended"
        return QemuError(f"{qemu} {now}: {error}", hint=hint)
    if state is Destination.UNSURE:
        now = "has ended" if ended else "lives, and its monitor has broken off"
        what = f"{qemu} was told to run the guest and {now}: whether the guest ran here is not known: {error}"
        hint = "the source keeps its guest as it was; before it may run there, this QEMU has to have ended"
        return QemuGone(what, hint=hint)
    never = "until it was ended, its guest ran here" if arrival.ran else "its guest never ran"
    if state is Destination.ENDED:
        said = f"the QEMU here is ended, and {never}"
    else:
        said = f"{qemu} was killed and has not ended yet, perhaps as it waits for a disk; {never}"
    error.advise(said, first=True)
    return error
