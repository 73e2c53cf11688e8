"""The time of a save that QEMU is slow or odd about is kept all the same."""

from __future__ import annotations

import itertools
import queue
import threading
from contextlib import closing

import pytest

from statepipe.formats.qemu.stream import QemuStream
from statepipe.qemu.monitor import Monitor
from statepipe.qemu.pace import StreamPace
from statepipe.state.rounds import Limits, Rounds, followed
from tests.qmpserver import QmpServer
from tests.statefiles import noise
from tests.streams import head, ram, ram_start

ACTIVE = {"status": "active"}


def test_an_answer_that_is_not_understood_takes_no_bound_away(server: QmpServer) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers = itertools.chain([{"status": ["odd"]}], itertools.repeat(ACTIVE))
    server.answers |= {"query-migrate": lambda: next(answers)}
    with closing(Monitor(server.path)) as monitor:
        rounds = Rounds(monitor, Limits(seconds=0.1), told.put, lambda: None)
        with rounds.followed():
            server.wait_for("migrate_cancel")
    assert "unexpected answer to query-migrate" in told.get(timeout=60)
    assert rounds.overdue is not None


@pytest.mark.parametrize(
    ("rounds", "is_told"),
    [
        ([100, 50, 50, 50, 50], True),
        ([100, 50, 50, 50, 46], True),
        ([100, 50, 40, 30, 20, 10], False),
        ([100, 100, 100], False),
    ],
)
def test_rounds_that_do_not_become_shorter_are_told_with_figures(rounds: list[int], is_told: bool) -> None:
    """By the stream alone, and not before the fourth is through. Each round's MiB take as many seconds."""
    pace, at, told = StreamPace(), 0, []
    for number, sent in enumerate(rounds, 1):
        told.append(pace.judge(float(at), number, at << 20))
        at += sent
    told.append(pace.judge(float(at), len(rounds) + 1, at << 20))
    words = [each for each in told if each]
    assert bool(words) == is_told and len(words) <= 1
    if is_told:
        assert "round 5, 250 MiB sent: the last round took 50.0 s for 50.0 MiB, the one before" in words[0]
        assert "migrate_set_parameter downtime-limit 5000" in words[0]


def test_a_stream_that_has_no_end_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statepipe.state.rounds.STREAM_LOOK", 0.005)
    stream, told = QemuStream(), queue.SimpleQueue[str]()
    stream.feed(head() + ram_start() + ram(noise(0, "pc.ram"), *map(noise, range(1, 60))))
    with followed(stream, told.put):
        for _ in range(1000):
            stream.feed(ram(noise(0, "pc.ram"), *map(noise, range(1, 20))))
            if not told.empty():
                break
            threading.Event().wait(0.02)  # a round takes longer than a look
    assert "s for 80.2 KiB, the one before sent 80.2 KiB: the guest changes" in told.get_nowait()
