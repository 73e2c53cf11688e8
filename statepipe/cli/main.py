"""The command: find the verb, parse, run, report errors, and return an exit code. All errors are caught here."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from statepipe import __version__
from statepipe.cli.messages import explain, is_heard, say, show
from statepipe.cli.verbs import EXIT_CODES, VERBS, find_verb
from statepipe.ends.fd import write_all
from statepipe.errors import InterruptedBySignal, ReaderGone, StatepipeError, UsageError
from statepipe.pipeline.job import Job
from statepipe.pipeline.signals import ASKING, as_exceptions, ignore
from statepipe.private import own_process
from statepipe.session.farwords import meant_words
from statepipe.threads import LIMITS
from statepipe.typed import Any, TextIO


def main(arguments: Sequence[str] | None = None, leave: Callable[[int], int] = lambda code: code) -> int:
    """Run a command line (sys.argv by default) and return the exit code.

    `leave` gets the code once no signal can change it any more.
    """
    words = meant_words(sys.argv[1:] if arguments is None else arguments)

    def complain(text: str) -> None:
        if os.isatty(2):  # where a person can act on it; a script's log would get it at each run, and ps says it, too
            say(f"statepipe: warning: {text}")

    def tell() -> None:
        from statepipe.cli.jobs import tell_status

        tell_status(job)

    job = Job(complain)
    try:
        with as_exceptions(tell):
            try:
                return leave(_run_and_explain(words, job))
            except InterruptedBySignal as error:  # while another failure was about to be reported
                first = error.__context__
                cause = first if isinstance(first, StatepipeError) else error
                return leave(_fail(words, cause) if is_heard(0) else cause.exit_code)
    except StatepipeError as error:  # a signal, or a lack of threads, before anything began
        return _fail(words, error)


def _run_and_explain(words: Sequence[str], job: Job) -> int:
    """Run the command line and report its failure. Return the exit code; from then on no signal counts."""
    try:
        code = _run(words, job)
        ignore()
    except StatepipeError as error:
        hurried = isinstance(error, InterruptedBySignal | ReaderGone)
        heard = is_heard(PATIENCE if hurried else None)  # while a signal can still end this wait
        ignore()
        code = _fail(words, error) if heard else error.exit_code
    except ModuleNotFoundError as error:
        lacking = _lacking(error)
        ignore()
        code = _fail(words, lacking)
    except MemoryError:
        ignore()
        code = _fail(words, StatepipeError("there is not enough memory", hint=LIMITS))
    return code


def _lacking(error: ModuleNotFoundError) -> StatepipeError:
    """Return the error for a package that everybody needs and this Python lacks. Raises a module's of ours again."""
    top = (error.name or "").partition(".")[0]
    if top in ("", "statepipe"):
        raise error
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    setup = os.path.join(root, "tools", "setup")
    hint = "install statepipe with its packages: pip install --force-reinstall statepipe"
    if os.path.exists(setup):  # a checkout
        hint = f"type: {shlex.quote(setup)}"
    package = "qemu.qmp" if top == "qemu" else top
    return StatepipeError(f"the Python package {package} is not installed for {sys.executable}", hint=hint)


PATIENCE = 5000
"""Milliseconds for a reader of the message after a signal. A second signal ends the wait."""


def _run(words: Sequence[str], job: Job) -> int:
    """Raises StatepipeError."""
    if not words:
        for line in _help().splitlines():
            say(line)
        return UsageError.exit_code
    if words[0] in ("-h", "--help", "help"):
        show(_help())
        return 0
    if words[0] == "--version":
        show(f"statepipe {__version__}")
        return 0
    verb = find_verb(words[0])
    from statepipe.cli.grammar import parse

    values = parse(verb, words[1:])
    # What `ps` shows: the plain arguments, but no words or commands, which can contain anything.
    plain = [param.key for param in verb.params if not param.names and param.many != "any"]
    what = " ".join(str(values[key]) for key in plain if values[key] is not None)
    module, _, function = verb.run.partition(":")
    with job.open(verb.name, what):
        code: int = getattr(import_module(module), function)(verb.name, values)
    return code


def _fail(words: Sequence[str], error: StatepipeError) -> int:
    """Report the error and return its exit code."""
    verb = words[0] if words and any(verb.name == words[0] for verb in VERBS) else None
    explain(verb, error)
    by_monitor = any(word.startswith("--qmp") for word in words)
    if isinstance(error, UsageError) and not by_monitor:
        if verb == "load" and "--" not in words:
            # A mistake in an `-incoming exec:` command must not leave its QEMU waiting for ever.
            from statepipe.ends.fd import FdSink
            from statepipe.state.load import poison

            poison(FdSink(1, "standard output"))
        if verb == "save":
            from statepipe.cli.states import part_from_qemu

            part_from_qemu()
    return error.exit_code


def _help() -> str:
    width = max(len(verb.name) for verb in VERBS)
    lines = [
        "usage: statepipe VERB [ARGUMENT…]",
        "",
        "Carry the state of running virtual machines through pipes, and report truthfully whether it arrived.",
        "",
        *(f"  {verb.name:{width}}  {verb.help}" for verb in VERBS),
        "",
        "exit codes:",
        *(f"  {code} {meaning}" for code, meaning in EXIT_CODES),
        "  128+n ended by signal n",
        "",
        "More: statepipe VERB --help, and man statepipe.",
    ]
    return "\n".join(lines)


def entry() -> None:
    """Run what bin/statepipe and `python -m statepipe` run. It exits without the interpreter's slow clean-up."""
    # Replace closed standard descriptors by ones that reads and writes fail on. Else the next file that we open would
    # get the number, and with it standard output's bytes or messages for people.
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", flags)  # the lowest number that is free: this one
    sys.stdout, sys.stderr = (_patient(fd, stream) for fd, stream in ((1, sys.stdout), (2, sys.stderr)))
    own_process()
    signal.signal(ASKING, signal.SIG_IGN)  # a question that comes too early or too late must not end us
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # our parent may have left it ignored: no program's end is told then
    try:
        code = main(leave=os._exit)
    except SystemExit as leaving:  # argparse, after --help
        code = int(leaving.code or 0)
    os._exit(code)


class _Patient(io.FileIO):
    """A descriptor whose writes wait, even if another process has made it non-blocking: no message is lost."""

    def write(self, data: Any) -> int:
        return write_all(self.fileno(), data)


def _patient(fd: int, before: TextIO | None) -> TextIO:
    """Return a text stream in Python's encoding; what it cannot encode is written with backslashes."""
    buffered = io.BufferedWriter(_Patient(fd, "w", closefd=False))
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=True)
