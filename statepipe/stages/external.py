"""external: any program as a stage, what became of it part of the verdict.

What it writes leaves as it comes. The stage ends well only if the program has ended with status 0, all its output is
here, and it has read its input to the end. Three failures can come at once:
- the upstream fails: that is the cause, and the program, which is not told of an end of its input, is ended;
- the program fails: that is the cause, and not the pipe that nobody reads any more;
- downstream fails: we are closed, and what becomes of the program then is not asked.

A flush mark cannot be said to a program. It goes round it: at once, and again each time the program has put out
something and falls quiet, until more comes from above.
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
from statepipe.stages.feeding import Feeder, Listener, Words
from statepipe.threads import held
from statepipe.wakeups import LINGER, READ_SIZE, SMALL, Bell, enlarge_pipe, polled, waiting

TITLE = 60
"""Characters of a command line that messages name it by."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended: `status` is its exit status, or minus the number of the signal that killed it.

    `read_all`: it has taken all of its input. `words`: the last it said.
    """

    status: int
    read_all: bool
    words: str


@dataclass(frozen=True, slots=True)
class Job:
    """A program to run. `command` makes its arguments, given the descriptors that `asides` and `secrets` become.

    What it writes to an aside is handed on apart; a secret (at most a page) is what it can read there. `say` gets
    its standard error, `judge` raises what its ending means. `may_stop`: it may end well before its input does.
    """

    title: str
    command: Callable[[Sequence[int]], Sequence[str]]
    say: Callable[[str], object]
    judge: Callable[[Ending], None]
    may_stop: bool = False
    asides: tuple[Callable[[bytes], None], ...] = ()
    secrets: tuple[bytes, ...] = ()


def external(command: Sequence[str], shell: str | None, context: Context, *, may_stop: bool = False) -> Stage:
    """A stage that is a program, by its arguments or by a line for the shell. Raises UsageError."""
    argv = _arguments(command, shell)
    title = shell if shell is not None else shlex.join(argv)
    title = title if len(title) <= TITLE else title[: TITLE - 1] + "…"

    def say(text: str) -> None:
        context.messages.write(text)
        context.messages.flush()

    def judge(ending: Ending) -> None:
        _judge(title, ending)

    return running(Job(title, lambda fds: argv, say, judge, may_stop))


def _arguments(command: Sequence[str], shell: str | None) -> Sequence[str]:
    if bool(command) == (shell is not None):
        raise UsageError("external needs a program, or --shell LINE, and not both", hint="as in: external -- tr a b")
    if shell is None:
        return command
    bash = shutil.which("bash")  # there, a failure in the middle of a pipeline counts
    return [bash, "-o", "pipefail", "-c", shell] if bash else ["/bin/sh", "-c", shell]


def _judge(title: str, ending: Ending) -> None:
    """Raise StatepipeError if it did not end well."""
    words = f": {ending.words}" if ending.words else ""
    if ending.status > 0:
        raise StatepipeError(f"{title} failed with exit status {ending.status}{words}")
    if ending.status < 0:
        raise StatepipeError(f"{title} was killed by {name_of_signal(-ending.status)}{words}")
    if not ending.read_all:
        hint = "if it may end before its input does, say so with --may-stop"
        raise StatepipeError(f"{title} ended with status 0, but left a part of its input unread", hint=hint)


def running(job: Job) -> Stage:
    """A stage that runs `job`, started when the first buffer is asked for. It raises StatepipeError."""

    def stage(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        place = _Place()
        return Over(place, _flow(place, job, upstream))

    return stage


def _flow(place: _Place, job: Job, upstream: Iterator[Buffer]) -> Iterator[Buffer]:
    try:
        program = place.start(job, upstream)
        yield from program.output()
        yield from program.verdict()
    finally:
        place.close()


class _Place:
    """Where a program will be. `cancel` may be called from any thread, at any time, all else by the one that pulls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._program: _Program | None = None

    def start(self, job: Job, upstream: Iterator[Buffer]) -> _Program:
        """Raises StatepipeError if it cannot be started, Cancelled if nobody wants it any more."""
        with self._lock, held():
            if self._cancelled:
                raise Cancelled
            self._program = _Program(job, upstream)
            return self._program

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
        if self._program is not None:
            self._program.cancel()

    def close(self) -> None:
        """A second time does nothing: the first may have been broken off by a signal before it began."""
        with held():
            if self._program is not None:
                self._program.close()


class _Program:
    """A job at work, from its making on."""

    def __init__(self, job: Job, upstream: Iterator[Buffer]) -> None:
        self._job = job
        self._words = Words(job.say)
        self._cancelled = self._well = False
        with ExitStack() as opened:
            self._bell = Bell()
            opened.callback(self._bell.close)
            self._feeder = Feeder(upstream, self._bell)
            opened.callback(self._feeder.close)
            self._listeners = [_listener(hear, opened) for hear in (self._words.hear, *job.asides)]
            self._output, writing = os.pipe()
            opened.callback(os.close, self._output)
            self._process = self._launch(writing)
            opened.callback(self._end)
            for listener in self._listeners:
                listener.start()
            self._feeder.start()
            self._opened = opened.pop_all()

    def _launch(self, output: int) -> Process:
        stderr, *asides = [listener.writing for listener in self._listeners]
        with ExitStack() as brief:
            brief.callback(os.close, output)
            enlarge_pipe(output)
            extra = [*asides, *(_pipe_with(secret, brief) for secret in self._job.secrets)]
            descriptors = {0: self._feeder.reading, 1: output, 2: stderr} | {fd: fd for fd in extra}
            return Process(self._job.command(extra), descriptors)

    # --- at work

    def output(self) -> Iterator[Buffer]:
        """What it puts out. Raises what the upstream raised, and StatepipeError if its output has no end."""
        poll = polled(self._output, self._bell.fd, self._process.pidfd)
        aside = polled(self._bell.fd, self._process.pidfd)
        owed = False
        while True:
            ready = {fd for fd, _ in poll.poll(0 if owed else None)}
            owed = self._heeded(ready) or owed
            if self._output in ready:
                if 0 < waiting(self._output) < SMALL:
                    aside.poll(LINGER)
                if not (buffer := os.read(self._output, READ_SIZE)):
                    return
                yield buffer
                owed = self._feeder.marked
            elif self._process.pidfd in ready:
                if not self._still_speaks():
                    return
            elif not ready:
                yield FLUSH
                owed = False

    def _still_speaks(self) -> bool:
        """Whether there is more to read although it has ended. Raises StatepipeError if others keep it from an end."""
        failed = self._process.status() != 0
        if polled(self._output).poll(0 if failed else GRACE):
            return True
        if failed:
            return False
        hint = "let it wait for what it starts, or send the output of that elsewhere"
        raise StatepipeError(f"{self._job.title} ended, but what it started holds its output open", hint=hint)

    def verdict(self) -> Iterator[Buffer]:
        """Flush marks until it is known how it ended. Raises StatepipeError if not well."""
        yield from self._until(lambda: bool(polled(self._process.pidfd).poll(0)))
        status = self._process.status()
        read_all = True
        if not status and not self._job.may_stop:
            read_all = not self._feeder.refuse()
            yield from self._until(lambda: not read_all or self._feeder.done)
            read_all = read_all and self._feeder.ended
        for listener in self._listeners:
            listener.finish()
        self._job.judge(Ending(status, read_all, self._words.last()))
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
        """What the bell rang for, if it did: whether it was a flush mark. Raises what ended the upstream, or us."""
        if self._bell.fd not in ready:
            return False
        self._bell.hush()
        if self._cancelled:
            raise Cancelled
        if self._feeder.failure is not None:
            raise self._feeder.failure
        return self._feeder.marked

    # --- ending

    def cancel(self) -> None:
        self._cancelled = True
        self._bell.ring()
        self._feeder.stop()

    def close(self) -> None:
        self._feeder.stop()
        self._opened.close()

    def _end(self) -> None:
        if not self._well:
            self._process.kill()
        self._process.reap()


def _listener(hear: Callable[[bytes], None], opened: ExitStack) -> Listener:
    listener = Listener(hear)
    opened.callback(listener.close)
    opened.callback(listener.finish)
    return listener


def _pipe_with(secret: bytes, opened: ExitStack) -> int:
    """The reading end of a pipe that holds `secret` and no more."""
    reading, writing = os.pipe()
    opened.callback(os.close, reading)
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(secret)
    return reading
