"""How statepipe speaks: one line that says what failed, and one that says what to try."""

from __future__ import annotations

import select
import signal
import sys
import threading
from contextlib import suppress

from statepipe.errors import IntegrityError, ReaderGone, StatepipeError


def explain(verb: str | None, error: StatepipeError) -> None:
    """Print the error on standard error; nothing for a reader that closed our output, as with SIGPIPE."""
    if isinstance(error, ReaderGone):
        return
    place = [part for part in (verb, _named(error.stage)) if part]
    if len(place) == 2 and place[0] == place[1]:
        place.pop()
    say(": ".join(["statepipe", *place, f"error: {error}{_where(error)}"]))
    if hint := error.hint or _of_damage(verb, error):
        say(f"statepipe: hint: {hint}")


_READERS = ("compress", "decompress", "encrypt", "decrypt", "verify", "pipe", "load", "inspect", "verify-state")
"""The verbs that read what was stored; compress and encrypt do with -d."""


def _of_damage(verb: str | None, error: StatepipeError) -> str | None:
    """Return the hint for stored data that is damaged, where the error has none of its own."""
    if verb is None or verb.partition(":")[0] not in _READERS or not isinstance(error, IntegrityError):
        return None
    return "what was read is damaged or incomplete: take another copy of it"


_OURS = ("watch", "alone", "hold", "digest", "stream", "return path", "relay")
"""Stages that nobody has typed: their names tell a person nothing."""


def _named(stage: str | None) -> str | None:
    """The name of a stage that a person knows; None for one of our own."""
    return None if stage in _OURS else stage


def _where(error: StatepipeError) -> str:
    """The offsets in and out, as far as they are known and not told already."""
    told = error.offset is None or f"byte {error.offset}" in str(error)
    if error.out is None:
        return "" if told else f" (at byte {error.offset})"
    return f" ({error.out} bytes out)" if told else f" (at byte {error.offset} in, {error.out} out)"


def warn(verb: str, text: str) -> None:
    """Something that does not stop us but should be known."""
    say(f"statepipe: {verb}: warning: {text}")


def say(line: str) -> None:
    """A line on standard error, in one piece, whoever else speaks. Where nobody hears it, the exit code still does.

    The main thread waits for a reader, as a signal ends that wait; where none can, for PATIENCE alone, as what is still
    to be put in order waits behind it. What another thread carries does not wait: neither a guest, nor QEMU's monitor,
    nor a listener stands still because a terminal does.
    """
    with suppress(OSError):
        if threading.current_thread() is not threading.main_thread():
            if not is_heard(0):
                return
        elif _is_deaf() and not is_heard(PATIENCE):
            return
        print(f"{clean(line)}\n", end="", file=sys.stderr, flush=True)


PATIENCE = 5000
"""Milliseconds for a terminal that is held by Ctrl-S, or a log's reader that stands still."""


def _is_deaf() -> bool:
    """Whether no signal ends this process now: one has, and the rest is to be done, or they are held back."""
    is_ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    return is_ignored or signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def is_heard(patience: int | None) -> bool:
    """Whether standard error takes a line at once; waits so many milliseconds for that, None: as long as it takes."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(patience))


def show(text: str, before: str = "") -> None:
    """A result on standard output, at once, each line of it clean; `before` is for the terminal itself.

    Raises StatepipeError, as any command whose output nobody takes.
    """
    from statepipe.ends.fd import failure, reader_gone

    lines = text.rstrip("\n").split("\n")
    try:
        print(before + "\n".join("\t".join(map(clean, line.split("\t"))) for line in lines), flush=True)
    except BrokenPipeError as error:
        raise reader_gone("standard output") from error
    except OSError as error:
        raise failure("write standard output", error) from error


def clean(text: str) -> str:
    """One line for a terminal or a log, with no control character of anybody's (a file's name, a peer's, QEMU's words).

    All that statepipe says to people goes through here: messages, results, and what it asks.
    """
    return "".join(c if c.isprintable() else "?" for c in text)
