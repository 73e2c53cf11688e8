"""The entry point of `python -m statepipe`, pip's script, and the launcher of `make install`."""

from __future__ import annotations

import gc
import signal

GARBAGE = 20_000
"""New objects after which Python looks for garbage. After 700, its default, the imports of load --lazy take 150 ms of
processor time, with this number 139: the many objects that they make all stay."""


def entry() -> None:
    """Run the command line; never returns. Until our handlers are set, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is open yet, and the imports take a third of a second
    gc.set_threshold(GARBAGE)
    from statepipe.cli.main import entry

    entry()
