"""The time of a save that QEMU is slow or odd about is kept all the same."""

from __future__ import annotations

import itertools
import queue
from contextlib import closing

from statepipe.qemu.monitor import Monitor
from statepipe.state.rounds import Limits, Rounds
from tests.qmpserver import QmpServer

ACTIVE = {"status": "active"}


def test_an_answer_that_is_not_understood_takes_no_bound_away(server: QmpServer) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers = itertools.chain([{"status": ["odd"]}], itertools.repeat(ACTIVE))
    server.answers |= {"query-migrate": lambda: next(answers)}
    with closing(Monitor(server.path)) as monitor:
        rounds = Rounds(monitor, Limits(seconds=0.1), told.put, lambda: None)
        with rounds.followed():
            server.wait_for("migrate_cancel")
    assert "query-migrate is not understood" in told.get(timeout=60)
    assert rounds.overdue is not None
