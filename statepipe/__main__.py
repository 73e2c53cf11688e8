"""`python -m statepipe`."""

import signal

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() hears of it: nothing is open yet, nobody wants a trace

from statepipe.cli.main import entry

entry()
