"""external: any program as a stage, whose success is part of the verdict.

Its output leaves as it arrives. The stage succeeds only if the program exited with status 0, all of its output has been
read, and it has read its input to the end. Three failures can happen together:
- the upstream fails: that is the cause; the program is killed before it could see an end of its input;
- the program fails: that is the cause, and not the broken pipe of its input;
- downstream fails: the stage is closed, and the program's status does not matter.

A flush mark cannot be passed to a program, so it is passed around it: at once, and again each time that the program has
written something and falls silent, until more input arrives.
"""

from __future__ import annotations

import os
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from statepipe.errors import StatepipeError, UsageError
from statepipe.processes import GRACE, Process, name_of_signal
from statepipe.stage import FLUSH, Buffer, Cancelled, Over, Stage
from statepipe.stages.context import Context
from statepipe.stages.feeding import Feeder, PipeReader, Stderr
from statepipe.threads import held
from statepipe.wakeups import LINGER, READ_SIZE, SMALL, Bell, enlarge_pipe, polled, waiting

TITLE = 60
"""Characters of a command line that messages show."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended: `status` is its exit status, or minus the number of the signal that killed it.

    `read_all`: it has read all of its input. `words`: its last messages.
    """

    status: int
    read_all: bool
    words: str


@dataclass(frozen=True, slots=True)
class ExternalProgram:
    """A program to run. `arguments` returns its command line, given the descriptors of `asides` and `secrets`.

    The bytes that it writes to an aside are passed to that function; it can read a secret (at most a page) from its
    descriptor. `say` gets its standard error. `judge` raises StatepipeError for a bad ending. `may_stop`: it may end
    before its input does.
    """

    title: str
    arguments: Callable[[Sequence[int]], Sequence[str]]
    say: Callable[[str], object]
    judge: Callable[[Ending], None]
    may_stop: bool = False
    asides: tuple[Callable[[bytes], None], ...] = ()
    secrets: tuple[bytes, ...] = ()


def external(command: Sequence[str], shell: str | None, context: Context, *, may_stop: bool = False) -> Stage:
    """Return a stage that runs a program, by its arguments or by a line for the shell. Raises UsageError."""
    if bool(command) == (shell is not None):
        raise UsageError("external needs either a program or --shell LINE", hint="as in: external -- tr a b")
    argv = command
    if shell is not None:
        bash = shutil.which("bash")  # with it, a failure in the middle of a pipeline counts
        argv = [bash, "-o", "pipefail", "-c", shell] if bash else ["/bin/sh", "-c", shell]
    title = shell if shell is not None else shlex.join(argv)
    title = title if len(title) <= TITLE else title[: TITLE - 1] + "…"

    def say(text: str) -> None:
        context.messages.write(text)
        context.messages.flush()

    def judge(ending: Ending) -> None:
        words = f": {ending.words}" if ending.words else ""
        if ending.status > 0:
            raise StatepipeError(f"{title} failed with exit status {ending.status}{words}")
        if ending.status < 0:
            raise StatepipeError(f"{title} was killed by {name_of_signal(-ending.status)}{words}")
        if not ending.read_all:
            what = f"{title} exited with status 0, but left a part of its input unread"
            raise StatepipeError(what, hint="if it may stop before the end of its input, give --may-stop")

    return running(ExternalProgram(title, lambda fds: argv, say, judge, may_stop))


def running(command: ExternalProgram) -> Stage:
    """Return a stage that runs `command`, which starts when the first buffer is pulled. Raises StatepipeError."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        program = _Program(command, upstream)
        return Over(program, program.flow())

    return stage


class _Program:
    """A program, also before its start. Any thread may call `cancel`; only the thread that pulls may call the rest."""

    def __init__(self, command: ExternalProgram, upstream: Iterator[Buffer]) -> None:
        self._command, self._upstream = command, upstream
        self._stderr = Stderr(command.say)
        self._lock = threading.Lock()
        self._started = self._cancelled = self._well = False
        self._opened = ExitStack()

    def flow(self) -> Iterator[Buffer]:
        """Yield its output. Raises what the upstream raises, StatepipeError for a bad ending, and Cancelled."""
        try:
            with self._lock, held():
                if self._cancelled:
                    raise Cancelled
                with ExitStack() as opened:
                    self._start(opened)
                    self._opened = opened.pop_all()
                self._started = True
            yield from self._output()
            yield from self._verdict()
        finally:
            self.close()

    def _start(self, opened: ExitStack) -> None:
        self._bell = Bell()
        opened.callback(self._bell.close)
        self._feeder = Feeder(self._upstream, self._bell)
        opened.callback(self._feeder.close)
        self._readers: list[PipeReader] = []
        for hear in (self._stderr.hear, *self._command.asides):
            reader = PipeReader(hear)
            opened.callback(reader.close)
            opened.callback(reader.finish)
            self._readers.append(reader)
        self._reading, output = os.pipe()
        opened.callback(os.close, self._reading)
        with ExitStack() as inherited:
            inherited.callback(os.close, output)
            enlarge_pipe(output)
            stderr, *extra = [reader.writing for reader in self._readers]
            extra += [_pipe_with(secret, inherited) for secret in self._command.secrets]
            descriptors = {0: self._feeder.reading, 1: output, 2: stderr} | {fd: fd for fd in extra}
            self._process = Process(self._command.arguments(extra), descriptors)
        opened.callback(self._end)
        for reader in self._readers:
            reader.start()
        self._feeder.start()

    def _output(self) -> Iterator[Buffer]:
        """Yield its output and flush marks. Raises what the upstream raises, and StatepipeError for a missing end."""
        poll = polled(self._reading, self._bell.fd, self._process.pidfd)
        aside = polled(self._bell.fd, self._process.pidfd)
        owed = False
        while True:
            ready = {fd for fd, _ in poll.poll(0 if owed else None)}
            owed = self._heeded(ready) or owed
            if self._reading in ready:
                if 0 < waiting(self._reading) < SMALL:
                    aside.poll(LINGER)
                if not (buffer := os.read(self._reading, READ_SIZE)):
                    return
                yield buffer
                owed = self._feeder.marked
            elif self._process.pidfd in ready:
                failed = self._process.status() != 0
                if polled(self._reading).poll(0 if failed else GRACE):
                    continue
                if failed:
                    return
                what = f"{self._command.title} exited, but a process that it started keeps its output open"
                hint = "let the program wait for the processes that it starts, or redirect their output"
                raise StatepipeError(what, hint=hint)
            elif not ready:
                yield FLUSH
                owed = False

    def _verdict(self) -> Iterator[Buffer]:
        """Yield flush marks until its ending is known. Raises StatepipeError for a bad one."""
        yield from self._until(lambda: bool(polled(self._process.pidfd).poll(0)))
        status = self._process.status()
        read_all = True
        if not status and not self._command.may_stop:
            read_all = not self._feeder.refuse()
            yield from self._until(lambda: not read_all or self._feeder.done)
            read_all = read_all and self._feeder.ended
        for reader in self._readers:
            reader.finish()
        self._command.judge(Ending(status, read_all, self._stderr.last()))
        self._well = True

    def _until(self, reached: Callable[[], bool]) -> Iterator[Buffer]:
        poll = polled(self._bell.fd, self._process.pidfd)
        while not reached():
            ready = {fd for fd, _ in poll.poll()}
            if self._heeded(ready):
                yield FLUSH
            if self._process.pidfd in ready:
                poll.unregister(self._process.pidfd)

    def _heeded(self, ready: set[int]) -> bool:
        """Return whether the bell rang for a flush mark. Raises the upstream's error, and Cancelled."""
        if self._bell.fd not in ready:
            return False
        self._bell.hush()
        if self._cancelled:
            raise Cancelled
        if self._feeder.failure is not None:
            raise self._feeder.failure
        return self._feeder.marked

    def cancel(self) -> None:
        """Safe from any thread, at any time."""
        with self._lock:
            self._cancelled = True
        if self._started:
            self._bell.ring()
            self._feeder.stop()

    def close(self) -> None:
        """Close it again: a signal may have interrupted the first time."""
        with held():
            if self._started:
                self._feeder.stop()
                self._opened.close()

    def _end(self) -> None:
        if not self._well:
            self._process.kill()
        self._process.reap()


def _pipe_with(secret: bytes, opened: ExitStack) -> int:
    """Return the reading end of a pipe that contains `secret` and nothing else."""
    reading, writing = os.pipe()
    opened.callback(os.close, reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(secret)
    return reading
