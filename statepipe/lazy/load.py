"""load --lazy: the guest runs as soon as QEMU has its devices, and its memory is loaded while it runs.

QEMU is started paused, or waits, and gets the capability postcopy-ram. It loads the devices and runs the guest; each
page is sent when the guest touches it, and the others in the background (rest.py). Until QEMU was told to run the
guest, every failure ends QEMU, and the guest has not run. From then on the guest changes its disks, so QEMU is never
ended.

No answer of QEMU's monitor is awaited while QEMU loads the devices: it holds its big lock, and the devices touch memory
that the server has to send first.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from queue import Empty
from typing import TYPE_CHECKING

from statepipe.descriptors import named_by
from statepipe.errors import QemuError, QemuGone, QemuRefused
from statepipe.formats.qemu.postcopy import LOADED, Pong, Shut
from statepipe.lazy.keeping import Keeping, OwnMonitor, resume_command
from statepipe.lazy.marks import Marks, identity
from statepipe.lazy.opening import blocks_of, demand_servable, opening
from statepipe.lazy.rest import LazyOptions, LazyTelling, Rest
from statepipe.lazy.server import BUFFERED, Damaged, Failed, News, Server
from statepipe.lazy.work import LazyWork
from statepipe.lazy.workingset import FirstPages, first_pages
from statepipe.pipeline.job import at_work
from statepipe.pipeline.signals import held
from statepipe.qemu.commandline import refuse_daemon
from statepipe.qemu.guard import Said
from statepipe.qemu.images import Images
from statepipe.qemu.late_pages import NoLatePages, demand_late_pages, demand_userfaultfd, page_sizes, refused
from statepipe.qemu.migration import start_incoming
from statepipe.qemu.overlays import Clone
from statepipe.qemu.process import DYING, Child
from statepipe.qemu.settings import made_ready, restore_after
from statepipe.state.file import STDIN, Keys
from statepipe.state.load_qmp import (
    RAN_AT_SAVE,
    CutOff,
    MayRun,
    demand_its_own,
    end_half_loaded,
    ready,
    refuse_state_as_disk,
    run_guest,
)
from statepipe.state.pagestore import PageStore, open_pages
from statepipe.telling import Tell
from statepipe.wakeups import polled

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

LOOK = 0.002
"""Seconds between two queries of the run state once the devices are loaded: RUN follows at once."""

HEAD_START = 1.0
"""Seconds that a guest has the processors for itself if its working set was sent before it ran."""

CAPABILITIES = ("events", "late-block-activate", "postcopy-ram")


class LazyLoad:
    """One lazy load into the QEMU of `monitor`, with the pages of `first` before its guest runs; `command` continues it
    after a failure.

    `is_here` becomes true when QEMU may have run the guest: then QEMU must not be ended.
    """

    def __init__(
        self,
        store: PageStore,
        first: FirstPages | None,
        monitor: Monitor,
        tell: LazyTelling,
        options: LazyOptions,
        command: str,
        clone: Clone,
    ) -> None:
        self._store, self._first, self._monitor, self._tell, self._options = store, first, monitor, tell, options
        self._rest = Rest(monitor, tell, command)
        self._clone = clone
        self.is_here = False

    def load(self, said: Said, *, runs: bool) -> None:
        """Load all of the guest, and run it early if it ran when it was saved and `runs`.

        Raises StatepipeError; NoLatePages if QEMU cannot do it, and then nothing has changed.
        """
        monitor, state = self._monitor, self._store.state
        disks = demand_its_own(state, monitor, said, self._tell.warn, self._clone)
        demand_late_pages(monitor)
        blocks = blocks_of(self._store, page_sizes(monitor))
        commands = opening(self._store, blocks)
        runs = runs and state.run_state in RAN_AT_SAVE
        learn = self._options.learn if runs else None
        if learn != self._options.learn:
            self._tell.warn("nothing is learned, as the guest is paused")
        try:
            before = made_ready(monitor, CAPABILITIES)
        except QemuRefused as error:
            raise refused(error) from error
        marks = Marks(monitor)
        link: socket.socket | None = None
        try:
            marks.leave(identity(self._store), runs=runs)
            monitor.execute("stop")  # as -S does: otherwise QEMU would run also a guest that was paused
            link, theirs = socket.socketpair()
            start_incoming(monitor, theirs)
        except BaseException as error:
            if link is not None:
                link.close()
            marks.remove()
            restore_after(error, monitor, before)
            raise
        with link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERED)
            server = Server(self._store, link, blocks, time.monotonic)
            server.set_rate(self._options.rate)
            with at_work(LazyWork(server, lambda: self.is_here)), closing(server):
                if learn is not None:
                    server.learn(self._first)
                self._run_early(server, commands, disks, marks, runs=runs)
                with self._rest.of(server, marks):
                    self._tell.here(monitor.run_state(), self._rest.command)
                    server.push(after=HEAD_START if learn is None and runs and self._first is not None else learn or 0)
                    self._rest.wait()
        self._rest.settle(before)

    def _run_early(
        self, server: Server, commands: tuple[bytes, bytes], disks: Images, marks: Marks, *, runs: bool
    ) -> None:
        """Have QEMU load the devices and run the guest. Raises StatepipeError."""
        try:
            server.begin(*commands, self._first)
            self._await_run(server)
            if runs:
                run_guest(self._monitor, self._answered)
                marks.runs()
            else:
                self._answered()
        except (MayRun, CutOff) as error:
            self.is_here = True
            self._rest.say_where(error, server)
            raise
        except BaseException as error:
            if not self.is_here:
                server.close()
                end_half_loaded(error, self._monitor, disks)
            raise

    def _answered(self) -> None:
        self.is_here = True
        self._tell.settled()

    def _await_run(self, server: Server) -> None:
        """Wait until QEMU has loaded the devices and has left the state inmigrate. Raises StatepipeError."""
        while (news := server.news.get()) != Pong(LOADED):
            self._demand_good(news)
        while self._monitor.run_state() == "inmigrate":
            with suppress(Empty):
                self._demand_good(server.news.get(timeout=LOOK))

    def _demand_good(self, news: News) -> None:
        """Raises StatepipeError for news that end a load before the guest runs."""
        if isinstance(news, Damaged):
            raise news.error
        if isinstance(news, Failed):
            if not isinstance(news.error, OSError | EOFError):
                raise news.error
            figures = self._monitor.migration_outcome()
            raise QemuError(f"QEMU refused the state: {figures.get('error-desc', figures['status'])}")
        if isinstance(news, Shut):
            raise QemuError(f"QEMU failed to load the devices (SHUT {news.value})")


def load_lazily_into_new(
    path: str,
    command: Sequence[str],
    keys: Keys,
    said: Said,
    tell: LazyTelling,
    options: LazyOptions,
    clone: Clone,
    *,
    detach: bool,
) -> int:
    """Load the state lazily into a QEMU started by `command`; stay until QEMU exits and return its exit status. `clone`
    has the overlays over its disks.

    With `detach`, return 0 once all memory is loaded. Raises StatepipeError: QEMU is then ended, unless the hint says
    where the guest is; NoLatePages where only an ordinary load is possible.
    """
    refuse_daemon(command)
    refuse_state_as_disk(path, command)
    demand_named(path)
    demand_userfaultfd(command)
    child: Child | None = None
    load: LazyLoad | None = None
    own = OwnMonitor(tell.warn)
    try:
        with ExitStack() as opened:
            store = opened.enter_context(open_servable(path, keys, tell.warn, options))
            store.state.refuse_changed_before(command, said)
            first = opened.enter_context(first_pages(store, tell.warn))
            command = ready(command, clone)
            with held():  # a QEMU that was started must be known to us
                child = Child([*command, *own.words], detach)
                opened.enter_context(child.spare)
            from statepipe.qemu.monitor import Monitor

            monitor = opened.enter_context(closing(Monitor(child.monitor, child.pid, tell.warn)))
            keeping = Keeping(child.spare, own.address, identity(store), tell.warn, shared=False)
            opened.enter_context(closing(keeping))
            load = LazyLoad(store, first, monitor, tell, options, resume_command(path, own.address), clone)
            load.load(said, runs=not child.stays_paused)
            keeping.done()
    except BaseException as error:
        if load is None or not load.is_here:
            clone.undo(tell.warn)
            if child is not None:
                child.end_after(error, "while loading")
                own.remove()
            raise
        assert child is not None
        if isinstance(error, MayRun | CutOff):
            error.advise(clone.where)
        if not (isinstance(error, QemuGone) and polled(child.ending).poll(DYING)):
            child.let_be(tell.warn)
            raise
        tell.warn(str(error))
    own.remove()
    if detach and not child.ended:
        child.let_be(tell.warn)
        return 0
    return child.wait()


def load_lazily_into_waiting(
    path: str, address: str, keys: Keys, said: Said, tell: LazyTelling, options: LazyOptions
) -> None:
    """Load the state lazily into the QEMU whose monitor is at `address`, started with `-incoming defer`.

    Raises StatepipeError, as `load_lazily_into_new`.
    """
    from statepipe.qemu.monitor import Monitor

    demand_named(path)
    with ExitStack() as opened:
        store = opened.enter_context(open_servable(path, keys, tell.warn, options))
        first = opened.enter_context(first_pages(store, tell.warn))
        monitor = opened.enter_context(closing(Monitor(address, tell=tell.warn)))
        keeping = Keeping.beside(monitor, address, identity(store), tell.warn)
        if keeping is not None:
            opened.enter_context(closing(keeping))
        load = LazyLoad(store, first, monitor, tell, options, resume_command(path, address), Clone())
        load.load(said, runs=True)
        if keeping is not None:
            keeping.done()


def demand_named(path: str) -> None:
    """Raises NoLatePages for standard input or another descriptor: after an interruption, the guest needs the file."""
    if path == STDIN or named_by(path) is not None:
        name = "standard input" if path == STDIN else path
        raise NoLatePages(
            f"{name} cannot be loaded lazily: an interrupted load could not be continued from it",
            hint="store the state in a file and name that",
        )


def open_servable(path: str, keys: Keys, warn: Tell, options: LazyOptions) -> PageStore:
    """Open a state whose pages can be sent one by one. Raises StatepipeError, NoLatePages."""
    store = open_pages(path, keys, told=warn)
    try:
        if store.state.doubts:
            warn(store.state.doubts)
        demand_servable(store)
        if options.verify_first:
            store.verify_all()
    except BaseException:
        store.__exit__()
        raise
    return store
