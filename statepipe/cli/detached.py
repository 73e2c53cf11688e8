"""migrate -d: the same command in the background, and back once its guest is on its way.

The other process is started anew, not forked: it has a session of its own and none of our threads. Its --status-fd is
ours until then; from then on `ps`, `rate` and `cancel` speak with it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from statepipe.cli.messages import say
from statepipe.errors import UsageError
from statepipe.processes import Process
from statepipe.recovery.handover import Source

DETACH = ("-d", "--detach")


def run_detached(values: dict[str, Any], monitor: str) -> int:
    """0 once the guest's memory is on its way; else the exit status of the command, which has said why."""
    if values["status_fd"] is not None:
        raise UsageError("--status-fd needs a reader that stays", hint="leave --detach out, or ask with statepipe ps")
    reading, writing = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        process = Process(_command(writing), {0: nothing, 1: 1, 2: 2, writing: writing})
    finally:
        os.close(writing)
        os.close(nothing)
    with os.fdopen(reading, "rb") as lines:
        if any(_is_on_its_way(line) for line in lines):
            say(f"statepipe: migrate: the guest at {monitor} is on its way; for ps, rate and cancel: ID {process.pid}")
            return 0
    status = process.status()
    process.reap()
    return status if status >= 0 else 128 - status


def _command(fd: int) -> list[str]:
    """This command without -d, and with its steps told."""
    cut = sys.orig_argv.index("migrate")
    words = [word for word in sys.orig_argv[cut:] if word not in DETACH]
    return [*sys.orig_argv[:cut], *words, "--status-fd", str(fd)]


def _is_on_its_way(line: bytes) -> bool:
    return bool(json.loads(line).get("step", {}).get("state") == Source.PRECOPY.name)
