"""The entry point of `python -m statepipe`, pip's script, and the launcher of `make install`."""

from __future__ import annotations

import signal


def entry() -> None:
    """Run the command line; never returns. Until our handlers are set, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is open yet, and the imports take a third of a second
    from statepipe.cli.main import entry

    entry()
