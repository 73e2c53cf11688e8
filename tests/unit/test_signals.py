"""Signals as exceptions: one is enough, the ignored stay ignored, and held ones wait."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from statepipe.engine.signals import ENDING, as_exceptions, held
from statepipe.errors import InterruptedBySignal

every_signal = pytest.mark.parametrize("number", ENDING)


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in ENDING]
    yield
    assert [signal.getsignal(number) for number in ENDING] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(ENDING)


@every_signal
def test_it_ends_with_128_and_its_number(number: signal.Signals) -> None:
    with pytest.raises(InterruptedBySignal, match=f"stopped by {number.name}") as caught, as_exceptions():
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number


@every_signal
def test_those_that_follow_are_ignored_while_things_are_put_in_order(number: signal.Signals) -> None:
    tidied = False
    with pytest.raises(InterruptedBySignal), as_exceptions():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(number)
            tidied = True
    assert tidied


def test_one_that_was_ignored_stays_so() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_exceptions():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@every_signal
def test_a_held_one_waits(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(InterruptedBySignal), as_exceptions():
        with held():
            signal.raise_signal(number)
            steps.append("together")
        steps.append("never")
    assert steps == ["together"]


def test_holds_can_stand_in_one_another() -> None:
    steps = []
    with pytest.raises(InterruptedBySignal), as_exceptions(), held():
        with held():
            signal.raise_signal(signal.SIGINT)
        steps.append("still held")
    assert steps == ["still held"]
