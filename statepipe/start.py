"""What every way to start us calls: `python -m statepipe`, pip's script, and the launcher of `make install`."""

from __future__ import annotations

import signal


def entry() -> None:
    """Run the command line, and never return. A Ctrl-C ends it without a trace of Python's until it is heard of."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is open yet, and imports take a third of a second
    from statepipe.cli.main import entry

    entry()
