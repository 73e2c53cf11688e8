"""Messages for people: a line that says what failed, a hint that says what to do, and results."""

from __future__ import annotations

import select
import signal
import sys
import threading
from contextlib import suppress

from statepipe.errors import ANOTHER_COPY, IntegrityError, ReaderGone, StatepipeError

_READERS = ("compress", "decompress", "encrypt", "decrypt", "verify", "pipe", "load", "inspect", "verify-state")
"""The verbs that read stored data; compress and encrypt do with -d."""

INTERNAL = ("watch", "alone", "hold", "digest", "stream", "return path", "relay")
"""Stages that nobody has typed: their names tell a person nothing."""


def explain(verb: str | None, error: StatepipeError) -> None:
    """Print the error on standard error; nothing for a reader that closed our output, as with SIGPIPE."""
    if isinstance(error, ReaderGone):
        return
    place = [part for part in (verb, error.stage) if part and part not in INTERNAL]
    if len(place) == 2 and place[0] == place[1]:
        place.pop()
    told = error.offset is None or f"byte {error.offset}" in str(error)
    if error.out is None:
        where = "" if told else f" (at byte {error.offset})"
    else:
        where = f" ({error.out} bytes out)" if told else f" (at byte {error.offset} in, {error.out} out)"
    say(": ".join(["statepipe", *place, f"error: {error}{where}"]))
    hint = error.hint
    if not hint and verb and verb.partition(":")[0] in _READERS and isinstance(error, IntegrityError):
        hint = ANOTHER_COPY
    if hint:
        say(f"statepipe: hint: {hint}")


def warn(verb: str, text: str) -> None:
    """Print something that does not stop us but should be known."""
    say(f"statepipe: {verb}: warning: {text}")


def say(line: str) -> None:
    """Print a line on standard error, in one piece. If it cannot be written, the exit code still tells.

    The main thread waits for a reader, as a signal ends that wait. If no signal can, it waits for PATIENCE only, since
    the rest of the work waits for it. Another thread does not wait: neither a guest, nor QEMU's monitor, nor a listener
    must stop because a terminal does.
    """
    deaf = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # a signal has come, and the rest is to be done
    deaf = deaf or signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with suppress(OSError):
        if threading.current_thread() is not threading.main_thread():
            if not is_heard(0):
                return
        elif deaf and not is_heard(PATIENCE):
            return
        print(f"{clean(line)}\n", end="", file=sys.stderr, flush=True)


PATIENCE = 5000
"""Milliseconds to wait for a terminal stopped by Ctrl-S, or a log's reader that does not read."""


def is_heard(patience: int | None) -> bool:
    """Return whether standard error takes a line within that many milliseconds (None: wait for ever)."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(patience))


def show(text: str, before: str = "") -> None:
    """Print a result on standard output at once, each line clean. `before` controls the terminal.

    Raises StatepipeError if it cannot be written.
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
    """Return one line without control characters, which the name of a file or a peer, or QEMU's words can contain.

    All messages, results and questions for people pass through here.
    """
    return "".join(c if c.isprintable() else "?" for c in text)
