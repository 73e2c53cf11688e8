"""receive: take a guest that `migrate` on another host gives away, into a QEMU that waits or that is started for it.

The guest runs here when the source allows it and not before; after any failure before that, this QEMU is ended. We stay
the parent of a QEMU that we started, as `load` does; with `--serve` we leave it alone and wait for the next guest.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass

from statepipe.ends.address import SSH
from statepipe.ends.dial import listening, place_of
from statepipe.ends.listeners import ListeningSocket
from statepipe.ends.named import NameLost
from statepipe.errors import InterruptedBySignal, PeerError, QemuError, QemuGone, StatepipeError
from statepipe.migration.contact import reception
from statepipe.migration.destination import CAPABILITIES, Arrival, QemuOutput
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
from statepipe.recovery.guardian import GuardCommand, Guardian
from statepipe.recovery.handover import Destination, Side
from statepipe.recovery.journal import Journal, StepListener
from statepipe.session.options import ConnectionPlan
from statepipe.telling import Tell
from statepipe.typed import NoReturn
from statepipe.wakeups import polled

QUIT_TIME = 5000
"""Milliseconds in which QEMU must end after `quit`, before it is killed."""

AGAIN = 1.0
"""Seconds until a service waits for visitors again after this host itself failed."""

ONE = "start receive again to retry; with --serve N it keeps waiting"
"""The hint when the one guest did not arrive."""

Undo = Callable[[Sequence[str]], Sequence[NamedStage]]
"""Makes the stages of those words. Raises StatepipeError."""


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """What was asked for: a QEMU's monitor (`qmp`), or the command that starts one in `folder`. `undo` makes stages.

    `guests` are the most that run at once, with `--serve`; None: take one and stay with it. `log` is the file for
    QEMU's output, if nobody else reads it.
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
    """The QEMU that takes the guest; entering starts it if it is ours, and leaving before `let_go` then ends it."""

    def __init__(self, request: ReceiveRequest, offer: Offer, tell: Tell, guardian: Guardian) -> None:
        self._tell, self._guardian = tell, guardian
        self._offer = offer
        self.own: Own | None = None
        self.child: Child | None = None
        self._request, self._let_go = request, False
        self._stays = not (request.detach or request.guests is not None)

    def __enter__(self) -> Host:
        """Raises QemuError if it has ended or does not answer; then nothing of ours is left."""
        try:
            self.monitor = self._connect()
            self._pidfd = self._process()
            pid = 0 if self.child else self.monitor.pid  # the output of a QEMU of ours arrives by its pipe or log
            self._overheard = Overheard(pid, owner(pid))
        except BaseException as error:
            if self.child is not None:
                with held():
                    self._guardian.note({"over": True})
                    self.child.end_after(error, "before it could take a guest")
            raise
        return self

    def _connect(self) -> Monitor:
        """Connect to the QEMU that waits, or start one. Raises StatepipeError if a new one would harm the guest that is
        about to arrive. For a `check`, it creates nothing of its own on this host."""
        it = self._request
        if it.qmp is not None:
            return Monitor(it.qmp, tell=self._tell)
        command, folder = it.command, it.folder or os.getcwd()
        found = seen(command, View(0), folder, held=False)
        self.own = (list(command), found)
        if self._offer.purpose == CHECK:
            command = for_a_look(command, folder)
        else:
            in_use = clashes(self._offer.facts.get("places", []), found)
            if harmed := [f"{row['path']} ({row['option']}): {why}" for row, why in in_use]:
                raise StatepipeError(
                    f"QEMU is not started here, as it would empty or take away what is in use: {'; '.join(harmed)}",
                    hint="change these names in QEMU's command line: of receive, or in --remote-qemu FILE over ssh",
                )
        with held():  # no signal between QEMU's start and our record of it
            self.child = Child(command, not self._stays, it.folder, it.log)
            pidfd = hold(self.child.pid)
            try:  # from now on the guardian ends it if we are killed: nobody else knows of it
                facts = {"state": Destination.ANSWERING.name, "pid": self.child.pid, "qmp": None, "runs": False}
                self._guardian.note(facts, {"pidfd": pidfd})
            finally:
                os.close(pidfd)
        return Monitor(self.child.monitor, self.child.pid, self._tell)

    def _process(self) -> int:
        """Return a pidfd of it, as it may have to be ended. Raises StatepipeError, with the monitor closed."""
        try:
            return hold(self.monitor.pid)
        except OSError as error:  # also of process 0, which stands for one that is not known
            self.monitor.close()
            hint = (
                "run statepipe on QEMU's host, in the same container or pid namespace, as a user who may see QEMU's "
                "process; and name the socket at which QEMU itself listens, not a relay's"
            )
            raise QemuError("the process of this QEMU is not known, so it could not be ended", hint=hint) from error
        except StatepipeError:
            self.monitor.close()
            raise

    def end(self) -> None:
        """Tell it to quit, kill it if it does not, and wait until it has ended: its guest must never run.

        A process that waits for a disk may outlast SIGKILL, though it never runs anything again.
        """
        own = os.dup(self._pidfd)  # whoever waits for this may have given up before it returns
        try:
            self.monitor.hurry()
            with suppress(QemuError):  # it is killed if it does not end
                end_qemu(self.monitor)
            if not polled(own).poll(QUIT_TIME):
                with suppress(ProcessLookupError):  # it has just ended
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
        """Note for the guardian what it needs if we are killed."""
        fds = {"pidfd": self._pidfd} | ({"spare": self.child.spare.fileno()} if self.child else {})
        self._guardian.note({"pid": self.monitor.pid, "qmp": self._request.qmp, "runs": runs}, fds)

    def last_words(self) -> str:
        """Return the last lines of its output, complete once it has ended; empty if they are not known."""
        return self._overheard.last() if self.child is None else self.child.last_words

    def where_it_spoke(self) -> str:
        """Return where the user reads all of its output."""
        return self._overheard.where if self.child is None else self.child.where_it_spoke

    def let_go(self) -> None:
        """From now on the tables end it if that is right, or the guardian: it may hold the only guest there is."""
        self._let_go = True

    def keep(self) -> None:
        """The guest is here. If we stay with it, signals that would end us are passed on to QEMU from now on; else they
        arrived too late. One that arrived while the guest was about to run has ended nothing: the next is QEMU's."""
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


OnRefused = Callable[[Exception], object]
"""Reports why a visitor gave no guest. It ends nothing."""


def receive(
    request: ReceiveRequest, say: Tell, refused: OnRefused, guard: GuardCommand, listeners: Sequence[StepListener]
) -> int:
    """Take a guest, or one after the other. Return the exit status of the QEMU that we started, 0 if we do not wait.

    Raises StatepipeError, and then there is no guest here. A service reports that by `refused` and waits for the next
    visitor; so does every receive whose visitor makes no offer.
    """
    refuse_daemon(request.command)
    demand_holding()  # after any failure, this QEMU is ended, and seen to have ended
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
    """The listening socket; None inside ssh, which started us for one visitor."""
    if plan.address.scheme == SSH:
        yield None
        return
    mode = 0o600 if plan.peer is None else 0o666  # the named user must get in; the kernel tells who each visitor is
    with listening(plan.address, insecure=plan.insecure, mode=mode) as listener:
        say(f"listening at {place_of(listener, plan.address)} for a guest")
        yield listener


class _Reception:
    """Takes guests from the visitors that `next_peer` waits for."""

    def __init__(
        self,
        request: ReceiveRequest,
        next_peer: Callable[[], AbstractContextManager[Peer]],
        say: Tell,
        refused: OnRefused,
        guard: GuardCommand,
        listeners: Sequence[StepListener],
    ) -> None:
        self._request, self._next_peer, self._say, self._guard = request, next_peer, say, guard
        self._refused, self._listeners = refused, listeners
        self._is_visited = self.has_offer = False  # what fails now is a visitor's doing, or a guest's
        self._signal: InterruptedBySignal | None = None  # the one that arrived as a guest did
        self._numbers = itertools.count(1)

    def serve(self, most: int) -> NoReturn:
        """Take guest after guest, `most` at a time. Ends only by a signal, or when nobody can connect any more."""
        guests: list[Child] = []
        while True:
            try:
                guests += filter(None, [self.one()])
            except Exception as error:  # no visitor ends the service: by no offer, no full disk, no bug of ours
                if isinstance(error, InterruptedBySignal | NameLost) or not (
                    self._is_visited or isinstance(error, StatepipeError)
                ):
                    raise
                self._refused(error)
                if not self._is_visited:  # this host cannot start a guardian or read its trust, perhaps for a while
                    time.sleep(AGAIN)
                if self._signal is not None:  # it ends the service, whatever became of the guest
                    raise self._signal from error
            while len(guests := [child for child in guests if not child.ended]) >= most:
                wait_for_one(guests)

    def one(self, *, again: bool = True) -> Child | None:
        """Take a guest, and return its QEMU if we started it. With `again`, first let any number of visitors only
        check, or make no offer. Raises StatepipeError."""
        while True:
            self._is_visited = self.has_offer = False
            try:
                with Guardian(self._guard) as guardian, self._next_peer() as peer:
                    self._is_visited = True
                    offer, side = offered(peer)  # before that, there is no reason to start a QEMU
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
        """Return whether there is a guest now; False after a `check`. Raises StatepipeError."""
        host.monitor.demand_waiting()
        answer(peer, offer, gather(host.monitor, offer.disks, host.own))
        if not begun(peer, offer, side):
            peer.farewell()
            self._say(f"{peer.name} has checked whether its guest could move here")
            return False
        path = self._request.journal
        if path is not None and self._request.guests is not None:  # a service has a journal for each guest
            path = f"{path}.{next(self._numbers)}"
        facts = {"side": "destination", "peer": peer.name, "guest": offer.facts["guest"]}
        with closing(Journal(path, facts, (guardian.note, *self._listeners))) as journal:
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
                output=QemuOutput(host.last_words, host.where_it_spoke, is_ours=host.child is not None),
                say=self._say,
            )
            with held():  # except while the two sides wait
                guardian.note({"state": arrival.side.state.name})
                host.let_go()
                try:
                    with at_work(arrival):
                        state = arrival.run()
                        guardian.settle()
                    if state is not Destination.RUNS:
                        raise _failure(arrival, state, ended=host.has_ended)
                finally:
                    self._signal = arrival.signal
                host.keep()
        now = "running" if offer.runs else "as it was"  # if QEMU does not answer
        with suppress(QemuError):
            now = host.monitor.run_state()
        self._say(f"{peer.name} has given its guest away; here it is {now}")
        if host.child is None and (warning := restored(host.monitor, before)) is not None:
            self._say(warning)
        if self._signal is not None and self._request.guests is not None:
            raise self._signal  # too late for this guest, but not for the service
        return True


def _failure(arrival: Arrival, state: Destination, *, ended: bool) -> StatepipeError:
    """Return the error of a guest that did not arrive: what is known of it and its QEMU by the final state and by what
    was seen."""
    cause = arrival.cause
    error = cause if isinstance(cause, StatepipeError) else QemuError(f"the guest could not be taken: {cause!r}")
    qemu = f"QEMU here (process {arrival.pid})"
    killed = "was killed and has not ended yet (it may be waiting for a disk)"
    if state is Destination.UNSURE:
        hint = "the source keeps its guest as it was; before it may run there, this QEMU must have ended"
        if arrival.ran:
            return QemuError(f"{qemu} {'has ended' if ended else killed}: {error}", hint=hint)
        now = "has ended" if ended else "lives, but its monitor has broken off"
        what = f"{qemu} was told to run the guest and {now}: whether the guest ran here is not known: {error}"
        return QemuGone(what, hint=hint)
    never = "until it was ended, its guest ran here" if arrival.ran else "its guest never ran"
    said = f"the QEMU here has ended, and {never}" if state is Destination.ENDED else f"{qemu} {killed}; {never}"
    error.advise(said, first=True)
    return error
