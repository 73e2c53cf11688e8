"""The entry point of `python -m statepipe`, pip's script, and the launcher of `make install`."""

from __future__ import annotations

import gc
import signal

GARBAGE = 100_000
"""New objects after which Python looks for garbage. The imports of load --lazy make 45,000, which all stay: to look
through them takes 5 to 10 ms of processor time after each 20,000, and 11 ms more after each 700, Python's default."""


def entry() -> None:
    """Run the command line; never returns. Until our handlers are set, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is open yet, and the imports take a third of a second
    gc.set_threshold(GARBAGE)
    from statepipe.cli.main import entry

    entry()
