"""migrate -d: run the same command in the background, and return once the guest's memory is being sent.

The other process is started anew, not forked: it has a session of its own and none of our threads. We read its
--status-fd until then; later `ps`, `rate` and `cancel` reach it.
"""

from __future__ import annotations

import json
import os
import sys

from statepipe.cli.messages import say
from statepipe.errors import UsageError
from statepipe.processes import Process
from statepipe.recovery.handover import Source
from statepipe.typed import Any

DETACH = ("-d", "--detach")


def run_detached(values: dict[str, Any], monitor: str) -> int:
    """Return 0 once the guest's memory is being sent, else the exit status of the command, which has said why."""
    if values["status_fd"] is not None:
        raise UsageError("--status-fd and --detach exclude each other", hint="leave --detach out, or use statepipe ps")
    reading, writing = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        cut = sys.orig_argv.index("migrate")
        words = [word for word in sys.orig_argv[cut:] if word not in DETACH]
        command = [*sys.orig_argv[:cut], *words, "--status-fd", str(writing)]
        process = Process(command, {0: nothing, 1: 1, 2: 2, writing: writing})
    finally:
        os.close(writing)
        os.close(nothing)
    with os.fdopen(reading, "rb") as lines:
        if any(json.loads(line).get("step", {}).get("state") == Source.PRECOPY.name for line in lines):
            say(f"statepipe: migrate: the guest at {monitor} is on its way; for ps, rate and cancel: ID {process.pid}")
            return 0
    status = process.status()
    process.reap()
    return status if status >= 0 else 128 - status
