"""The command that runs in this process, as a job for `statepipe ps`, `rate`, `cancel` and SIGUSR1.

cli opens the job with the verb. Each pipeline is its work while its bytes flow (`at_work`), and the process listens at
a socket only then. So it answers exactly while it has something to report: a `load` that stays as QEMU's parent when
the guest runs has no work any more, and cannot be cancelled by mistake.

A context variable holds the job, because the functions between the verb and its pipeline do not need it. Without a job,
as in a test of a pipeline, nothing listens. A new thread has none; a thread that runs a pipeline of the command must
run in a copy of the context.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.pipeline.signals import forget_late, held, ignore
from statepipe.typed import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from statepipe.pipeline.jobsocket import JobSocket
    from statepipe.pipeline.statuslines import StatusLines


class Work(Protocol):
    """What a job does now. Any thread may call both."""

    def status(self) -> dict[str, Any]: ...

    def set_rate(self, rate: int | None) -> None: ...


@runtime_checkable
class Final(Protocol):
    """Work that cannot be undone from some moment on. May be called from any thread."""

    def demand_cancellable(self) -> None: ...


class Job:
    """One command: its verb, what it works on, and its present work, if any.

    `complain` gets the reason if the job cannot be reached.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self.verb = self.what = ""
        self.work: Work | None = None
        self.cancelled = False
        self.qemu: tuple[int, bool] | None = None  # the QEMU that we drive: `works_for`
        self._deaf = self._placed = False
        self._complain = complain
        self._listener: JobSocket | None = None
        self._reports: list[StatusLines] = []

    def status(self) -> dict[str, Any]:
        """Return `pid`, `verb`, `what` and the status of its work. Raises StatepipeError while it has no work."""
        return self._told(self._at_hand())

    def glance(self) -> dict[str, Any] | None:
        """Return the same, or None while it has no work."""
        return None if (work := self.work) is None else self._told(work)

    def _told(self, work: Work) -> dict[str, Any]:
        return {"pid": os.getpid(), "verb": self.verb, "what": self.what, **work.status()}

    def set_rate(self, rate: int | None) -> None:
        """Change the rate of its work, as Pipeline.set_rate. Raises StatepipeError."""
        self._at_hand().set_rate(rate)

    def cancel(self) -> None:
        """End this process as SIGTERM would, with everything undone.

        Raises StatepipeError if it ignores SIGTERM, or if its work cannot be undone any more.
        """
        if isinstance(work := self._at_hand(), Final):
            work.demand_cancellable()
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
        """Report a step at once."""
        for report in self._reports:
            report.tell(facts)

    def _at_hand(self) -> Work:
        if (work := self.work) is None:
            raise StatepipeError("it has just ended")
        return work

    @contextmanager
    def open(self, verb: str, what: str) -> Iterator[None]:
        """Make the pipelines of this thread reachable during the context. `what` is for people, such as file names."""
        self.verb, self.what = verb, what
        self._deaf = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        token = _JOB.set(self)
        try:
            try:
                yield
            except BaseException as error:
                self._conclude(error)
                raise
            self._conclude(None)
        except InterruptedBySignal as error:
            if self.cancelled and error.exit_code == 128 + signal.SIGTERM:
                cancelled = InterruptedBySignal(signal.SIGTERM, "cancelled by statepipe cancel")
                cancelled.hint = error.hint  # says where the guest is
                raise cancelled from error
            raise
        finally:
            _JOB.reset(token)
            self._clear()

    def _conclude(self, error: BaseException | None) -> None:
        """Report the verdict. After a report of success, signals are ignored, because they could only contradict it."""
        with held():
            for report in self._reports:
                report.close(error)
            if self._reports and error is None:
                ignore()
                forget_late()
            self._reports.clear()

    @contextmanager
    def lay(self, work: Work) -> Iterator[None]:
        """Make this the job's work during the context."""
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
            except OSError as error:  # the work does not need it
                self._complain(f"'statepipe ps' will not show this: {error.strerror or error}")

    def _clear(self) -> None:
        with held():
            self.work = None
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()


_JOB: ContextVar[Job | None] = ContextVar("job", default=None)


@contextmanager
def at_work(work: Work, *, much: bool = True) -> Iterator[None]:
    """Make `work` the work of the present command, if there is one, during the context. It may be nested.

    With `much`, it moves many bytes; else it calls `much_comes` once it does.
    """
    if (job := _JOB.get()) is None or job.work is work:
        yield
    else:
        if much:
            much_comes()
        with job.lay(work):
            yield


def much_comes() -> None:
    """Prepare the process of a command for many bytes. A library must not do that to its caller's."""
    if _JOB.get() is not None:
        from statepipe.pipeline.malloc import keep_freed_memory

        keep_freed_memory()


def glance() -> Callable[[], dict[str, Any] | None]:
    """Return a function that returns the present command's status from any thread, or None while it has no work."""
    job = _JOB.get()
    return (lambda: None) if job is None else job.glance


def report_to(fd: int) -> None:
    """Call Job.report_to of the present command. Raises StatepipeError."""
    if (job := _JOB.get()) is None:
        raise StatepipeError("no statepipe command is running in this process")
    job.report_to(fd)


def teller() -> Callable[[dict[str, Any]], None]:
    """Return Job.tell of the present command, for any thread."""
    job = _JOB.get()
    return (lambda facts: None) if job is None else job.tell


def works_for(pid: int, *, once: bool = False) -> None:
    """Note that the present command moves or saves the guest of that QEMU, each page `once` if it is a snapshot."""
    if (job := _JOB.get()) is not None:
        job.qemu = pid, once


def its_qemu() -> Callable[[], tuple[int, bool] | None]:
    """Return a function that returns that QEMU's process id, and whether each page is sent once, from any thread."""
    job = _JOB.get()
    return (lambda: None) if job is None else lambda: job.qemu
