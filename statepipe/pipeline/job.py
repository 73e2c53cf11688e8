"""Where a command keeps what it is at, for whoever asks: `statepipe ps`, `rate` and `cancel`, or SIGUSR1.

cli opens the desk with the verb; each pipeline lays itself on it for as long as its bytes flow (`at_work`), and only
then does the process listen. So a process can be asked exactly while it has something to tell: a `load` that stays as
QEMU's parent once the guest runs is no job any more, and cannot be cancelled by mistake.

The desk is found through a context variable, as the decimal module finds its precision: between the verb and its
pipeline stand functions that have nothing to do with it. Where there is no desk, as in a test of a pipeline alone,
nobody listens. A thread starts without one; whoever runs a pipeline there takes the context along.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.pipeline.signals import forget_late, held, ignore

if TYPE_CHECKING:
    from statepipe.pipeline.jobsocket import Listener
    from statepipe.pipeline.statuslines import Report


class Job(Protocol):
    """What can be asked of work that goes on. Both may be called from any thread."""

    def status(self) -> dict[str, Any]: ...

    def set_rate(self, rate: int | None) -> None: ...


class Desk:
    """One command: its verb, what it works on, and the job at hand, if there is one.

    `complain` hears why nobody can ask, where that is so.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self.verb = self.what = ""
        self.job: Job | None = None
        self.cancelled = False
        self.qemu: tuple[int, bool] | None = None  # whose guest's state is on its way, where we drive it: `works_for`
        self._deaf = self._placed = False
        self._complain = complain
        self._listener: Listener | None = None
        self._reports: list[Report] = []

    def status(self) -> dict[str, Any]:
        """The job's status after who does it: `pid`, `verb`, `what`. Raises StatepipeError between two jobs."""
        return self._told(self._at_hand())

    def glance(self) -> dict[str, Any] | None:
        """The same, or None between two jobs."""
        return None if (job := self.job) is None else self._told(job)

    def _told(self, job: Job) -> dict[str, Any]:
        return {"pid": os.getpid(), "verb": self.verb, "what": self.what, **job.status()}

    def set_rate(self, rate: int | None) -> None:
        """As the job's. Raises StatepipeError."""
        self._at_hand().set_rate(rate)

    def cancel(self) -> None:
        """End this process as SIGTERM would: everything is undone. Raises StatepipeError if it ignores SIGTERM."""
        self._at_hand()
        if self._deaf:
            raise StatepipeError("it was started with SIGTERM ignored", hint=f"kill -INT {os.getpid()}")
        self.cancelled = True
        os.kill(os.getpid(), signal.SIGTERM)

    def report_to(self, fd: int) -> None:
        """Write status lines to a descriptor while there is a job, and the verdict at the end. Raises UsageError."""
        from statepipe.pipeline.statuslines import Report

        nothing = {"seconds": 0.0, "bytes_in": 0, "bytes_out": 0, "stages": []}
        before = {"pid": os.getpid(), "verb": self.verb, "what": self.what, **nothing}
        self._reports.append(Report(fd, self.glance, before))

    def tell(self, facts: dict[str, Any]) -> None:
        """Tell the reports of a step, at once."""
        for report in self._reports:
            report.tell(facts)

    def _at_hand(self) -> Job:
        if (job := self.job) is None:
            raise StatepipeError("it has just ended")
        return job

    @contextmanager
    def open(self, verb: str, what: str) -> Iterator[None]:
        """Within it, the pipelines of this thread can be asked for. `what`: file names and the like, for people."""
        self.verb, self.what = verb, what
        self._deaf = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        token = _DESK.set(self)
        try:
            with self._reported():
                yield
        except InterruptedBySignal as error:
            if self.cancelled and error.exit_code == 128 + signal.SIGTERM:
                cancelled = InterruptedBySignal(signal.SIGTERM, "cancelled by statepipe cancel")
                cancelled.hint = error.hint  # where the guest is, as after any other end
                raise cancelled from error
            raise
        finally:
            _DESK.reset(token)
            self._clear()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Its end is the verdict that reports tell."""
        try:
            yield
        except BaseException as error:
            self._conclude(error)
            raise
        self._conclude(None)

    def _conclude(self, error: BaseException | None) -> None:
        """Tell the verdict. Once it is told that all is done, no signal denies it."""
        with held():
            for report in self._reports:
                report.close(error)
            if self._reports and error is None:
                ignore()
                forget_late()
            self._reports.clear()

    @contextmanager
    def lay(self, job: Job) -> Iterator[None]:
        """Within it, `job` is the one at hand."""
        try:
            with held():
                self._listen()
                self.job = job
                for report in self._reports:
                    report.begin()
            yield
        finally:
            with held():
                for report in self._reports:
                    report.pause()
            self._clear()

    def _listen(self) -> None:
        from statepipe.pipeline.jobsocket import Listener
        from statepipe.pipeline.runtimefolder import passed_over

        if self._listener is None:
            try:
                self._listener = Listener(self)
                if not self._placed and (notice := passed_over(self._listener.place)):
                    self._complain(notice)
                self._placed = True
            except OSError as error:  # no reason to fail: the data do not need it
                self._complain(f"'statepipe ps' will not show this: {error.strerror or error}")

    def _clear(self) -> None:
        with held():
            self.job = None
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()


_DESK: ContextVar[Desk | None] = ContextVar("desk", default=None)


@contextmanager
def at_work(job: Job) -> Iterator[None]:
    """Within it, `job` is what this command does, if a command it is. Within itself that changes nothing."""
    if (desk := _DESK.get()) is None or desk.job is job:
        yield
    else:
        with desk.lay(job):
            yield


def glance() -> Callable[[], dict[str, Any] | None]:
    """What tells, from any thread, the status of the command that runs here; None where it is at nothing."""
    desk = _DESK.get()
    return (lambda: None) if desk is None else desk.glance


def report_to(fd: int) -> None:
    """As Desk.report_to, of the command that runs here. Raises StatepipeError."""
    if (desk := _DESK.get()) is None:
        raise StatepipeError("no command runs here")
    desk.report_to(fd)


def teller() -> Callable[[dict[str, Any]], None]:
    """Desk.tell of the command that runs here, for any thread."""
    desk = _DESK.get()
    return (lambda facts: None) if desk is None else desk.tell


def works_for(pid: int, *, once: bool = False) -> None:
    """The command that runs here moves or saves the guest of that QEMU, each page `once` if it is a snapshot."""
    if (desk := _DESK.get()) is not None:
        desk.qemu = pid, once


def its_qemu() -> Callable[[], tuple[int, bool] | None]:
    """What tells, from any thread, that QEMU's process id, and whether each page leaves but once."""
    desk = _DESK.get()
    return (lambda: None) if desk is None else lambda: desk.qemu
