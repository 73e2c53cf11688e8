"""A program that stands for a QEMU which `statepipe load` starts: it takes a state, and is told to run its guest.

    python standin.py STATE -S … -chardev socket,id=…,fd=N …

At `cont` it sends SIGTERM to who has started it, and answers nothing; its run state then is STATE. With "broken" it
answers what is no JSON instead, with "ended" it ends with status 3, with "calm" it runs its guest, and with "odd" too,
but its run state cannot be understood from then on.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile

from tests.qmpserver import SILENT, Raw, qmp_server


def main() -> None:
    """Until it is told to quit, or its client leaves and it is killed."""
    state = sys.argv[1]
    fd = next(int(found[1]) for word in sys.argv if (found := re.search(r",fd=(\d+)", word)))
    with tempfile.TemporaryDirectory() as folder, qmp_server(folder) as server:
        server.answers |= {"query-status": {"status": "inmigrate"}, "query-named-block-nodes": []}

        def load(stream: socket.socket) -> None:
            while stream.recv(1 << 16):
                continue
            server.answers |= {"query-status": {"status": "paused"}, "query-migrate": {"status": "completed"}}

        def run() -> object:
            if state == "ended":
                os._exit(3)
            if state == "broken":
                return Raw(b'{"return": [}\n')
            if state in ("calm", "odd"):
                server.answers["query-status"] = {"status": "running" if state == "calm" else ["running"]}
                return {}
            server.answers["query-status"] = {"status": state} if state != "-" else SILENT
            os.kill(os.getppid(), signal.SIGTERM)
            return SILENT

        server.migrates(load, "migrate-incoming")
        server.answers |= {"cont": run, "quit": lambda: os._exit(0)}
        server.serve(socket.socket(fileno=fd))
        signal.pause()


if __name__ == "__main__":
    main()
