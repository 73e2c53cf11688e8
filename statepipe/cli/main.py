"""The command: find the verb, parse, run, and turn what comes out into an exit code. Nothing else catches errors."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

from statepipe import __version__
from statepipe.cli.guessing import closest
from statepipe.cli.messages import explain, is_heard, say, show
from statepipe.cli.verb import Verb
from statepipe.cli.verbs import EXIT_CODES, VERBS
from statepipe.ends.fd import write_all
from statepipe.errors import InterruptedBySignal, ReaderGone, StatepipeError, UsageError
from statepipe.pipeline.job import Job
from statepipe.pipeline.signals import ASKING, as_exceptions, ignore
from statepipe.private import own_process
from statepipe.session.farwords import meant_words
from statepipe.threads import LIMITS


def main(arguments: Sequence[str] | None = None, leave: Callable[[int], int] = lambda code: code) -> int:
    """Run a command line (sys.argv by default); the exit code. `leave` gets it while signals can change it no more."""
    words = meant_words(sys.argv[1:] if arguments is None else arguments)
    job = Job(_complain)
    try:
        with as_exceptions(lambda: _tell(job)):
            return leave(_conclude(words, job))
    except StatepipeError as error:  # a signal, or a lack of threads, before anything was begun
        return _fail(words, error)


def _conclude(words: Sequence[str], job: Job) -> int:
    """Run it and tell what failed; the exit code. From then on no signal counts."""
    try:
        return _run_and_tell(words, job)
    except InterruptedBySignal as error:  # as another failure was about to be told
        first = error.__context__
        cause = first if isinstance(first, StatepipeError) else error
        return _fail(words, cause) if is_heard(0) else cause.exit_code


def _run_and_tell(words: Sequence[str], job: Job) -> int:
    try:
        code = _run(words, job)
        ignore()
    except StatepipeError as error:
        hurried = isinstance(error, InterruptedBySignal | ReaderGone)
        heard = is_heard(PATIENCE if hurried else None)  # while signals still end it
        ignore()
        code = _fail(words, error) if heard else error.exit_code
    except MemoryError:
        ignore()
        code = _fail(words, StatepipeError("there is not enough memory", hint=LIMITS))
    return code


PATIENCE = 5000
"""Milliseconds that who has sent a signal has to read what came of it; a second signal ends the wait."""


def _complain(text: str) -> None:
    """Only where a person can act on it: in a script's log it would stand once a run, and `ps` itself says it."""
    if os.isatty(2):
        say(f"statepipe: warning: {text}")


def _tell(job: Job) -> None:
    from statepipe.cli.jobs import tell_status

    tell_status(job)


def _run(words: Sequence[str], job: Job) -> int:
    """Raises StatepipeError."""
    if not words:
        return _show_usage()
    if words[0] in ("-h", "--help", "help"):
        return _show(_help())
    if words[0] == "--version":
        return _show(f"statepipe {__version__}")
    return _dispatch(find_verb(words[0]), words[1:], job)


def _fail(words: Sequence[str], error: StatepipeError) -> int:
    """Tell it; the exit code."""
    verb = words[0] if words and any(verb.name == words[0] for verb in VERBS) else None
    explain(verb, error)
    if verb == "load" and isinstance(error, UsageError):
        _give_up_loading(words)
    if verb == "save" and isinstance(error, UsageError) and not _names_monitor(words):
        from statepipe.cli.states import part_from_qemu

        part_from_qemu()
    return error.exit_code


def _give_up_loading(words: Sequence[str]) -> None:
    """A slip in an `-incoming exec:` command must not leave its QEMU waiting for ever."""
    from statepipe.ends.fd import FdSink
    from statepipe.state.load import poison

    if not (_names_monitor(words) or "--" in words):
        poison(FdSink(1, "standard output"))


def _names_monitor(words: Sequence[str]) -> bool:
    return any(word.startswith("--qmp") for word in words)


def find_verb(name: str) -> Verb:
    """The verb of that name. Raises UsageError."""
    for verb in VERBS:
        if verb.name == name:
            return verb
    raise UsageError(f"there is no verb '{name}'", hint=f"{_meant(name)}see: statepipe --help")


_ELSEWHERE = {"restore": "load", "resume": "load", "dump": "save", "snapshot": "save", "list": "ps", "status": "ps"}
"""What other programs call what we do."""


def _meant(name: str) -> str:
    """The beginning of a hint, for a verb that is misspelt, or called otherwise elsewhere."""
    if name.startswith("-"):
        if option := closest(name.lower(), ["--help", "--version"]):
            return f"did you mean {option}? "
        return "the verb comes first, its options after it; "
    word = name.partition(":")[0].lower()
    verb = _ELSEWHERE.get(word) or closest(word, [verb.name for verb in VERBS])
    return f"did you mean {verb}? " if verb else ""


def _dispatch(verb: Verb, words: Sequence[str], job: Job) -> int:
    from statepipe.cli.grammar import parse

    values = parse(verb, words)
    module, _, function = verb.run.partition(":")
    with job.open(verb.name, _what(verb, values)):
        code: int = getattr(import_module(module), function)(verb.name, values)
    return code


def _what(verb: Verb, values: dict[str, Any]) -> str:
    """What a verb works on, for `ps`: its plain arguments, but not words or commands: who knows what is in them."""
    names = [param.name for param in verb.params if not param.name.startswith("--") and param.many != "any"]
    return " ".join(str(values[name]) for name in names if name != "command" and values[name] is not None)


def _help() -> str:
    width = max(len(verb.name) for verb in VERBS)
    lines = [
        "usage: statepipe VERB [ARGUMENT…]",
        "",
        "Carries the state of running virtual machines through pipes, and says the truth about whether it arrived.",
        "",
        *(f"  {verb.name:{width}}  {verb.help}" for verb in VERBS),
        "",
        "exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES) + "; 128+n signal n",
        "statepipe VERB --help tells more, man statepipe all.",
    ]
    return "\n".join(lines)


def _show(text: str) -> int:
    show(text)
    return 0


def _show_usage() -> int:
    for line in _help().splitlines():
        say(line)
    return UsageError.exit_code


def entry() -> None:
    """What bin/statepipe and `python -m statepipe` run. Leaves without the interpreter's slow farewell."""
    _fill_standard_descriptors()
    own_process()
    signal.signal(ASKING, signal.SIG_IGN)  # who asks a moment too early or too late must not end us
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as our parent may have left it, no program's end is told
    try:
        code = main(leave=os._exit)
    except SystemExit as leaving:  # argparse, after --help
        code = int(leaving.code or 0)
    os._exit(code)


def _fill_standard_descriptors() -> None:
    """Put something in the place of a closed one, that reads and writes fail on.

    Else the next file we open takes its number: standard output's bytes or people's messages would go into it.
    """
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", flags)  # the lowest number that is free: this one
    sys.stdout, sys.stderr = (_patient(fd, stream) for fd, stream in ((1, sys.stdout), (2, sys.stderr)))


class _Patient(io.FileIO):
    """A descriptor whose writes wait, also where somebody who shares it has it not block: no word is lost for that."""

    def write(self, data: Any) -> int:
        return write_all(self.fileno(), data)


def _patient(fd: int, before: TextIO | None) -> TextIO:
    """In the place of Python's own stream, in its encoding; what that cannot write is written with backslashes."""
    raw = _Patient(fd, "w", closefd=False)
    buffered = io.BufferedWriter(raw)
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(buffered, encoding, "backslashreplace", line_buffering=True)
