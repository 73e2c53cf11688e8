"""A program: a moto server (S3 in memory) at a port of its own, which it prints. It ends with the process that started
it, however that ends."""

from __future__ import annotations

import ctypes
import logging
import signal
import threading

from moto.server import ThreadedMotoServer

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until we are killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
