"""The second part of a lazy load: the guest runs, and the memory that it still lacks is sent.

No failure here ends QEMU: the guest has run, and its disks have changed. The error says whether the guest runs, and how
to continue. If a frame is damaged, the guest is stopped, all other pages are sent, and QEMU waits for a good copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty

from statepipe.errors import (
    IntegrityError,
    InterruptedBySignal,
    QemuError,
    QemuGone,
    QemuSilent,
    StatepipeError,
)
from statepipe.formats.qemu.postcopy import PAGE_SIZE, Shut
from statepipe.lazy.marks import Marks
from statepipe.lazy.server import AllSent, Damaged, Failed, Learned, Server
from statepipe.lazy.telling import LazyTelling, Summary
from statepipe.lazy.workingset import Recorder
from statepipe.pipeline.signals import ignore
from statepipe.qemu.migration import demand_completed
from statepipe.qemu.runstates import RUNNING
from statepipe.qemu.settings import restore_after, restored
from statepipe.state.load_qmp import CutOff
from statepipe.state.pagestore import PageStore
from statepipe.threads import LIMITS
from statepipe.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes 25 ms, in which a QEMU can start
    from statepipe.qemu.monitor import Monitor

STOP = 2.0
"""Seconds that QEMU has for each answer once a frame is damaged. Without KVM and on a busy host, `stop` takes tenths of
a second; if QEMU waits for a page of that frame, it does not answer at all."""

SILENT = "QEMU does not answer, and its guest may be running"

SHUTDOWN = "shutdown"
"""The run state of a QEMU whose guest has powered off, and of one that ends because of a signal."""


class Rest:
    """Waits until all memory of `store` is loaded into the QEMU of `monitor`; `command` continues the load after a
    failure. `done` is called at the end, when a signal has nothing left to interrupt."""

    def __init__(
        self, store: PageStore, monitor: Monitor, tell: LazyTelling, command: str, done: Callable[[], None] = ignore
    ) -> None:
        self._store, self._monitor, self._tell, self.command, self._done = store, monitor, tell, command, done
        self._server: Server
        self._marks: Marks
        self._damage: Damaged | None = None
        self._has_all = False
        self._began = time.monotonic()

    @contextmanager
    def of(self, server: Server, marks: Marks) -> Iterator[None]:
        """Within it, errors get a hint that says where the guest is and how to continue."""
        self._server, self._marks, self._began = server, marks, time.monotonic()
        try:
            yield
        except StatepipeError as error:
            cause = self.cause_of(error, server)
            self.say_where(cause, server)
            if cause is error:
                raise
            raise cause from error
        except MemoryError as error:
            short = _short_of_memory()
            self.say_where(short, server)
            raise short from error

    def finish(self, before: Mapping[str, Any]) -> None:
        """Report where the guest is, wait until QEMU has all memory, and restore `before`. Raises StatepipeError.

        If the file was removed meanwhile, nobody but this process can continue: a signal then counts only at the end.
        """
        late: InterruptedBySignal | None = None
        is_told = False
        while not self._has_all:
            try:
                if not is_told:
                    is_told = True
                    self._announce()
                self.wait()
            except InterruptedBySignal as error:
                if self._store.has_name():
                    raise
                late = error
                what = f"{self._store.name} was removed, and only this process can still read it"
                self._tell.warn(f"{error}: not before all memory is loaded, as {what}")
        self.settle(before)
        if late is not None:
            raise late

    def _announce(self) -> None:
        """Report that the guest is there. If QEMU's main loop waits for a damaged page, the error reports it."""
        try:
            self._tell.here(self._monitor.run_state(), self.command)
        except QemuSilent:
            if not self._server.has_damage:
                raise

    def wait(self) -> None:
        """Wait until QEMU has all memory. Raises StatepipeError."""
        while True:
            news = self._server.news.get()
            if isinstance(news, Damaged):
                self._note_damage(news)
            elif isinstance(news, AllSent) and self._damage is not None:
                raise self._damage.error
            elif isinstance(news, Learned):
                self._keep(news.recorder)
            elif isinstance(news, Shut):
                if news.value:
                    raise QemuError(f"QEMU failed to load the memory (SHUT {news.value})")
                self._has_all = True
                return
            elif isinstance(news, Failed):
                raise self._lost(news.error)

    def _keep(self, recorder: Recorder) -> None:
        """Write the working set that was recorded. Without it, the load goes on all the same."""
        try:
            path = recorder.write()
        except StatepipeError as error:
            self._tell.warn(f"the working set was not written: {error}")
        else:
            self._tell.learned(path, len(recorder.pages) * PAGE_SIZE, recorder.is_full)

    def settle(self, before: Mapping[str, Any]) -> None:
        """All memory was sent: check that QEMU has it, and restore QEMU's settings. Raises StatepipeError."""
        try:
            demand_completed(self._monitor.migration_outcome(), "its message is above")
            if (words := restored(self._monitor, before)) is not None:
                self._tell.warn(words)
            self._marks.remove()  # the last step: --resume does these if we are killed
            self._done()
        except InterruptedBySignal as error:
            self._monitor.hurry()
            self._marks.remove()
            restore_after(error, self._monitor, before)
            raise
        figures = self._server.figures
        waits, sent = figures.waits, (figures.pages - figures.before) * PAGE_SIZE
        first = figures.first * PAGE_SIZE
        self._tell.complete(
            Summary(sent, first, waits.count, waits.median, waits.longest, time.monotonic() - self._began)
        )

    def _lost(self, error: BaseException) -> BaseException:
        """Return what a failure of the file or of the connection means."""
        if not isinstance(error, OSError | EOFError):
            return error
        self._monitor.hurry()  # its main loop may be waiting for a page
        try:
            status = self._monitor.flowing()["status"]
        except QemuGone:
            return QemuGone("QEMU ended before all of the guest's memory was loaded")
        except QemuSilent:
            status = "not known"
        return QemuError(f"QEMU closed the connection before all memory was loaded; its migration is {status}")

    def _note_damage(self, damage: Damaged) -> None:
        """Stop the guest at the first damaged frame.

        If a processor waits for a page of it, QEMU may not answer until that page arrives: without KVM, `stop` waits
        for that processor. The keeper makes QEMU listen all the same.
        """
        if self._damage is not None:
            self._damage = damage if self._damage.asked is None and damage.asked is not None else self._damage
            return
        self._damage = damage
        self._monitor.hurry(STOP)
        try:
            if self._monitor.run_state() == RUNNING:
                self._marks.to_run()
                self._monitor.execute("stop")
        except QemuSilent:
            self._tell.warn("QEMU does not answer while it waits for a damaged page")

    def cause_of(self, error: StatepipeError, server: Server) -> StatepipeError:
        """Return the damage for which QEMU's main loop waits if `error` says that QEMU did not answer, or why no more
        pages can be read."""
        if isinstance(error, QemuSilent | CutOff):
            self._damage = self._damage or unread_damage(server)
            if self._damage is not None:
                return self._damage.error
            if isinstance(server.failure, MemoryError):
                return _short_of_memory()
            if isinstance(server.failure, StatepipeError):
                return server.failure
        return error

    def say_where(self, error: StatepipeError, server: Server) -> None:
        """Add to the hint of `error` where the guest is, and how to continue."""
        if isinstance(error, QemuGone):
            return
        self._monitor.hurry()  # its main loop may be waiting for a page
        try:
            state = self._monitor.run_state()
            if state == SHUTDOWN:  # after Ctrl-C, which QEMU receives as well
                why = "QEMU is shutting down: the guest has ended, or QEMU was told to end"
                error.advise(f"{why}; if it stays (-no-shutdown), continue with: {self.command}")
                return
            where = f"the guest is {state}"
            if self._has_all:
                error.advise(f"{where}, with all of its memory loaded")
                return
        except QemuGone:
            error.advise("QEMU has ended")
            return
        except QemuSilent:
            where = SILENT
        say_left(error, where, server, self._damage, self.command)


def unread_damage(server: Server) -> Damaged | None:
    """Return the damaged frame that the server reports and nobody has read, one that the guest asked for if there is
    one. All reports so far are dropped."""
    found: Damaged | None = None
    with suppress(Empty):
        while True:
            news = server.news.get_nowait()
            if isinstance(news, Damaged) and (found is None or found.asked is None):
                found = news
    return found


def say_left(error: StatepipeError, where: str, server: Server, damage: Damaged | None, command: str) -> None:
    """Add to the hint of `error`, after `where` the guest is, how much it lacks, and that `command` continues."""
    figures = server.figures
    loaded, total = (pages * PAGE_SIZE >> 20 for pages in (figures.pages, figures.total))
    where = f"{where}, with {loaded} of {total} MiB of its memory loaded"
    if damage is not None and (asked := damage.asked) is not None:
        where += f", and waits for a page that is damaged, at {asked.page * PAGE_SIZE:#x} of {asked.block}"
    copy = "replace the file by an undamaged copy, and " if isinstance(error, IntegrityError) else ""
    error.advise(f"{where}; do not end its QEMU; {copy}continue with: {command}")


def _short_of_memory() -> StatepipeError:
    return StatepipeError("there is not enough memory", hint=LIMITS)
