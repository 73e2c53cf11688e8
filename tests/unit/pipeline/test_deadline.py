"""A command that has a time ends as by a signal, and says that it was late."""

from __future__ import annotations

import signal
import threading

import pytest

from statepipe.errors import InterruptedBySignal, StatepipeError
from statepipe.pipeline.deadline import within
from statepipe.pipeline.signals import as_exceptions


def test_what_is_late_is_told_in_its_words() -> None:
    late = pytest.raises(StatepipeError, match=r"nothing came after 0\.05 s")
    with late, as_exceptions(), within(0.05, "nothing came"):
        threading.Event().wait()


def test_what_is_through_as_its_time_is_over_was_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends for being late, and comes to nothing as it was told meanwhile."""
    is_late, may_act = threading.Event(), threading.Event()
    wait = threading.Event.wait

    def late(event: threading.Event, timeout: float | None = None) -> bool:
        if timeout != 0.05:
            return wait(event, timeout)
        found = wait(event, timeout)
        is_late.set()
        wait(may_act)
        return found

    monkeypatch.setattr(threading.Event, "wait", late)
    with as_exceptions():
        with within(0.05, "nothing came") as in_time:
            wait(is_late)
            in_time()
            may_act.set()
        assert not signal.sigpending()


def test_another_signal_is_no_lateness() -> None:
    with pytest.raises(InterruptedBySignal), as_exceptions(), within(60, "nothing came"):
        signal.raise_signal(signal.SIGTERM)
        threading.Event().wait()
