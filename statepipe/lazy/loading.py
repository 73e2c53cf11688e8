"""A lazy load into a QEMU that has been reached: it gets the devices, runs the guest, and then gets its memory.

No answer of QEMU's monitor is awaited while QEMU loads the devices: it holds its big lock, and the devices touch memory
that the server has to send first.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from queue import Empty

from statepipe.errors import QemuError, QemuRefused, StatepipeError
from statepipe.formats.qemu.postcopy import LOADED, Pong, Shut
from statepipe.lazy.keeping import Keeping
from statepipe.lazy.marks import Marks, identity
from statepipe.lazy.opening import blocks_of, demand_servable, opening
from statepipe.lazy.rest import STOP, Rest
from statepipe.lazy.server import BUFFERED, Damaged, Failed, News, Server
from statepipe.lazy.telling import LazyOptions, LazyTelling
from statepipe.lazy.work import LazyWork
from statepipe.lazy.workingset import FirstPages
from statepipe.pipeline.job import at_work
from statepipe.pipeline.signals import held, ignore
from statepipe.qemu.guard import Said
from statepipe.qemu.images import Images
from statepipe.qemu.late_pages import demand_late_pages, page_sizes, refused
from statepipe.qemu.migration import start_incoming
from statepipe.qemu.overlays import Clone
from statepipe.qemu.runstates import RAN_AT_SAVE
from statepipe.qemu.settings import made_ready, restore_after
from statepipe.state.load_qmp import (
    CutOff,
    MayRun,
    demand_its_own,
    end_half_loaded,
    run_guest,
)
from statepipe.state.loading import State
from statepipe.state.pagestore import PageStore, pages_of
from statepipe.telling import Tell
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

LOOK = 0.002
"""Seconds between two queries of the run state once the devices are loaded: RUN follows at once."""

WORD = 10.0
"""Seconds without a sign that the devices are loaded until statepipe reports it; then again after four times as long,
and so on, as for an answer of the monitor."""

HEAD_START = 1.0
"""Seconds that a guest has the processors for itself if its working set was sent before it ran."""

CAPABILITIES = ("events", "late-block-activate", "postcopy-ram")


class LazyLoad:
    """One lazy load into the QEMU of `monitor`, with the pages of `first` before its guest runs; `command` continues it
    after a failure.

    `is_here` becomes true when QEMU may have run the guest: then QEMU must not be ended. `done` is called once all
    memory is loaded, when a signal has nothing left to interrupt.
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
        done: Callable[[], None] = ignore,
    ) -> None:
        self._store, self._first, self._monitor, self._tell, self._options = store, first, monitor, tell, options
        self._rest = Rest(store, monitor, tell, command, done)
        self._clone = clone
        self.is_here = False

    def load(self, said: Said, keeping: Keeping | None, *, runs: bool) -> None:
        """Load all of the guest, and run it early if it ran when it was saved and `runs`. `keeping` is its keeper.

        Raises StatepipeError; NoLatePages if QEMU cannot do it, and then nothing has changed.
        """
        monitor, state = self._monitor, self._store.state
        with monitor.remembered():
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
            marks.leave(identity(self._store), before, runs=runs)
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
            server.at_trouble(lambda: monitor.hurry(STOP))  # QEMU may not answer until it gets that page
            with at_work(LazyWork(server, lambda: self.is_here)), closing(server):
                if keeping is not None:
                    keeping.await_ready()
                    keeping.will_load(monitor.pid)
                if learn is not None:
                    server.learn(self._first)
                self._run_early(server, commands, disks, marks, keeping, runs=runs)
                with self._rest.of(server, marks):
                    with held():
                        late = HEAD_START if learn is None and runs and self._first is not None else learn or 0
                        server.push(after=late)
                    self._rest.finish(before)
        if keeping is not None:
            keeping.done()

    def _run_early(
        self,
        server: Server,
        commands: tuple[bytes, bytes],
        disks: Images,
        marks: Marks,
        keeping: Keeping | None,
        *,
        runs: bool,
    ) -> None:
        """Have QEMU load the devices and run the guest. Raises StatepipeError."""
        try:
            server.begin(*commands, self._first)
            self._await_run(server)
            if keeping is not None:
                keeping.may_run()
            if runs:
                run_guest(self._monitor, self._answered)
                marks.runs()
            else:
                self._answered()
        except BaseException as error:
            self.is_here = self.is_here or isinstance(error, MayRun | CutOff)
            cause = self._rest.cause_of(error, server) if isinstance(error, StatepipeError) else error
            if not self.is_here:
                server.close()
                end_half_loaded(cause, self._monitor, disks)
            elif isinstance(cause, StatepipeError):
                self._rest.say_where(cause, server)
            if cause is error:
                raise
            raise cause from error

    def _answered(self) -> None:
        self.is_here = True
        self._tell.settled()

    def _await_run(self, server: Server) -> None:
        """Wait until QEMU has loaded the devices and has left the state inmigrate. Raises StatepipeError.

        A QEMU that was stopped, or that waits for a disk, takes its time: that is reported, and --timeout ends it.
        """
        seconds = patience = WORD
        while True:
            try:
                news = server.news.get(timeout=patience)
            except Empty:
                self._tell.warn(f"{self._monitor.place} has not loaded the devices for {seconds:g} s")
                patience = 3 * seconds
                seconds *= 4
                continue
            if news == Pong(LOADED):
                break
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


def servable(state: State, warn: Tell, options: LazyOptions) -> PageStore:
    """Return the pages of a state, which can be sent one by one. Raises StatepipeError, NoLatePages."""
    store = pages_of(state, told=warn)
    if store.state.doubts:
        warn(store.state.doubts)
    demand_servable(store)
    if options.verify_first:
        store.verify_all()
    return store
