"""A command that has a time ends as by a signal, and says that it was late."""

from __future__ import annotations

import signal
import threading

import pytest

from statepipe.engine.deadline import within
from statepipe.engine.signals import as_exceptions
from statepipe.errors import InterruptedBySignal, StatepipeError


def test_what_is_late_is_told_in_its_words() -> None:
    late = pytest.raises(StatepipeError, match=r"nothing came after 0\.05 s")
    with late, as_exceptions(), within(0.05, "nothing came"):
        threading.Event().wait()


def test_what_is_through_has_all_the_time() -> None:
    fired = threading.Event()
    with as_exceptions(), within(0.05, "nothing came") as in_time:
        in_time()
        assert not fired.wait(0.3)


def test_another_signal_is_no_lateness() -> None:
    with pytest.raises(InterruptedBySignal), as_exceptions(), within(60, "nothing came"):
        signal.raise_signal(signal.SIGTERM)
        threading.Event().wait()
