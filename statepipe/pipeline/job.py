"""The command that runs in this process, as a job that `statepipe ps`, `rate`, `cancel` and SIGUSR1 reach.

cli opens the job with the verb. Each pipeline is its work for as long as its bytes flow (`at_work`), and only then does
the process listen at a socket. So a process answers exactly while it has something to report: a `load` that stays as
QEMU's parent once the guest runs has no work any more, and cannot be cancelled by mistake.

A context variable holds the job, as the decimal module's holds its precision: the functions between the verb and its
pipeline have nothing to do with it. Where it holds none, as in a test of a pipeline alone, nothing listens. A new
thread has none; a thread that runs a pipeline of the command must run in a copy of the context.
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
    from statepipe.pipeline.jobsocket import JobSocket
    from statepipe.pipeline.statuslines import StatusLines


class Work(Protocol):
    """What a job does now. Both may be called from any thread."""

    def status(self) -> dict[str, Any]: ...

    def set_rate(self, rate: int | None) -> None: ...


class Job:
    """One command: its verb, what it works on, and its work of this moment, if it has any.

    `complain` gets the reason if the job cannot be reached.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self.verb = self.what = ""
        self.work: Work | None = None
        self.cancelled = False
        self.qemu: tuple[int, bool] | None = None  # whose guest's state is on its way, where we drive it: `works_for`
        self._deaf = self._placed = False
        self._complain = complain
        self._listener: JobSocket | None = None
        self._reports: list[StatusLines] = []

    def status(self) -> dict[str, Any]:
        """The status of its work, after `pid`, `verb`, `what`. Raises StatepipeError while it has no work."""
        return self._told(self._at_hand())

    def glance(self) -> dict[str, Any] | None:
        """The same, or None while it has no work."""
        return None if (work := self.work) is None else self._told(work)

    def _told(self, work: Work) -> dict[str, Any]:
        return {"pid": os.getpid(), "verb": self.verb, "what": self.what, **work.status()}

    def set_rate(self, rate: int | None) -> None:
        """As its work's. Raises StatepipeError."""
        self._at_hand().set_rate(rate)

    def cancel(self) -> None:
        """End this process as SIGTERM would: everything is undone. Raises StatepipeError if it ignores SIGTERM."""
        self._at_hand()
        if self._deaf:
            raise StatepipeError("it was started with SIGTERM ignored", hint=f"kill -INT {os.getpid()}")
        self.cancelled = True
        os.kill(os.getpid(), signal.SIGTERM)

    def report_to(self, fd: int) -> None:
        """Write status lines to a descriptor while it has work, and the verdict at the end. Raises UsageError."""
        from statepipe.pipeline.statuslines import StatusLines

        nothing = {"seconds": 0.0, "bytes_in": 0, "bytes_out": 0, "stages": []}
        before = {"pid": os.getpid(), "verb": self.verb, "what": self.what, **nothing}
        self._reports.append(StatusLines(fd, self.glance, before))

    def tell(self, facts: dict[str, Any]) -> None:
        """Tell the reports of a step, at once."""
        for report in self._reports:
            report.tell(facts)

    def _at_hand(self) -> Work:
        if (work := self.work) is None:
            raise StatepipeError("it has just ended")
        return work

    @contextmanager
    def open(self, verb: str, what: str) -> Iterator[None]:
        """Within it, the pipelines of this thread can be asked for. `what`: file names and the like, for people."""
        self.verb, self.what = verb, what
        self._deaf = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        token = _JOB.set(self)
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
            _JOB.reset(token)
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
    def lay(self, work: Work) -> Iterator[None]:
        """Within it, that is the job's work. Only a command has a job: a library must not tune the host's malloc."""
        from statepipe.pipeline.malloc import keep_freed_memory

        keep_freed_memory()
        try:
            with held():
                self._listen()
                self.work = work
                for report in self._reports:
                    report.begin()
            yield
        finally:
            with held():
                for report in self._reports:
                    report.pause()
            self._clear()

    def _listen(self) -> None:
        from statepipe.pipeline.jobsocket import JobSocket
        from statepipe.pipeline.runtimefolder import passed_over

        if self._listener is None:
            try:
                self._listener = JobSocket(self)
                if not self._placed and (notice := passed_over(self._listener.place)):
                    self._complain(notice)
                self._placed = True
            except OSError as error:  # no reason to fail: the data do not need it
                self._complain(f"'statepipe ps' will not show this: {error.strerror or error}")

    def _clear(self) -> None:
        with held():
            self.work = None
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()


_JOB: ContextVar[Job | None] = ContextVar("job", default=None)


@contextmanager
def at_work(work: Work) -> Iterator[None]:
    """Within it, `work` is that of the command that runs here, if one does. Within itself this changes nothing."""
    if (job := _JOB.get()) is None or job.work is work:
        yield
    else:
        with job.lay(work):
            yield


def glance() -> Callable[[], dict[str, Any] | None]:
    """What tells, from any thread, the status of the command that runs here; None where it is at nothing."""
    job = _JOB.get()
    return (lambda: None) if job is None else job.glance


def report_to(fd: int) -> None:
    """As Job.report_to, of the command that runs here. Raises StatepipeError."""
    if (job := _JOB.get()) is None:
        raise StatepipeError("no command runs here")
    job.report_to(fd)


def teller() -> Callable[[dict[str, Any]], None]:
    """Job.tell of the command that runs here, for any thread."""
    job = _JOB.get()
    return (lambda facts: None) if job is None else job.tell


def works_for(pid: int, *, once: bool = False) -> None:
    """The command that runs here moves or saves the guest of that QEMU, each page `once` if it is a snapshot."""
    if (job := _JOB.get()) is not None:
        job.qemu = pid, once


def its_qemu() -> Callable[[], tuple[int, bool] | None]:
    """What tells, from any thread, that QEMU's process id, and whether each page leaves but once."""
    job = _JOB.get()
    return (lambda: None) if job is None else lambda: job.qemu
